"""Each job of a sweep on one machine has a GPU of its own, told by its environment."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from hydra_plugins.snnexp_optuna._devices import gpus_of
from snnexp.errors import UserError
from test_sweeps import INTERVAL, app


def used(folder: Path) -> Counter[str]:
    """Return how many jobs saw each GPU."""
    return Counter(path.name.split("-")[1] for path in (folder / "outputs").glob("gpu-*"))


def test_jobs_that_run_at_once_have_different_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,9")
    parallel = ("hydra.sweeper.parallel=2", "hydra.sweeper.gpus=2", "meet=2")  # each waits until two have begun
    app(tmp_path, INTERVAL, *parallel, "hydra.sweeper.n_trials=2")
    assert used(tmp_path) == {"4": 1, "7": 1}


def test_jobs_in_a_row_have_the_first_gpu(tmp_path: Path) -> None:
    app(tmp_path, "x=1,2", "hydra.sweeper.gpus=[3,5]", "hydra.sweeper.isolate=true")
    assert used(tmp_path) == {"3": 2}


@pytest.mark.parametrize("given", [0, -1, True, "two", [], [1, 1], 1.5])
def test_other_values_are_refused(given: object) -> None:
    with pytest.raises(UserError, match=r"hydra.sweeper.gpus=.* is not allowed: it must be an integer >= 1"):
        gpus_of(given)


def test_more_gpus_than_visible_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(UserError, match=r"hydra.sweeper.gpus=2 is not allowed: CUDA_VISIBLE_DEVICES=1 names only 1"):
        gpus_of(2)


def test_jobs_that_share_a_process_cannot_have_different_gpus(tmp_path: Path) -> None:
    parallel = ("hydra.sweeper.parallel=2", "hydra.sweeper.isolate=false", "hydra.sweeper.gpus=2")
    done = app(tmp_path, INTERVAL, *parallel, "hydra.sweeper.n_trials=2", check=False)
    told = "hydra.sweeper.gpus needs a process for each job: leave out hydra.sweeper.isolate=false"
    assert (done.code, told in done.err, "Traceback" in done.err) == (1, True, False), done.err
