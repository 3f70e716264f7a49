"""SIGKILL at random moments of training, preparation, conversion and sweep: the same command ends as if unkilled."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import SMALL, start
from faults.conftest import TIMES
from test_resume import assert_one_complete_run, digest, only_run

pytestmark = pytest.mark.faults
TRAINING = (*SMALL, "trainer.epochs=60", "trainer.batch_size=16", "trainer.checkpoint_every_s=0.2")
CONVERSION = (
    *("task=calibrate", "model=convnet", "neuron=relu", "dataset=digits", "loss=cross_entropy", "calibration=light"),
    *("conversion=adaptive_threshold", "timesteps=[4,8]", "trainer.epochs=3", "trainer.threads=1"),
    *("calibration.images=128", "task.layer_images=32"),
)
GRID = ("-m", *SMALL, "trainer.epochs=1", "surrogate=atan,sine", "seed=0,1")


def finished(environment: dict[str, str], *arguments: str) -> float:
    """Run the command to its end; return the seconds it took."""
    begun = time.monotonic()
    process = start(environment, *arguments)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return time.monotonic() - begun


def killed(environment: dict[str, str], moments: random.Random, length: float, n: int, *arguments: str) -> int:
    """Run the command `n` times and kill it within `length` seconds; return how many kills met a live process."""
    met = 0
    for _ in range(n):
        process = start(environment, *arguments, start_new_session=True)
        try:
            process.wait(timeout=moments.uniform(0.0, length))
        except subprocess.TimeoutExpired:
            met += 1
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return met


def both(environment: dict[str, str], tmp_path: Path, *, cache: bool = False) -> tuple[dict[str, str], dict[str, str]]:
    """Two environments that differ in where outputs go, and the cache if asked."""
    made = []
    for name in ("straight", "killed"):
        places = {"SNNEXP_OUTPUTS": str(tmp_path / name)}
        made.append(environment | places | ({"SNNEXP_CACHE": str(tmp_path / f"{name}-cache")} if cache else {}))
    return made[0], made[1]


def test_training(
    environment: dict[str, str], tmp_path: Path, moments: random.Random, tried: Callable[..., None]
) -> None:
    straight, other = both(environment, tmp_path)
    length = finished(straight, *TRAINING)
    met = killed(other, moments, length, 6 * TIMES, *TRAINING, "resume=true")
    finished(other, *TRAINING, "resume=true")
    same = digest(only_run(tmp_path / "straight")) == digest(only_run(tmp_path / "killed"))
    tried("SIGKILL during training, then resumed: other bits", met, met * (not same))
    assert_one_complete_run(tmp_path / "killed", tmp_path / "straight")


def test_preparation(
    environment: dict[str, str], tmp_path: Path, moments: random.Random, tried: Callable[..., None]
) -> None:
    straight, other = both(environment, tmp_path, cache=True)
    command = (*SMALL, "trainer.epochs=1", "tracking=none")
    length = finished(straight, *command)
    met = killed(other, moments, length, 4 * TIMES, *command)
    finished(other, *command)
    frames = [
        {path.relative_to(cache): np.load(path).tobytes() for path in sorted(cache.rglob("*.npy"))}
        for cache in (tmp_path / "straight-cache", tmp_path / "killed-cache")
    ]
    assert frames[0]
    tried("SIGKILL during preparation, then again: other data", met, met * (frames[0] != frames[1]))


def test_conversion(
    environment: dict[str, str], tmp_path: Path, moments: random.Random, tried: Callable[..., None]
) -> None:
    straight, other = both(environment, tmp_path, cache=True)
    length = finished(straight, *CONVERSION)
    met = killed(other, moments, length, 4 * TIMES, *CONVERSION, "resume=true")
    finished(other, *CONVERSION, "resume=true")
    results = [json.loads((only_run(tmp_path / n) / "result.json").read_text()) for n in ("straight", "killed")]
    tried("SIGKILL during calibration, then resumed: other results", met, met * (results[0] != results[1]))
    assert_one_complete_run(tmp_path / "killed", tmp_path / "straight")


def test_sweep(environment: dict[str, str], tmp_path: Path, moments: random.Random, tried: Callable[..., None]) -> None:
    straight, other = both(environment, tmp_path)
    length = finished(straight, *GRID, f"hydra.sweep.dir={tmp_path / 'a'}", "tracking=none")
    again = (*GRID, f"hydra.sweep.dir={tmp_path / 'b'}", "tracking=none", "resume=true")
    met = killed(other, moments, length, 3 * TIMES, *again)
    finished(other, *again)
    found = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        runs = {}
        for path in folder.glob("*/job.json"):
            job = json.loads(path.read_text())
            runs[job["name"]] = json.loads((path.parent / job["folder"] / "result.json").read_text())
        found.append({name: {k: v for k, v in run.items() if k != "seconds"} for name, run in runs.items()})
    assert len(found[0]) == 4
    tried("SIGKILL during a grid, then resumed: other results", met, met * (found[0] != found[1]))
