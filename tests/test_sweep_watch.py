"""The progress of a grid, and the records of jobs that it is read from."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import SMALL, Done
from hydra_plugins.snnexp_optuna import _report  # after conftest, in which Hydra finds its plugins
from snnexp.sweep.watch import Watch
from snnexp.trial.place import tell, told_all

TINY = (*SMALL, "trainer.epochs=1", "model.hidden=8", "timesteps=2", "tracking=none")


def job(sweep: Path, number: int, value: float | None, begun: float, seconds: float, **more: object) -> None:
    folder = sweep / str(number)
    folder.mkdir()
    x, seed = divmod(number, 2)
    tell(sweep, number, folder, overrides=[f"x={x}", f"seed={seed}"], varied=["x", "seed"], begun=begun, **more)
    name, varied = f"x={x} seed={seed}", {"x": str(x), "seed": str(seed)}
    (folder / "job.json").write_text(json.dumps({"folder": ".", "name": name, "varied": varied, "overrides": []}))
    if value is not None:
        (folder / "result.json").write_text(json.dumps({"val/accuracy": value}))
        os.utime(folder / "result.json", (begun + seconds, begun + seconds))


def test_the_progress_of_a_grid_is_read_from_its_jobs(tmp_path: Path) -> None:
    watch, now = Watch(tmp_path, 9, "val/accuracy", lower=False), time.time()
    watch.look()
    assert watch.progress.line == "0 of 9 jobs"
    for number, value in enumerate((0.5, 0.9, 0.6, 0.7)):
        job(tmp_path, number, value, now - 900, 600)
    job(tmp_path, 4, None, now - 300, 0)
    job(tmp_path, 5, None, now - 300, 0, reason="killed")
    job(tmp_path, 6, 0.1, now, -5)  # finished by an earlier start
    watch.look()
    # half of a job of 10 minutes, and two more
    best = "best 0.7: x=0 seed=1, mean of 2 seeds"
    assert watch.progress.line == f"6 of 9 jobs (1 running, 1 failed); {best}; about 25 min 0 s left"


def test_a_grid_says_how_far_it_is_after_its_jobs(snnexp: Callable[..., Done]) -> None:
    done = snnexp("-m", *TINY, "surrogate.alpha=2.0,-1.0")
    assert done.code == 1
    assert "  2 of 2 jobs (1 failed); best 0." in done.err
    assert done.err.count("2 of 2 jobs") == 1


def test_each_seed_of_a_trial_is_found_and_compared(
    snnexp: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_report, "_figures", lambda study, names, folder: None)
    grid = "hydra.sweeper.sampler={_target_:optuna.samplers.GridSampler,seed:0}"
    trials = ("surrogate.alpha=choice(1.0,2.0)", "hydra.sweeper.n_trials=2", "hydra.sweeper.seeds=2", grid)
    done = snnexp("-m", *TINY, *trials)
    assert done.code == 0, done.err
    (folder,) = done.outputs.glob("multirun/*/*")
    found = {str(job.relative_to(folder)): known["number"] for job, known in told_all(folder)}
    assert found == {f"{trial}/seed={seed}": trial for trial in (0, 1) for seed in (0, 1)}
    compared = snnexp(*TINY, "task=compare_surrogates", f"task.sweep={folder}")
    assert compared.code == 0, compared.err
    assert (compared.result()["settings"], compared.result()["runs"]) == (2.0, 4.0)
