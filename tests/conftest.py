"""Shared helpers: run the real command line, in this process or in a child, with outputs in a temporary folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in as many processes as there are cores
ROOT = Path(__file__).resolve().parents[1]
# Small, but the real thing: every stage of the main job, in seconds.
SMALL = ("trainer.epochs=2", "model.hidden=32", "timesteps=4", "trainer.threads=1")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of prepared data for all tests (and, with pytest-xdist, for all workers)."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "cache"


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
        try:
            main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return Done(int(code or 0), out, err, tmp_path / "outputs")

    yield call
    GlobalHydra.instance().clear()


def start(environment: dict[str, str], *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "snnexp.run", *arguments]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )
