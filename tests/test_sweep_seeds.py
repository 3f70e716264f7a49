"""Trials that are means over seeds, and the best of a grid by its mean."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Done
from hydra_plugins.snnexp_optuna import _report  # after conftest, in which Hydra finds its plugins
from hydra_plugins.snnexp_optuna._seeds import pooled
from snnexp.sweep.summary import Child, best, mean
from test_sweeps import GRID, INTERVAL, TINY, app, begin, calls, runs, study, until_called

SEEDS = ("hydra.sweeper.seeds=3", "noise=0.5", "text=${seed}")  # the calls are listed with their text


def test_a_trial_is_the_mean_over_its_seeds_with_its_standard_error(tmp_path: Path) -> None:
    done = app(tmp_path, "x=choice(1,2)", *SEEDS, "seed=1", "epochs=2", "hydra.sweeper.n_trials=2", GRID)
    by_x = {t.params["x"]: t for t in study(tmp_path).trials}
    error = 0.5 / math.sqrt(3)  # the values are 0.5, 1 and 1.5 above the parabola
    assert {x: t.value for x, t in by_x.items()} == {1: pytest.approx(0), 2: pytest.approx(1)}
    assert by_x[2].user_attrs["standard error"] == [pytest.approx(error)]
    assert by_x[2].intermediate_values == {1: 0.5, 2: 1.5}, "the pruner sees the epochs of the first seed"
    assert sorted(line.split()[2] for line in calls(tmp_path)) == ["1", "1", "2", "2", "3", "3"]
    assert "val/value 1 ± 0.29" in done.out
    (folder,) = (tmp_path / "outputs" / "multirun").iterdir()
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [float(row["val/value standard error"]) for row in rows] == pytest.approx([error, error])
    assert {p.name for p in (folder / "0").iterdir() if p.is_dir()} == {"seed=1", "seed=2", "seed=3"}


@pytest.mark.parametrize(("direction", "first"), [("maximize", 2), ("minimize", 9)])
def test_a_hopeless_trial_ends_between_two_seeds(tmp_path: Path, direction: str, first: int) -> None:
    order = {2: 1, 9: 0}[first]  # a seed with which a GridSampler begins with this value
    done = app(
        tmp_path,
        "x=choice(2,9)",
        *SEEDS,
        "hydra.sweeper.n_trials=2",
        f"hydra.sweeper.direction={direction}",
        "hydra.sweeper.pruner={_target_:optuna.pruners.NopPruner}",
        "hydra.sweeper.sampler={_target_:optuna.samplers.GridSampler,seed:" + f"{order}}}",
    )
    assert [(t.params["x"], t.state.name) for t in study(tmp_path).trials] == [
        (first, "COMPLETE"),
        (11 - first, "PRUNED"),
    ]
    assert len(calls(tmp_path)) == 4
    assert "over 1 seed, more than 2 standard errors (0.5) from" in done.out


def test_without_a_pruner_every_trial_has_all_its_seeds(tmp_path: Path) -> None:
    app(tmp_path, "x=choice(2,9)", *SEEDS, "hydra.sweeper.n_trials=2", GRID)
    assert len(calls(tmp_path)) == 6


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_killed_trial_keeps_the_seeds_that_are_done(tmp_path: Path, parallel: int) -> None:
    arguments = (INTERVAL, *SEEDS, "hold=2", "hydra.sweeper.n_trials=1", f"hydra.sweeper.parallel={parallel}")
    process = begin(tmp_path, *arguments)
    until_called(tmp_path, times=2)
    process.kill()
    (tmp_path / "outputs" / "go").touch()
    app(tmp_path, *arguments)
    trials = study(tmp_path).trials
    assert [t.state.name for t in trials] == ["FAIL", "COMPLETE"]
    assert trials[1].value == pytest.approx(-((trials[0].params["x"] - 2) ** 2) + 0.5)
    called = [line.split()[2] for line in calls(tmp_path)]
    # a job of joblib outlives its parent: its outcome is used as well
    assert called == (["0", "1", "1", "2"] if parallel == 1 else ["0", "1", "2"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hydra.sweeper.seeds=1"], "hydra.sweeper.seeds=1 is not allowed: it must be an integer >= 2; or a list"),
        (["hydra.sweeper.seeds=[0,0]"], "hydra.sweeper.seeds=[0, 0] is not allowed: it must be at least 2 different"),
        (["hydra.sweeper.seeds=3", "seed=0,1"], "seed is in the search space, and hydra.sweeper.seeds averages over"),
    ],
)
def test_seeds_that_cannot_be_are_refused(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = app(tmp_path, INTERVAL, "hydra.sweeper.n_trials=2", *arguments, check=False)
    assert done.code == 1
    assert words in done.err
    assert not calls(tmp_path)


def test_a_grid_names_its_seeds_itself(tmp_path: Path) -> None:
    done = app(tmp_path, "x=1,2", "hydra.sweeper.seeds=3", check=False)
    assert done.code == 1
    assert "in a grid, write seed=0,1,2" in done.err


@pytest.mark.usefixtures("store")
def test_seeds_are_runs_nested_in_that_of_their_trial(
    snnexp: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_report, "_figures", lambda study, names, folder: None)
    study_of_two = ("neuron.threshold=choice(1.0,1.5)", "hydra.sweeper.n_trials=2", "hydra.sweeper.seeds=[3,5]", GRID)
    done = snnexp("-m", *TINY, *study_of_two)
    assert done.code == 0, done.err
    found = runs(done)
    (sweep,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    trials = [run for run in found if run.data.tags.get("mlflow.parentRunId") == sweep.info.run_id]
    assert sorted(run.data.tags["trial"] for run in trials) == ["0", "1"]
    for trial in trials:
        seeds = [run for run in found if run.data.tags.get("mlflow.parentRunId") == trial.info.run_id]
        assert sorted(run.info.run_name for run in seeds) == ["seed=3", "seed=5"], done.err
        values = [run.data.metrics["val/accuracy"] for run in seeds]
        assert trial.data.metrics["val/accuracy"] == pytest.approx(sum(values) / 2)
        assert trial.data.metrics["val/accuracy standard error"] == pytest.approx(abs(values[0] - values[1]) / 2)
    assert {run.info.status for run in found} == {"FINISHED"}
    report = snnexp("task=report", f"task.sweep={sweep.info.run_id}")
    assert (report.code, "report on 5 runs" in report.out) == (0, True), "the sweep and its four trainings"


def child(name: str, seed: int, value: float) -> Child:
    return Child(0, f"{name} {seed}", {"surrogate": name, "seed": str(seed)}, {"val/accuracy": value}, ())


def test_the_best_of_a_grid_has_the_best_mean_over_seeds() -> None:
    lucky = [child("lucky", 0, 0.9), child("lucky", 1, 0.1)]
    steady = [child("steady", 0, 0.6), child("steady", 1, 0.62)]
    assert [c.name for c in best([*lucky, *steady], "val/accuracy")] == ["steady 1", "steady 0"]
    alone = [child("alone", 0, 0.95)]
    assert best([*alone, *steady], "val/accuracy")[0].name == "steady 1", "one seed may be luck"
    assert best(alone, "val/accuracy") == alone
    assert best([], "val/accuracy") == []
    assert mean(steady, "val/accuracy") == (pytest.approx(0.61), pytest.approx(0.01))


def test_the_spread_between_seeds_is_pooled_over_trials() -> None:
    assert pooled([[1.0, 3.0], [5.0], [2.0, 2.0, 2.0]]) == pytest.approx(math.sqrt(2 / 3))
    assert math.isnan(pooled([[1.0], []]))
