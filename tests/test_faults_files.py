"""Hostile and broken recordings: each is refused in one sentence that names the file, in bounded memory and time."""

from __future__ import annotations

import errno
import os
import resource
import stat
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faults.mutate import fuzz
from faults.readers import readers, some_events
from snnexp.dataset import aedat, events
from snnexp.dataset.cifar10_dvs import cifar10_dvs
from snnexp.dataset.foreign import LIST_BYTES, RECORDING_BYTES, Zip, shown
from snnexp.dataset.image_folder import image_folder
from snnexp.dataset.nmnist import nmnist
from snnexp.dataset.saccade import read_idx
from snnexp.errors import UserError

READERS = readers()
GOOD = events.encode(some_events(20, 34, 2**20))
AEDAT = aedat.encode(some_events(20, 128, 2**20))


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_are_accepted_or_refused_in_a_sentence(name: str) -> None:
    counts = READERS[name].fuzz(500, seed=3)
    assert counts.bad == []
    assert counts.refused + counts.accepted == 500
    assert min(counts.refused, counts.accepted) > 10, "the mutants are neither all alike nor all noise"


def test_the_fuzzer_finds_what_is_bad() -> None:
    def read(data: bytes) -> None:
        match data:
            case b"exception":
                raise ValueError("no")
            case b"foreign words":
                raise UserError("it is damaged")
            case b"terminal":
                raise UserError("file: \x1b[2J")
            case b"endless":
                while True:
                    pass
            case b"large":
                np.ones(200 << 20, np.uint8)
            case b"larger":
                try:
                    bytearray(1 << 40)
                except MemoryError as error:
                    raise UserError("file cannot be read") from error
            case b"refused":
                raise UserError("file: it is damaged")

    found = {}
    for data in (b"exception", b"foreign words", b"terminal", b"endless", b"large", b"larger", b"refused", b"accepted"):
        seconds = 0.2 if data == b"endless" else 60
        counts = fuzz(lambda _, data=data: read(data), [b"x"], 1, 0, "file", seconds=seconds)
        found[data.decode()] = counts.bad[0].split(": ")[1] if counts.bad else (counts.refused, counts.accepted)
    assert 190 <= int(found.pop("large").removeprefix("took ").removesuffix(" MiB")) <= 260
    assert found == {
        "exception": "ValueError",
        "foreign words": "an unclear refusal",
        "terminal": "an unclear refusal",
        "endless": "TooSlow",
        "larger": "ran out of memory",
        "refused": (1, 0),
        "accepted": (0, 1),
    }


# Folders --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Recordings in folders: N-MNIST 1..12 in Train and Test, and CIFAR10-DVS 0..5 of two classes."""
    for split in ("Train", "Test"):
        for k in range(1, 13):
            folder = tmp_path / split / str(k % 10)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{k:05d}.bin").write_bytes(GOOD)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for k in range(6):
            (tmp_path / name / f"cifar10_{name}_{k}.aedat").write_bytes(AEDAT)
    return tmp_path


def load_nmnist(root: Path) -> int:
    return len(nmnist(root, root / "cache", 2).train.y)


def load_dvs(root: Path) -> int:
    return len(cifar10_dvs(root, ["cat", "dog"], cache=root / "cache", timesteps=2, size=16).train.y)


LOADERS = pytest.mark.parametrize(
    ("load", "folder", "name", "good"),
    [(load_nmnist, "Train/3", "{}.bin", GOOD), (load_dvs, "cat", "cifar10_cat_{}.aedat", AEDAT)],
    ids=["nmnist", "cifar10_dvs"],
)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 << 30)


PLACED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a named pipe": (os.mkfifo, "is a named pipe, not a file: remove or rename it"),
    "a folder": (Path.mkdir, "is a folder, not a file: remove or rename it"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file: remove or rename it"),
    "a dangling link": (
        lambda path: path.symlink_to("/nowhere"),
        "or what it links to, cannot be read (No such file or directory)",
    ),
    "a link to itself": (
        lambda path: path.symlink_to(path.name),
        "or what it links to, cannot be read (Too many levels of symbolic links)",
    ),
    "10 GiB": (sparse, "has 10,737,418,240 bytes, more than the 16,777,216 that are read"),
    "nothing": (Path.touch, ": the file is empty"),
}


