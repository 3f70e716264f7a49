"""A run killed at any moment and started again ends as one that was not; nothing good is ever overwritten by half."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from conftest import SMALL, Done, start
from forked import Forked
from snnexp.errors import UserError
from snnexp.training import Fit, load_checkpoint, save
from waiting import until

TINY = (*SMALL, "model.hidden=8", "timesteps=2", "tracking=none")


def digest(folder: Path) -> str:
    """Of the last weights, the optimiser's state and the history: bit for bit."""
    state, h = load_checkpoint(folder / "last.pt"), hashlib.sha256()
    for key, value in state["model"].items():
        h.update(key.encode() + value.numpy().tobytes())
    for moments in state["optimizer"]["state"].values():
        for key, value in moments.items():
            h.update(key.encode() + torch.as_tensor(value).numpy().tobytes())
    h.update(repr((state["epoch"], state["history"], state["best_epoch"])).encode())
    return h.hexdigest()


def until_trained(process: Forked | subprocess.Popen[str], outputs: Path) -> Path:
    """Wait for the end of the first epoch; return the checkpoint."""

    def written() -> list[Path]:
        assert process.poll() is None, process.communicate()
        return list(outputs.glob("runs/*/*/last.pt"))

    return until(written, "the first checkpoint")[0]


def only_run(outputs: Path) -> Path:
    (folder,) = [p.parent for p in outputs.glob("runs/*/*/run.json")]
    return folder


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    """Two kills while the process starts, seven while it trains, one while it finishes, each at a random moment."""
    epochs = 120
    arguments = (*SMALL, f"trainer.epochs={epochs}", "trainer.batch_size=16", "trainer.checkpoint_every_s=0.2")
    moments = random.Random(1)

    def newest(outputs: Path) -> tuple[float, int]:
        """When the last checkpoint was written, and its epoch."""
        for path in outputs.glob("runs/*/*/last.pt"):
            return path.stat().st_mtime, load_checkpoint(path)["epoch"]
        return 0.0, 0

    straight, killed = tmp_path / "straight", tmp_path / "killed"
    process = start(environment | {"SNNEXP_OUTPUTS": str(straight)}, *arguments)
    begun = time.monotonic()
    until_trained(process, straight)
    startup = time.monotonic() - begun
    _, err = process.communicate()
    assert process.returncode == 0, err

    for kill in range(10):
        process = start(environment | {"SNNEXP_OUTPUTS": str(killed)}, *arguments, "resume=true")
        before = newest(killed)[0]

        def reached(process: subprocess.Popen[str] = process, kill: int = kill, before: float = before) -> bool:
            written, epoch = newest(killed)
            return process.poll() is not None or (epoch == epochs if kill == 9 else written > before)

        if kill not in (0, 4):
            until(reached, f"the moment of kill {kill}", progress=lambda: newest(killed))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0, startup if kill in (0, 4) else 0.8))
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"kill {kill} came too late: {err}"
    process = start(environment | {"SNNEXP_OUTPUTS": str(killed)}, *arguments, "resume=true")
    _, err = process.communicate()
    assert process.returncode == 0, err

    ours, reference = only_run(killed), only_run(straight)
    assert digest(ours) == digest(reference)
    weights = [load_checkpoint(folder / "best.pt")["model"]["network.linear1.weight"] for folder in (ours, reference)]
    assert torch.equal(*weights)
    assert_one_complete_run(killed, straight)


def assert_one_complete_run(outputs: Path, reference: Path) -> None:
    """One MLflow run, with the same metrics as the reference's, each (metric, step) once."""
    stores = []
    for folder in (outputs, reference):
        client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
        assert run.info.status == "FINISHED"
        logged = [
            (key, m.step, m.value) for key in run.data.metrics for m in client.get_metric_history(run.info.run_id, key)
        ]
        assert max(Counter((key, step) for key, step, _ in logged).values()) == 1
        artifacts = {a.path for a in client.list_artifacts(run.info.run_id, "figures")}
        stores.append((sorted(logged), run.data.params.keys(), artifacts))
    assert stores[0] == stores[1]


