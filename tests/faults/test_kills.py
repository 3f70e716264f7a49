"""SIGKILL at random moments of training, preparation, conversion and sweep: the same command ends as if unkilled."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from conftest import SMALL, start
from faults.conftest import TIMES
from snnexp.sweep.summary import children
from test_resume import assert_one_complete_run, digest, only_run

pytestmark = pytest.mark.faults
TRAINING = (*SMALL, "trainer.epochs=40", "trainer.batch_size=16", "trainer.checkpoint_every_s=0.2")
CONVERSION = (
    *("task=calibrate", "model=convnet", "neuron=relu", "dataset=digits", "loss=cross_entropy", "calibration=light"),
    *("conversion=adaptive_threshold", "timesteps=[4,8]", "trainer.epochs=3", "trainer.threads=1"),
    *("calibration.images=128", "task.layer_images=32"),
)
GRID = ("-m", *SMALL, "trainer.epochs=1", "surrogate=atan,sine", "seed=0,1")


@dataclass
class Kills:
    """Kills of one command. Each has folders of its own, which the straight run does not share."""

    environment: dict[str, str]
    folder: Path
    moments: random.Random
    command: tuple[str, ...]
    begun: str  # a pattern of files in `place`; the first says that the work to be killed has begun

    def place(self, name: str) -> Path:
        """The folder of one attempt, which holds its outputs, its cache and its sweep."""
        return self.folder / name

    def started(self, name: str) -> subprocess.Popen[str]:
        """Start the command and wait until its work has begun, or it has ended."""
        place = self.place(name)
        places = {"SNNEXP_OUTPUTS": f"{place}/outputs", "SNNEXP_CACHE": f"{place}/cache"}
        command = (*self.command, f"hydra.sweep.dir={place}/sweep")
        process = start(self.environment | places, *command, start_new_session=True)
        while process.poll() is None and not next(place.glob(self.begun), None):
            time.sleep(0.01)
        return process

    def finished(self, name: str) -> float:
        """Run the command to its end; return the seconds since its work had begun."""
        process = self.started(name)
        seen = time.monotonic()
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        return time.monotonic() - seen

    def counted(self, n: int, tried: Callable[..., None], what: str, same: Callable[[Path, Path], bool]) -> None:
        """Kill `n` live processes, each at a random moment of its work; count those whose repetition differs."""
        length, attempt, met = self.finished("straight"), 0, 0
        while met < n:
            attempt += 1
            assert attempt <= 5 * n, "the command ends before it is killed"
            process = self.started(f"killed-{attempt}")
            try:
                process.wait(timeout=self.moments.uniform(0.0, length))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if process.returncode != -signal.SIGKILL:
                continue
            met += 1
            bad = True
            try:
                self.finished(f"killed-{attempt}")
                bad = not same(self.place("straight"), self.place(f"killed-{attempt}"))
            finally:
                tried(what, 1, int(bad))


@pytest.fixture
def kills(environment: dict[str, str], tmp_path: Path, moments: random.Random) -> Callable[..., Kills]:
    return lambda begun, *command: Kills(environment, tmp_path, moments, command, begun)


def test_training(kills: Callable[..., Kills], tried: Callable[..., None]) -> None:
    def same(straight: Path, killed: Path) -> bool:
        assert_one_complete_run(killed / "outputs", straight / "outputs")
        return digest(only_run(straight / "outputs")) == digest(only_run(killed / "outputs"))

    what = "SIGKILL during training, then resumed: other bits or metrics"
    kills("outputs/runs/*/*/last.pt", *TRAINING, "resume=true").counted(4 * TIMES, tried, what, same)


def test_preparation(kills: Callable[..., Kills], tried: Callable[..., None]) -> None:
    def same(straight: Path, killed: Path) -> bool:
        frames = [
            {path.relative_to(place): np.load(path).tobytes() for path in sorted(place.glob("cache/**/*.npy"))}
            for place in (straight, killed)
        ]
        assert frames[0]
        return [*frames[0].values()] == [*frames[1].values()]

    what = "SIGKILL during preparation, then again: other data"
    command = (*SMALL, "trainer.epochs=1", "tracking=none")
    kills("cache/*", *command).counted(3 * TIMES, tried, what, same)


def test_conversion(kills: Callable[..., Kills], tried: Callable[..., None]) -> None:
    def same(straight: Path, killed: Path) -> bool:
        assert_one_complete_run(killed / "outputs", straight / "outputs")
        results = [
            json.loads((only_run(place / "outputs") / "result.json").read_text()) for place in (straight, killed)
        ]
        return bool(results[0] == results[1])

    what = "SIGKILL during calibration, then resumed: other results"
    kills("outputs/runs/*/*/run.json", *CONVERSION, "resume=true").counted(3 * TIMES, tried, what, same)


def test_sweep(kills: Callable[..., Kills], tried: Callable[..., None]) -> None:
    def results(place: Path) -> dict[str, dict[str, float]]:
        found = {child.name: dict(child.metrics) for child in children(place / "sweep")}
        return {name: {key: v for key, v in metrics.items() if key != "seconds"} for name, metrics in found.items()}

    def same(straight: Path, killed: Path) -> bool:
        assert len(results(straight)) == 4
        return results(straight) == results(killed)

    what = "SIGKILL during a grid, then resumed: other results"
    kills("sweep/.jobs/*.json", *GRID, "tracking=none", "resume=true").counted(3 * TIMES, tried, what, same)