@LOADERS
@pytest.mark.parametrize("kind", PLACED)
def test_what_is_named_like_a_recording_but_is_none(load, folder, name, good, kind: str, root: Path) -> None:
    place, said = PLACED[kind]
    path = root / folder / name.format(77)
    place(path)
    start = time.process_time()
    with pytest.raises(UserError) as error:
        load(root)
    assert str(error.value).startswith(str(path))
    assert said in str(error.value)
    assert time.process_time() - start < 2
    assert not list((root / "cache").rglob("*.npy"))


@LOADERS
@pytest.mark.parametrize("digits", ["\u0663", "\u00b2\u00b3", "1\u0663", "x", "1234567890", "9" * 200, "1 (copy)"])
def test_numbers_are_one_to_nine_ascii_digits(load, folder, name, good, digits: str, root: Path) -> None:
    (root / folder / name.format(digits)).write_bytes(good)
    with pytest.raises(UserError, match=r"is not named by a number of 1 to 9 digits 0-9: remove or rename it") as error:
        load(root)
    assert digits in str(error.value)


@LOADERS
def test_no_recording_counts_twice(load, folder, name, good, root: Path) -> None:
    whole = load(root)
    (root / folder / name.format("3")).write_bytes(good)
    (root / folder / name.format("0003")).write_bytes(good)
    with pytest.raises(UserError, match="holds one recording twice, ") as error:
        load(root)
    assert name.format("0003") in str(error.value)
    (root / folder / name.format("0003")).unlink()
    if folder == "Train/3":  # number 3 is there already, as 00003
        (root / folder / name.format("3")).unlink()
    assert load(root) == whole


@LOADERS
def test_hidden_files_are_no_recordings(load, folder, name, good, root: Path) -> None:
    whole = load(root)
    (root / folder / ("._" + name.format("3"))).write_bytes(b"of a file manager")
    assert load(root) == whole


