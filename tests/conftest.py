"""Shared helpers: run the real command line, in this process or in a child, with outputs in a temporary folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from forked import Forked
from snnexp.lock import locked
from snnexp.signals import SIGNALS
from snnexp.tracking.writer import create_store

for number in (signal.SIGINT, signal.SIGHUP):  # ignored in a script's background job, and then by all children
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in as many processes as there are cores
ROOT = Path(__file__).resolve().parents[1]
# Small, but the real thing: every stage of the main job, in seconds.
SMALL = ("trainer.epochs=2", "model.hidden=32", "timesteps=4", "trainer.threads=1")


def pytest_configure(config: pytest.Config) -> None:
    """Write compiled modules to pytest's cache where the environment forbids writing them beside their sources.

    Otherwise every child would compile torch and mlflow again, which takes it ten seconds.
    """
    if sys.dont_write_bytecode and hasattr(config, "cache"):
        folder = str(config.cache.mkdir("bytecode"))
        sys.dont_write_bytecode, sys.pycache_prefix = False, folder
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all tests (and, with pytest-xdist, for all workers)."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def cache(shared: Path) -> Path:
    """One cache of prepared data for all tests."""
    return shared / "cache"


@pytest.fixture(scope="session")
def empty_database(shared: Path) -> Path:
    """A store without runs: making one takes MLflow seconds, so most tests begin with a copy."""
    path = shared / "empty" / "mlflow.db"
    path.parent.mkdir(exist_ok=True)
    with locked(shared / "empty" / "lock"):
        if not path.exists():
            create_store(path)
    return path


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


def places(folder: Path, cache: Path) -> dict[str, str]:
    """The environment variables that keep a run in `folder`."""
    return {
        "SNNEXP_OUTPUTS": str(folder / "outputs"),
        "SNNEXP_CACHE": str(cache),
        "SNNEXP_DATA": str(folder / "no-data"),
        "COLUMNS": "200",
    }


@pytest.fixture
def environment(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in places(tmp_path, cache).items():
        monkeypatch.setenv(name, value)
    return dict(os.environ)


@pytest.fixture
def store(tmp_path: Path, empty_database: Path) -> Path:
    """An empty MLflow store in the folder of outputs, for runs that are tracked."""
    (tmp_path / "outputs").mkdir()
    return Path(shutil.copy(empty_database, tmp_path / "outputs"))


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


@pytest.fixture
def forked(environment: dict[str, str], tmp_path: Path) -> Callable[..., Forked]:
    """The command line in a child, with further environment variables: `forked("neuron=lif", SNNEXP_OUTPUTS=...)`."""
    from snnexp.run import main

    def start(*arguments: str, **variables: str) -> Forked:
        return Forked(main, "snnexp", *arguments, folder=tmp_path, environment=environment | variables)

    return start


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: Path, empty_database: Path) -> Callable[..., Done]:
    """Run the command line once, tracked and in a folder of its own, for tests that share what it leaves.

    A module makes a fixture of it: the tests that share a run must only read it.
    """
    from snnexp.run import main

    def run(*arguments: str) -> Done:
        folder = tmp_path_factory.mktemp("finished")
        (folder / "outputs").mkdir()
        shutil.copy(empty_database, folder / "outputs")
        environment = os.environ | places(folder, cache)
        child = Forked(main, "snnexp", *arguments, folder=folder, environment=environment)
        out, err = child.communicate()
        assert child.returncode == 0, err
        return Done(0, out, err, folder / "outputs")

    return run


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Iterator[None]:
    yield
    Forked.clear()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(environment: dict[str, str], *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The command line in an interpreter of its own, which takes seconds to import torch; `forked` takes none."""
    command = [sys.executable, "-m", "snnexp.run", *arguments]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


@pytest.fixture
def ui(environment: dict[str, str]) -> Iterator[Callable[..., str]]:
    """Start `snnexp task=ui` over an outputs folder; returns the address that it prints once it answers."""
    started = []

    def serve(outputs: Path, *more: str) -> str:
        arguments = ("task=ui", f"task.port={free_port()}", f"outputs_dir={outputs}", *more)
        started.append(start(environment, *arguments, start_new_session=True))
        line = started[-1].stdout.readline()
        assert line.startswith("MLflow UI: http://127.0.0.1:"), line
        return str(line.split()[2])

    yield serve
    for process in started:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate()
