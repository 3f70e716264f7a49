"""Signals at any moment: the run is closed as killed, no server or rank is left behind, and no traceback is shown."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from lightning_fabric import Fabric
from mlflow import MlflowClient
from torch.multiprocessing.spawn import ProcessExitedException

from conftest import SMALL, Done, free_port, start
from snnexp import signals
from snnexp.errors import UserError
from snnexp.signals import collected, held, interrupting
from snnexp.task import ui
from snnexp.training import Trainer, launched

CONVERT = ("task=convert", "model=mlp", "model.hidden=[8]", "neuron=relu", "dataset=digits", "loss=cross_entropy")
TRAINER = Trainer(1, 8, 8, "val/loss", None, None, "cpu", 2, "32-true", None, 60.0, False, False, False)


@pytest.fixture(autouse=True)
def _later(monkeypatch: pytest.MonkeyPatch) -> None:
    """No signal of an earlier test counts as the same request."""
    monkeypatch.setattr(signals, "_last", -1e9)


def interrupted(monkeypatch: pytest.MonkeyPatch, place: str, number: int, times: int = 1) -> None:
    """Send this process a signal when the function at `place` is called for the first time."""
    module, name = place.rsplit(".", 1)
    monkeypatch.setattr(place, _Sender(getattr(import_module(module), name), number, times))


class _Sender:
    def __init__(self, function: Callable[..., Any], number: int, times: int) -> None:
        self.function, self.number, self.times, self.sent = function, number, times, False

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        if not self.sent:
            self.sent = True
            for _ in range(self.times):
                signal.raise_signal(self.number)
        return self.function(*arguments, **keywords)


def status(done: Done) -> str:
    (run,) = done.runs()
    return str(json.loads((run / "run.json").read_text())["status"])


@pytest.mark.parametrize(
    ("place", "number", "arguments"),
    [
        ("snnexp.task.train.evaluate", signal.SIGTERM, ("tracking=none",)),
        ("snnexp.task.converting.walk", signal.SIGHUP, (*CONVERT, "tracking=none")),
    ],
    ids=["evaluation", "walk"],
)
def test_a_signal_outside_of_training_closes_the_run(
    snnexp: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, place: str, number: int, arguments: tuple[str, ...]
) -> None:
    if "walk" in place:  # the first walk only tries whether the network can be converted
        monkeypatch.setattr("snnexp.task.converting.Conversion._check_network", _images_only)
    interrupted(monkeypatch, place, number)
    done = snnexp(*([a for a in SMALL if "hidden" not in a] if CONVERT[0] in arguments else SMALL), *arguments)
    assert done.code == 130
    assert status(done) == "KILLED"
    assert "interrupted; go on with: snnexp" in done.err
    assert "Traceback" not in done.err


def _images_only(conversion: Any) -> None:
    conversion.images = conversion.calibration.sample(conversion.source.data.train)


def test_a_signal_during_preparation_leaves_no_run(
    snnexp: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    interrupted(monkeypatch, "snnexp.dataset.saccade.progress", signal.SIGTERM)  # the folder is made, but not complete
    done = snnexp(*SMALL, f"cache_dir={tmp_path / 'cache'}")
    assert (done.code, done.runs()) == (130, [])
    assert "Traceback" not in done.err
    assert {path.suffix for path in (tmp_path / "cache" / "digits_saccade").iterdir()} == {".lock"}


def test_further_signals_do_not_keep_the_run_open(
    snnexp: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, empty_database: Path, tmp_path: Path
) -> None:
    from snnexp.training import Fit

    (tmp_path / "outputs").mkdir()
    shutil.copy(empty_database, tmp_path / "outputs" / "mlflow.db")
    monkeypatch.setattr(signals, "SAME", 0.0)  # so that the second signal acts within the step
    monkeypatch.setattr(Fit, "_step", _Sender(Fit._step, signal.SIGINT, 2))
    sender = _Sender(MlflowClient.set_terminated, signal.SIGINT, 3)  # while the run is closed
    monkeypatch.setattr(MlflowClient, "set_terminated", lambda *given: sender(*given))
    done = snnexp(*SMALL)
    assert done.code == 130
    assert status(done) == "KILLED"
    assert "Traceback" not in done.err
    assert done.err.count("closing the run, please wait") == 1
    client = MlflowClient(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert (run.info.status, run.data.tags["status"]) == ("KILLED", "killed")


def test_two_signals_within_a_second_are_one_request() -> None:
    with interrupting(), collected() as seen:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # a terminal's Ctrl-C, and the parent that passes it on
    assert seen == [signal.SIGINT, signal.SIGTERM]


def test_a_later_signal_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SAME", 0.0)
    with collected():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_held_signals_come_afterwards_but_replace_no_error() -> None:
    done = []

    def closing(error: Exception | None = None) -> None:
        try:
            if error:
                raise error
        finally:
            with held():
                signal.raise_signal(signal.SIGTERM)
                done.append("closed")

    with pytest.raises(KeyboardInterrupt):
        closing()
    with pytest.raises(UserError, match="the error"):
        closing(UserError("the error"))
    assert done == ["closed", "closed"]


def test_what_the_parent_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with interrupting(), collected() as seen:
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert seen == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_of_a_launcher_stay() -> None:
    caught: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    try:
        with interrupting():
            signal.raise_signal(signal.SIGTERM)
        assert caught == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


SERVER = """
import pathlib, subprocess, sys, time
worker = "import socket, pathlib, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); \
pathlib.Path(sys.argv[2]).touch(); time.sleep(600)"
subprocess.run([sys.executable, "-c", worker, *sys.argv[1:]])
"""


def test_the_ui_takes_its_server_and_workers_along(tmp_path: Path) -> None:
    port, ready = free_port(), tmp_path / "ready"

    def end() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()
    server = [sys.executable, "-c", SERVER, str(port), str(ready)]
    with pytest.raises(KeyboardInterrupt), interrupting(), ui._server(server, dict(os.environ)):
        pass
    with pytest.raises(OSError):  # noqa: PT011  nothing listens: refused
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_server_that_fails_is_a_sentence() -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit(3)"]
    with pytest.raises(UserError, match="the MLflow server ended with status 3"), ui._server(failing, dict(os.environ)):
        pass


@pytest.mark.parametrize(("code", "name", "cause"), [(-9, "SIGKILL", "killed by SIGKILL"), (7, None, "exit status 7")])
def test_a_dead_rank_is_a_sentence_that_names_it(
    monkeypatch: pytest.MonkeyPatch, code: int, name: str | None, cause: str
) -> None:
    def launch(*given: Any) -> None:
        raise ProcessExitedException("a rank", 1, 4711, code, name)

    monkeypatch.setattr(Fabric, "launch", launch)
    with pytest.raises(UserError, match=rf"rank 1 of the 2 ranks died \({cause}\), so the others were stopped"):
        launched(TRAINER, lambda fabric: None)


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_with_a_sentence(environment: dict[str, str]) -> None:
    arguments = ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.epochs=500", "tracking=none")
    process = start(environment, *SMALL, *arguments)
    outputs = Path(environment["SNNEXP_OUTPUTS"])
    while process.poll() is None and not list(outputs.glob("runs/*/*/last.pt")):
        time.sleep(0.05)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True)
    os.kill(int(ranks.stdout.split()[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "rank 1 of the 2 ranks died (killed by SIGKILL)" in err
    assert "Traceback" not in err
    (run,) = outputs.glob("runs/*/*/run.json")
    assert json.loads(run.read_text())["status"] == "FAILED"


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.5, 4.0, 8.0])
def test_five_times_ctrl_c(environment: dict[str, str], after: float) -> None:
    process = start(environment, *SMALL, "trainer.epochs=300")
    outputs = Path(environment["SNNEXP_OUTPUTS"])
    while process.poll() is None and not list(outputs.glob("runs/*/*/last.pt")):
        time.sleep(0.05)
    time.sleep(after / 4)
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1 * after)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    (run,) = outputs.glob("runs/*/*/run.json")
    assert json.loads(run.read_text())["status"] == "KILLED"
    client = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    (kept,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert kept.info.status == "KILLED"


@pytest.mark.slow
def test_sigterm_ends_the_ui_and_its_mlflow(ui: Callable[[Path], int], snnexp: Callable[..., Done]) -> None:
    done = snnexp(*SMALL)
    port = free_port()
    process = start(dict(os.environ), "task=ui", f"task.port={port}", f"outputs_dir={done.outputs}")

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    while not answers():
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not answers()