@LOADERS
def test_a_folder_that_cannot_be_listed_is_no_empty_folder(
    load, folder, name, good, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Path.iterdir

    def guarded(path: Path) -> Iterator[Path]:  # by permissions, which do not bind root
        if path == root / folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(Path, "iterdir", guarded)
    with pytest.raises(UserError, match=rf"{folder} cannot be listed \(Permission denied\)"):
        load(root)


def test_a_recording_that_changes_while_it_is_read_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from snnexp.dataset import foreign

    path = root / "Train/3/00003.bin"
    plain = foreign.opened
    monkeypatch.setattr(foreign, "opened", lambda *a: (path.write_bytes(GOOD[:-5]), plain(*a))[1])
    with pytest.raises(UserError, match=r"00003\.bin cannot be read \(it changes while it is read\)"):
        foreign.read_bytes(path)


def test_names_in_messages_neither_control_the_terminal_nor_fill_it() -> None:
    assert shown("caf\u00e9/1.bin") == "caf\u00e9/1.bin"
    assert shown("a\x1b[2Jb\n\udcff") == r"a\x1b[2Jb\n\udcff"
    assert len(shown("1" * 60_000)) < 1010


# Archives -------------------------------------------------------------------------------------------------------------


def deflated_zeros(mib: int) -> bytes:
    """Return a deflate stream of so many MiB of zeros, about a thousandth as long."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    one = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return one * mib + packer.flush()


def stream(archive: zipfile.ZipFile, name: str, data: bytes, size: int) -> None:
    """Add a member whose deflated `data` are said to have `size` bytes when unpacked."""
    archive.writestr(name, data, zipfile.ZIP_STORED)
    archive.filelist[-1].compress_type, archive.filelist[-1].file_size = zipfile.ZIP_DEFLATED, size


def attribute(**values: object) -> Callable[[zipfile.ZipFile], None]:
    """Set attributes of the last member of an archive."""
    return lambda archive: [setattr(archive.filelist[-1], name, value) for name, value in values.items()]


def member(name: str, data: bytes = GOOD) -> Callable[[zipfile.ZipFile], None]:
    return lambda archive: archive.writestr(name, data)


def overlapping(archive: zipfile.ZipFile) -> None:
    """Let all members, of one large and many small ones, be read from the large one."""
    archive.writestr("1/500.bin", os.urandom(1_000_000), zipfile.ZIP_STORED)
    large = archive.filelist[-1]
    for k in range(501, 600):
        archive.writestr(f"1/{k}.bin", GOOD)
        small = archive.filelist[-1]
        small.header_offset, small.compress_size = large.header_offset, large.compress_size


def many_zeros(archive: zipfile.ZipFile) -> None:
    data = deflated_zeros(8)
    for k in range(500, 520):
        stream(archive, f"1/{k}.bin", data, 8 << 20)


def long_list(archive: zipfile.ZipFile) -> None:
    archive.comment = b""
    archive.filelist[-1].comment = b"x" * 65_000
    archive.filelist += [archive.filelist[-1]] * (LIST_BYTES // 65_000)


NAMED = "Train.zip:1/00012.bin "
ARCHIVES: dict[str, tuple[Callable[[zipfile.ZipFile], object], str]] = {
    "encrypted": (attribute(flag_bits=1), NAMED + "is encrypted: unpack the archive with its password, into a folder"),
    "method": (attribute(compress_type=99), NAMED + "is compressed by method 99; only stored and deflated"),
    "bzip2": (attribute(compress_type=12), NAMED + "is compressed by method 12; only stored and deflated"),
    "200 MB": (
        lambda a: stream(a, "1/77.bin", deflated_zeros(200), 200 << 20),
        "1/77.bin unpacks to 209,715,200 bytes",
    ),
    "10 GB": (
        lambda a: stream(a, "1/77.bin", deflated_zeros(10_240), 10_240 << 20),
        "1/77.bin unpacks to 10,737,418,240 bytes, more than the 16,777,216 of a recording",
    ),
    "10 GB said to be 100 bytes": (
        lambda a: stream(a, "1/77.bin", deflated_zeros(10_240), 100),
        "1/77.bin is damaged (Bad CRC-32 for file '1/77.bin'): download the archive again",
    ),
    "100 bytes said to be 5,000": (
        lambda a: stream(a, "1/77.bin", zlib.compress(bytes(100), wbits=-15), 5000),
        "1/77.bin is damaged (",
    ),
    "zeros": (many_zeros, "unpacks to 167,773,360, more than 8"),
    "overlapping": (overlapping, "is not a zip archive of recordings: its members overlap"),
    "a list of members of 32 MiB": (long_list, "the list of members has "),
    "twice": (member("1/00001.bin"), "Train.zip holds one recording twice, 1/00001.bin and 1/00001.bin"),
    "twice in other folders": (member("b/1/1.bin"), "twice, 1/00001.bin and b/1/1.bin"),
    "5,000 digits": (member(f"1/{'1' * 5000}.bin"), "is not named by a number of 1 to 9 digits"),
    "other digits": (member("1/\u0663.bin"), "1/\u0663.bin is not named by a number of 1 to 9 digits"),
    "above": (member("../../1/77.bin"), "Train.zip:../../1/77.bin has a path that leads out of the archive"),
    "absolute": (member("/etc/1/77.bin"), "Train.zip:/etc/1/77.bin has a path that leads out of the archive"),
    "a link": (attribute(external_attr=(stat.S_IFLNK | 0o777) << 16), NAMED + "is a link, not a file"),
    "a terminal's codes": (member("\x1b[2J/1/00001.bin"), r"1/00001.bin and \x1b[2J/1/00001.bin"),
    "empty": (member("1/77.bin", b""), "Train.zip:1/77.bin: the file is empty"),
    "no recording": (member("1/77.bin", b"words"), "Train.zip:1/77.bin: event 0 is at (x, y) = (119, 111), outside"),
    "another version": (attribute(extract_version=99), "is not a complete zip archive (zip file version 9.9)"),
}


def zipped(root: Path, change: Callable[[zipfile.ZipFile], object]) -> Path:
    path = root / "Train.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(1, 13):
            archive.writestr(f"{1 if k > 9 else k}/{k:05d}.bin", GOOD)
        change(archive)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ARCHIVES)
def test_hostile_archives(kind: str, root: Path) -> None:
    change, said = ARCHIVES[kind]
    path = zipped(root, change)
    before = sorted(root.rglob("*"))
    start = time.process_time()
    with pytest.raises(UserError) as error:
        load_nmnist(root)
    assert said in str(error.value)
    assert str(error.value).startswith(str(path))
    assert str(error.value).isprintable()
    assert time.process_time() - start < 2
    assert [p for p in sorted(root.rglob("*")) if "cache" not in p.parts] == before, "nothing may be extracted"
    assert not list((root / "cache").rglob("*.npy"))


@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a device", "a dangling link"])
def test_what_is_named_like_an_archive_but_is_none(kind: str, root: Path) -> None:
    place, said = PLACED[kind]
    for name, load in (("Train.zip", load_nmnist), ("cat.zip", load_dvs)):
        place(root / name)
        with pytest.raises(UserError) as error:
            load(root)
        assert str(error.value).startswith(str(root / name))
        assert said in str(error.value)


def test_other_members_do_not_matter(root: Path) -> None:
    whole = load_nmnist(root)

    def others(archive: zipfile.ZipFile) -> None:
        archive.writestr("README.txt", bytes(20 << 20))
        archive.writestr("1/", b"")
        archive.writestr("__MACOSX/1/._00001.bin", b"of a file manager")
        archive.writestr("1/._00001.bin", b"of a file manager")

    zipped(root, others)
    assert load_nmnist(root) == whole


def test_the_largest_recordings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1/1.bin", bytes(RECORDING_BYTES))
    assert Zip(path, ".bin").read("1/1.bin") == bytes(RECORDING_BYTES)


# Memory ---------------------------------------------------------------------------------------------------------------


def measured(folder: Path, sender: Connection) -> None:
    """Load `folder` in this child process; send what came of it, and the MiB and CPU seconds that it took."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (2 << 30),) * 2)  # spares the machine if a bound fails
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is taken now
    start = resource.getrusage(resource.RUSAGE_SELF)
    try:
        if (folder / "Train.zip").exists():
            load_nmnist(folder)
        elif (folder / "train").exists():
            image_folder(folder, size=224, cache=folder / "cache")
        else:
            read_idx(folder / "images.gz")
        said = "accepted"
    except UserError:
        said = "refused"
    end = resource.getrusage(resource.RUSAGE_SELF)
    sender.send((said, (end.ru_maxrss - start.ru_maxrss) / 1024, end.ru_utime - start.ru_utime))


def test_memory_and_time_are_bounded(tmp_path: Path) -> None:
    expected = {}
    for k, kind in enumerate(("200 MB", "10 GB", "10 GB said to be 100 bytes", "zeros")):
        (folder := tmp_path / f"zip{k}").mkdir()
        zipped(folder, ARCHIVES[kind][0])
        (folder / "Test/1").mkdir(parents=True)
        (folder / "Test/1/00001.bin").write_bytes(GOOD)
        expected[folder.name] = "refused"
    (tmp_path / "idx").mkdir()
    packed = zlib.compressobj(1, zlib.DEFLATED, 31)
    head = packed.compress(b"\0\0\x08\3" + np.array([60_000, 28, 28], ">u4").tobytes()) + packed.flush(
        zlib.Z_FULL_FLUSH
    )
    (tmp_path / "idx/images.gz").write_bytes(head + deflated_zeros(10_240))
    expected["idx"] = "refused"
    pictures = {
        "thin": (Image.new("RGB", (1, 65_000)), "accepted"),
        "bomb": (Image.new("1", (9_000, 9_000)), "refused"),
    }
    for name, (picture, said) in pictures.items():
        for part in ("train", "test"):
            (folder := tmp_path / name / part / "a").mkdir(parents=True)
            for k in range(3):
                picture.save(folder / f"{k}.png")
        expected[name] = said
    processes, found = get_context("fork"), {}  # importing torch again would take most of the time
    for name in expected:
        receiver, sender = processes.Pipe(duplex=False)
        child = processes.Process(target=measured, args=(tmp_path / name, sender))
        child.start()
        sender.close()
        found[name] = receiver.recv() if receiver.poll(60) else ("no end", 0, 0)
        child.kill()
        child.join()
    assert {name: said for name, (said, _, _) in found.items()} == expected
    assert {name: mib for name, (_, mib, _) in found.items() if mib > 80} == {}, "MiB, of which an MNIST file has 45"
    assert {name: seconds for name, (_, _, seconds) in found.items() if seconds > 3} == {}
