"""Shared helpers: run the real command line, in this process or in a child, with outputs in a temporary folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from hydra.core.global_hydra import GlobalHydra

from snnexp.signals import SIGNALS
from snnexp.tracking.writer import create_store

for number in (signal.SIGINT, signal.SIGHUP):  # ignored in a script's background job, and then by all children
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in as many processes as there are cores
ROOT = Path(__file__).resolve().parents[1]
# Small, but the real thing: every stage of the main job, in seconds.
SMALL = ("trainer.epochs=2", "model.hidden=32", "timesteps=4", "trainer.threads=1")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of prepared data for all tests (and, with pytest-xdist, for all workers)."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "cache"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without runs: making one takes MLflow seconds, so most tests begin with a copy."""
    outputs = tmp_path_factory.mktemp("empty")
    create_store(outputs / "mlflow.db")
    return outputs / "mlflow.db"


@dataclass
class Done:
    """What a finished command left: its exit status, its terminal output, and its output folder."""

    code: int
    out: str
    err: str
    outputs: Path

    def runs(self) -> list[Path]:
        return sorted(p.parent for p in self.outputs.glob("runs/*/*/run.json"))

    def result(self) -> dict[str, float]:
        (run,) = self.runs()
        return dict(json.loads((run / "result.json").read_text()))


@pytest.fixture
def environment(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("SNNEXP_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("SNNEXP_CACHE", str(cache))
    monkeypatch.setenv("SNNEXP_DATA", str(tmp_path / "no-data"))
    monkeypatch.setenv("COLUMNS", "200")
    return dict(os.environ)


@pytest.fixture
def snnexp(
    environment: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Done]]:
    """The command line in this process: `snnexp("neuron=lif", ...)`; quick, since torch is imported once."""
    from snnexp.run import main

    def call(*arguments: str) -> Done:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["snnexp", *arguments])
        capfd.readouterr()
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code
        finally:
            for number, handler in handlers.items():  # a command that was interrupted ignores further signals
                signal.signal(number, handler)
        if isinstance(code, str):  # the interpreter prints it
            print(code, file=sys.stderr)
            code = 1
        out, err = capfd.readouterr()
        return Done(int(code or 0), out, err, tmp_path / "outputs")

    yield call
    GlobalHydra.instance().clear()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(environment: dict[str, str], *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "snnexp.run", *arguments]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


@pytest.fixture
def ui(environment: dict[str, str]) -> Iterator[Callable[[Path], int]]:
    """Start `snnexp task=ui` over an outputs folder; returns its port once it answers."""
    started = []

    def serve(outputs: Path) -> int:
        port = free_port()
        arguments = ("task=ui", f"task.port={port}", f"outputs_dir={outputs}")
        started.append(start(environment, *arguments, start_new_session=True))
        for _ in range(240):
            with suppress(OSError):
                assert urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
                return port
            time.sleep(0.5)
        pytest.fail("the UI did not answer within two minutes")

    yield serve
    for process in started:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate()
