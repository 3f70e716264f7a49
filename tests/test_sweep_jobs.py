"""The jobs of sweeps: where they are, which records they leave, and on which devices they run."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from omegaconf import OmegaConf

from conftest import Done
from hydra_plugins.snnexp_optuna import _report
from snnexp.callbacks import Grid
from snnexp.lock import is_locked
from test_sweeps import GRID, INTERVAL, TINY, app, begin, calls, runs, states, study, until_called
from waiting import until

NESTED = "hydra.sweep.subdir='jobs/${hydra.job.override_dirname}'"


@pytest.mark.parametrize("subdir", ["hydra.sweep.subdir='job-${hydra.job.num}'", NESTED])
def test_live_jobs_of_a_killed_parent_are_not_run_twice_whatever_their_folder(tmp_path: Path, subdir: str) -> None:
    command = (INTERVAL, subdir, "hold=1", "hydra.sweeper.n_trials=2", "hydra.sweeper.parallel=2")
    parent = begin(tmp_path, *command)
    until_called(tmp_path, 2)
    parent.kill()  # its jobs go on in joblib's workers
    (folder,) = (tmp_path / "outputs" / "multirun").iterdir()
    assert [is_locked(folder / ".jobs" / f"{number}.lock") for number in (0, 1)] == [True, True]
    again = begin(tmp_path, *command)
    parents = lambda: [name for name in study(tmp_path).user_attrs if name.startswith("parent ")]  # noqa: E731
    until(lambda: len(parents()) == 2, "the second parent")
    (tmp_path / "outputs" / "go").touch()
    _, err = again.communicate()
    assert again.returncode == 0, err
    assert (states(study(tmp_path).trials), len(calls(tmp_path))) == ({"COMPLETE": 2}, 2)


@pytest.mark.usefixtures("store")
def test_a_grid_in_nested_folders_has_its_summary_and_is_resumed(snnexp: Callable[..., Done]) -> None:
    command = ("-m", *TINY, "seed=0,1", "resume=true", NESTED)
    done = snnexp(*command)
    assert done.code == 0, done.err
    (folder,) = done.outputs.glob("multirun/*/*")
    assert len(list(folder.glob("jobs/*/result.json"))) == 2
    assert (folder / "summary.csv").read_text().splitlines()[1].startswith("2,")
    assert (folder / "experiment" / "best.yaml").exists()
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png"}
    again = snnexp(*command)
    assert again.out.count("this run was already finished") == 2


def test_refused_and_diverged_jobs_stand_in_the_table_with_their_reasons(snnexp: Callable[..., Done]) -> None:
    varied = ("neuron.threshold=1,-1", "optimizer.lr=0.01,1e6", "seed=0")
    done = snnexp("-m", *TINY, "tracking=none", "dataset=digits", "optimizer=sgd", *varied)
    assert done.code == 1
    (folder,) = done.outputs.glob("multirun/*/*")
    with (folder / "summary.csv").open(newline="") as file:
        rows = {(row["neuron.threshold"], row["optimizer.lr"]): row for row in csv.DictReader(file)}
    assert [row["n"] for row in rows.values()] == ["1", "0", "0", "0"]
    assert rows["1", "0.01"]["failed"] == ""
    assert "became NaN or infinite in epoch 1: try a smaller optimizer.lr" in rows["1", "1000000.0"]["failed"]
    for lr in ("0.01", "1000000.0"):
        assert "neuron.threshold=-1 is not allowed" in rows["-1", lr]["failed"]


@pytest.mark.usefixtures("store")
def test_a_grid_that_was_killed_is_one_run_with_all_its_jobs(
    snnexp: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:

    with monkeypatch.context() as patch:
        patch.setattr(Grid, "close", lambda *_: setattr(Grid, "open", None))  # a killed parent closes nothing
        assert snnexp("-m", *TINY, "seed=0,1", "resume=true").code == 0
    done = snnexp("-m", *TINY, "seed=0,1,2", "resume=true")
    assert done.code == 0, done.err
    (parent,) = [run for run in runs(done) if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs(done) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.run_name for run in children) == ["seed=0", "seed=1", "seed=2"]
    assert parent.info.status == "FINISHED"
    last = max(done.outputs.glob("multirun/*/*/summary.csv"), key=lambda path: path.stat().st_mtime)
    assert last.read_text().splitlines()[1].startswith("3,")


@pytest.mark.usefixtures("store")
def test_a_trial_is_not_pruned_after_its_last_epoch_and_an_extended_study_shows_its_new_number(
    snnexp: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_report, "_figures", lambda study, names, folder: None)
    pruner = "hydra.sweeper.pruner={_target_:optuna.pruners.ThresholdPruner,lower:2}"  # prunes whatever it is asked
    for n in (1, 2):
        done = snnexp("-m", *TINY, "neuron.threshold=interval(0.5,2)", pruner, f"hydra.sweeper.n_trials={n}")
        assert done.code == 0, done.err
    assert states(study(done.outputs.parent).trials) == {"COMPLETE": 2}
    (parent,) = [run for run in runs(done) if "mlflow.parentRunId" not in run.data.tags]
    assert parent.data.tags["n_trials"] == "2"


@pytest.mark.parametrize(
    ("sampler", "told"),
    [
        (
            "GridSampler,search_space:{y:[1]}",
            "sampler=GridSampler cannot be used with this space: The parameter name, x,",
        ),
        ("CmaEsSampler,x0:{y:1}", "sampler=CmaEsSampler cannot be used with this space: "),
    ],
)
def test_what_a_sampler_refuses_is_told_before_the_first_trial(tmp_path: Path, sampler: str, told: str) -> None:
    given = f"hydra.sweeper.sampler={{_target_:optuna.samplers.{sampler}}}"
    done = app(tmp_path, INTERVAL, given, "hydra.sweeper.n_trials=9", check=False)
    assert (done.code, told in done.err, "Traceback" in done.err) == (1, True, False), done.err
    assert not (tmp_path / "outputs" / "optuna.db").exists()


def test_what_a_pruner_refuses_is_told_before_the_first_trial(tmp_path: Path) -> None:
    pruner = "hydra.sweeper.pruner={_target_:optuna.pruners.PercentilePruner,percentile:200}"
    done = app(tmp_path, INTERVAL, pruner, "hydra.sweeper.n_trials=9", check=False)
    told = "hydra.sweeper.pruner cannot be created: Percentile must be between 0 and 100 inclusive"
    assert (done.code, told in done.err, "Traceback" in done.err) == (1, True, False), done.err
    assert not (tmp_path / "outputs" / "optuna.db").exists()


def test_a_sampler_on_the_command_line_replaces_that_of_the_yaml(tmp_path: Path) -> None:
    yaml = "hydra:\n  sweeper:\n    n_trials: 2\n    sampler: {_target_: optuna.samplers.CmaEsSampler, sigma0: 1.0}\n"
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "sweep" / "own.yaml").write_text(f"# @package _global_\n{yaml}")
    where = (f"hydra.searchpath=[{tmp_path / 'conf'}]", "+sweep=own", INTERVAL)
    given = ("++hydra.sweeper.sampler={_target_:optuna.samplers.RandomSampler}", "++hydra.sweeper.sampler.seed=${seed}")
    app(tmp_path, *where, *given, "seed=5")
    ours = [trial.params["x"] for trial in study(tmp_path).trials]
    alone = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=5))
    assert ours == [alone.ask().suggest_float("x", 0, 4) for _ in ours]


def test_lists_and_dicts_are_choices_and_a_shuffled_study_goes_on(tmp_path: Path) -> None:
    values = "text=shuffle(choice({a:1,b:[x,'y z']},{a:2},[3,4],[],{c d:null},{e:{f:1}}))"
    for n in (4, 6):
        app(tmp_path, values, GRID, f"hydra.sweeper.n_trials={n}")
    assert states(study(tmp_path).trials) == {"COMPLETE": 6}  # one study: `study` allows no other
    called = {line.split(" ", 2)[2] for line in calls(tmp_path)}
    every = [{"a": 1, "b": ["x", "y z"]}, {"a": 2}, [3, 4], [], {"c d": None}, {"e": {"f": 1}}]
    assert called == {repr(value) for value in every}


def test_the_config_of_a_sweep_is_that_of_its_first_job(snnexp: Callable[..., Done]) -> None:
    done = snnexp("--cfg", "job", "-m", "surrogate=sine,atan", "seed=3,4", "neuron.threshold=interval(1,2)")
    assert done.code == 0, done.err
    assert done.out.startswith(
        "# the first job of a sweep over: surrogate=sine,atan seed=3,4 neuron.threshold=interval(1,2)\n"
    )
    shown = OmegaConf.create(done.out)
    assert (shown.seed, shown.surrogate._target_.rpartition(".")[2]) == (3, "Sine")