def test_killed_in_mid_epoch_then_resumed_ends_with_the_same_bits(
    snnexp: Callable[..., Done], forked: Callable[..., Forked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quick version of the test above: two kills, each in the middle of an epoch, of which there are 18 steps."""
    arguments = (*TINY, "trainer.epochs=3", "trainer.checkpoint_every_s=0.001", "dataset.validation=0.2")
    straight = snnexp(*arguments)
    assert straight.code == 0, straight.err
    step, count = Fit._step, 0

    def killed_at_25(self: Fit, *batch: torch.Tensor) -> None:
        nonlocal count
        count += 1
        if count == 25:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, *batch)

    killed = str(tmp_path / "killed")
    for epoch in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(Fit, "_step", killed_at_25)
            process = forked(*arguments, "resume=true", SNNEXP_OUTPUTS=killed)
        assert process.wait() == -signal.SIGKILL
        state = load_checkpoint(only_run(Path(killed)) / "last.pt")
        assert state["epoch"] == epoch
        assert state["step"] > 0
    _, err = (process := forked(*arguments, "resume=true", SNNEXP_OUTPUTS=killed)).communicate()
    assert process.returncode == 0, err
    assert digest(only_run(Path(killed))) == digest(straight.runs()[0])


@pytest.mark.usefixtures("store")
def test_ctrl_c_closes_the_run_as_killed_and_says_how_to_go_on(environment: dict[str, str]) -> None:
    """In an interpreter of its own, as a user starts it."""
    arguments = (*SMALL, "trainer.epochs=200")
    process = start(environment, *arguments)
    outputs = Path(environment["SNNEXP_OUTPUTS"])
    until_trained(process, outputs)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert f"snnexp {' '.join(arguments)} resume=true" in err
    folder = only_run(outputs)
    client = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == "KILLED"
    done = load_checkpoint(folder / "last.pt")["epoch"]
    assert 1 <= done < 200
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == done


def test_resume_of_a_named_folder_checks_the_configuration(snnexp: Callable[..., Done]) -> None:
    done = snnexp(*TINY)
    (folder,) = done.runs()
    other = snnexp(*TINY, "neuron.threshold=2", f"resume={folder}")
    assert other.code == 1
    assert "neuron.threshold was 1.0, is now 2" in other.err
    same = snnexp(*TINY, f"resume={folder}")
    assert same.code == 0
    assert "already finished" in same.out
    assert same.runs() == [folder]


def test_resume_leaves_a_live_run_alone(snnexp: Callable[..., Done], forked: Callable[..., Forked]) -> None:
    arguments = (*TINY, "trainer.epochs=100000")
    process = forked(*arguments)
    folder = until_trained(process, Path(os.environ["SNNEXP_OUTPUTS"])).parent
    done = snnexp(*arguments, f"resume={folder}")
    assert done.code == 1
    assert "still active" in done.err
    assert process.poll() is None


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    """A file size limit of the kernel's makes the second, larger write fail in the middle."""
    folder = tmp_path / "run"
    folder.mkdir()

    def program() -> None:
        path = folder / "last.pt"
        save(path, {"epoch": 1, "model": torch.arange(10)})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        try:
            save(path, {"epoch": 2, "model": torch.zeros(1_000_000)})
        except UserError as error:
            print(error)
        print(load_checkpoint(path)["epoch"], sorted(p.name for p in folder.iterdir()))

    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    out, err = Forked(program, folder=tmp_path).communicate()
    said, state = out.splitlines()
    assert said == f"cannot write the checkpoint {folder}/last.pt: File too large; the last good checkpoint is intact"
    assert state == "1 ['last.pt']"
    assert err == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_fills_up_during_a_run(forked: Callable[..., Forked], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        # best.pt is 1.2 MB, last.pt (with Adam's moments) 3.5 MB: the first epoch cannot be kept whole
        arguments = (*SMALL, "tracking=none", "model.hidden=128")
        process = forked(*arguments, SNNEXP_OUTPUTS=str(disk))
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "cannot write the checkpoint" in err
        assert "No space left on device" in err
        assert "Traceback" not in err
        assert load_checkpoint(only_run(disk) / "best.pt")["epoch"] == 0, "what was written before is whole"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_stays_full_is_told_once(
    forked: Callable[..., Forked], tmp_path: Path, empty_database: Path
) -> None:
    """With tracking, and another program that takes all room: every write fails, the first is told, nothing is lost."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (disk / "outputs").mkdir()
        shutil.copy(empty_database, disk / "outputs")
        process = forked(*SMALL, "trainer.epochs=200", SNNEXP_OUTPUTS=str(disk / "outputs"))
        until_trained(process, disk / "outputs")
        with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "No space left on device" in err
        assert "Traceback" not in err
        assert load_checkpoint(only_run(disk / "outputs") / "last.pt")["epoch"] >= 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_unwritable_output_folder_is_a_clear_error(snnexp: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = snnexp(*TINY, f"outputs_dir={tmp_path / 'file'}")
    assert done.code == 1
    assert "outputs_dir" in done.err
    assert "Traceback" not in done.err
