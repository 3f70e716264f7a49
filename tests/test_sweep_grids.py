"""Grids with real jobs: in parallel, in folders of their own, and with the keys that they read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Done
from forked import Forked
from test_sweeps import TINY

DIGITS = (*TINY, "tracking=none")


def test_jobs_of_a_grid_run_at_once(forked: Callable[..., Forked], tmp_path: Path) -> None:
    """The parent's locks do not go to joblib's workers."""
    child = forked("-m", *DIGITS, "seed=0,1", "hydra.sweeper.parallel=2")
    out, err = child.communicate()
    assert child.returncode == 0, err
    assert "best: seed=" in out
    results = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/multirun/*/*/*/result.json")]
    assert len(results) == 2


def test_jobs_that_share_a_folder_are_refused(snnexp: Callable[..., Done]) -> None:
    done = snnexp("-m", *DIGITS, "seed=0,1", "hydra.sweep.subdir=same")
    assert done.code == 1
    assert "holds the run of another configuration (seed was 0, is now 1; " in done.err
    assert "hydra.sweep.subdir must differ for each job" in done.err


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("hydra.sweeper.target=0.5", "hydra.sweeper.target: only a study reads this (hydra.sweeper.n_trials=N)"),
        ("hydra.sweeper.retries=3", "hydra.sweeper.retries: only a study reads this"),
        ("hydra.sweeper.parallel=0", "hydra.sweeper.parallel=0 is not allowed: it must be an integer >= 1"),
    ],
)
def test_keys_that_a_grid_does_not_read_are_refused(snnexp: Callable[..., Done], setting: str, told: str) -> None:
    done = snnexp("-m", *DIGITS, "seed=0,1", setting)
    assert (done.code, told in done.err, "Traceback" in done.err) == (1, True, False), done.err
    assert not list(done.outputs.glob("multirun/*/*/0/result.json"))
