"""A disk that is full at some moment of a run; after there is room again, the run ends as if there had been room."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import SMALL, start
from faults.conftest import TIMES
from test_resume import digest, only_run

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a small disk takes root"),
]
TRAINING = (*SMALL, "trainer.epochs=12", "model.hidden=64", "trainer.checkpoint_every_s=0.1", "resume=true")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`disk(kilobytes)` mounts a small disk, or changes the size of the one that is mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(kilobytes: int) -> Path:
        options = f"size={kilobytes}k" if not os.path.ismount(folder) else f"remount,size={kilobytes}k"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
        return folder

    yield size
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(
    environment: dict[str, str],
    tmp_path: Path,
    disk: Callable[[int], Path],
    moments: random.Random,
    tried: Callable[..., None],
) -> None:
    straight = environment | {"SNNEXP_OUTPUTS": str(tmp_path / "straight")}
    process = start(straight, *TRAINING)
    _, err = process.communicate()
    assert process.returncode == 0, err
    needed = sum(path.stat().st_size for path in (tmp_path / "straight").rglob("*") if path.is_file()) // 1024
    for _ in range(2 * TIMES):
        small = environment | {"SNNEXP_OUTPUTS": str(disk(moments.randrange(needed // 4, needed)) / "outputs")}
        process = start(small, *TRAINING)
        _, err = process.communicate()
        refused = process.returncode == 1 and "Traceback" not in err
        room = disk(4 * needed + 65536)
        process = start(small, *TRAINING)
        _, again = process.communicate()
        ended = process.returncode == 0
        same = ended and digest(only_run(room / "outputs")) == digest(only_run(tmp_path / "straight"))
        tried("full disk, then room: no word, no resumption, or other bits", 1, int(not (refused and same)))
        assert ended, again
        subprocess.run(["umount", str(room)], check=True)


def test_full_temporary_folder(
    environment: dict[str, str], tmp_path: Path, disk: Callable[[int], Path], tried: Callable[..., None]
) -> None:
    """A run either needs no temporary folder, or says that there is no room in it."""
    folder = disk(64)
    (folder / "full").write_bytes(bytes(60 << 10))
    outputs = {"SNNEXP_OUTPUTS": str(tmp_path / "outputs"), "TMPDIR": str(folder)}
    process = start(environment | outputs, *SMALL, "resume=true")
    _, err = process.communicate()
    said = process.returncode == 1 and "Traceback" not in err and "space" in err
    tried("full temporary folder: neither a result nor a word", 1, int(not (process.returncode == 0 or said)))
    process = start(environment | {"SNNEXP_OUTPUTS": str(tmp_path / "outputs")}, *SMALL, "resume=true")
    _, err = process.communicate()
    assert process.returncode == 0, err
