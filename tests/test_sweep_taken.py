"""Trials that a study takes over from another study or from MLflow."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from conftest import SMALL, Done
from hydra_plugins.snnexp_optuna import _report  # after conftest, in which Hydra finds its plugins
from test_sweeps import INTERVAL, app, calls

TINY = (*SMALL, "trainer.epochs=1", "model.hidden=8", "timesteps=2")
SPACE = (INTERVAL, "kind=choice(plain,other)", "seed=3")
ALPHA = "surrogate.alpha=interval(1,4)"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_report, "_figures", lambda study, names, folder: None)


def trials(url: str, name: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=optuna.storages.get_storage(url)).trials


@pytest.fixture(scope="module", params=["sqlite", "journal"])
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The study.json of a study of six trials, and the file of its storage."""
    folder = tmp_path_factory.mktemp(request.param)
    file = folder / "old"
    url = f"sqlite:///{file}" if request.param == "sqlite" else f"journal:{file}"
    app(folder, *SPACE, "hydra.sweeper.study=old", f"hydra.sweeper.storage='{url}'", "hydra.sweeper.n_trials=6")
    (known,) = folder.glob("outputs/multirun/*/study.json")
    return known, file


def test_trials_of_a_study_in_another_storage(old: tuple[Path, Path], tmp_path: Path) -> None:
    before = json.loads(old[0].read_text())["trials"]
    fits, out = ([t for t in before if (t["params"]["x"] <= 2) == inside] for inside in (True, False))
    assert len(fits) >= 2 <= len(out)
    space, where = ("x=interval(0,2)", *SPACE[1:]), f"study old in {old[1]}"
    take = f"study:old,storage:'{old[1]}'"
    begun = (*space, "hydra.sweeper.study=new", f"hydra.sweeper.take_over={{{take}}}", "hydra.sweeper.n_trials=2")
    made = app(tmp_path, *begun)
    url = f"sqlite:///{tmp_path / 'outputs' / 'optuna.db'}"
    found = trials(url, "new")
    assert [(t.params, t.values) for t in found[: len(fits)]] == [(t["params"], t["values"]) for t in fits]
    assert len(found) - len(fits) == len(calls(tmp_path)) == 2, "they do not count toward n_trials"
    named = "; ".join(f"trial {t['number']}: {t['params']['x']}" for t in out)
    why = "because its x is outside the search space"
    assert f"taken over from {where}: {len(fits)} trials\n" in made.out
    assert f"not taken over from {where}: {len(out)}, {why} ({named})\n" in made.out
    assert f"{2 + len(fits)} trials (2 complete, {len(fits)} taken over)" in made.out
    assert "2 of 2 trials" in made.out
    (table,) = tmp_path.glob("outputs/multirun/*/trials.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    sources = [f"{where}, trial {t['number']}" for t in fits] + [""] * 2
    assert [row["taken over from"] for row in rows] == sources
    app(tmp_path, *begun)
    assert [t.params for t in trials(url, "new")] == [t.params for t in found], "not twice"
    again = f"hydra.sweeper.take_over=[{{study:new}},{{{take}}}]"
    app(tmp_path, *space, "hydra.sweeper.study=newer", again, "hydra.sweeper.n_trials=1")
    assert len(trials(url, "newer")) == len(found) + 1, "nor by two ways"


def test_what_cannot_be_compared_is_refused(old: tuple[Path, Path], tmp_path: Path) -> None:
    take, space = f"study:old,storage:'{old[1]}'", (*SPACE, "hydra.sweeper.n_trials=1")
    for arguments, said in {
        ("seed=4", "y=1.0"): "seed is 3 there and 4 here; y is 0.0 there and 1.0 here. "
        "If that does not matter, add differing:[seed,y]",
        ("objective=val/loss",): "direction is ['maximize'] there and ['minimize'] here; objective is val/value "
        "there and val/loss here\n",
    }.items():
        refused = app(tmp_path, *space, *arguments, f"hydra.sweeper.take_over={{{take}}}", check=False)
        assert (refused.code, calls(tmp_path)) == (1, [])
        assert f"{said}" in refused.err
    assert not (tmp_path / "outputs" / "optuna.db").exists()
    for given, said in {
        f"{{study:odd,storage:'{old[1]}'}}": "there is no study odd in",
        "{study:old,storage:nowhere.db}": "there is no file",
        "{study:old,mlflow:x}": "is not allowed: it must be {study:NAME}",
        "3": "is not allowed: it must be {study:NAME}",
        "{study:old,storage:'postgresql://me:hush@127.0.0.1:1/x'}": "take_over.storage=postgresql",
    }.items():
        refused = app(tmp_path, *space, f"hydra.sweeper.take_over={given}", check=False)
        assert (refused.code, said in refused.err) == (1, True), refused.err
        assert "Traceback" not in refused.err
        assert "hush" not in refused.err + refused.out
    allowed = app(tmp_path, *space, "seed=4", f"hydra.sweeper.take_over={{{take},differing:[seed]}}")
    assert "taken over from study old" in allowed.out


def test_a_target_that_was_reached_elsewhere_and_the_patience(tmp_path: Path) -> None:
    app(tmp_path, "x=choice(2,9)", "hydra.sweeper.study=old", "hydra.sweeper.start=[{x:2}]", "hydra.sweeper.n_trials=1")
    again = (
        "x=choice(2,9)",
        "hydra.sweeper.take_over={study:old}",
        "hydra.sweeper.n_trials=9",
        "hydra.sweeper.study=new",
    )
    reached = app(tmp_path, *again, "hydra.sweeper.target=0")
    assert "trial 0 has reached hydra.sweeper.target=0" in reached.out
    patient = app(tmp_path, *again, "hydra.sweeper.patience=2")
    assert "none of 2 trials was better than trial 0" in patient.out
    assert len(calls(tmp_path)) == 3
    itself = app(tmp_path, *again[:1], "hydra.sweeper.study=old", *again[1:3], check=False)
    assert "study old is the study that this command continues" in itself.err


def test_runs_of_mlflow(snnexp: Callable[..., Done], store: Path) -> None:
    two = (*TINY, "trainer.epochs=2")
    for arguments in (("-m", *two, "surrogate.alpha=2.0,9.0"), (*two, "surrogate.alpha=3.0", "seed=1")):
        assert snnexp(*arguments).code == 0
    space = ("-m", *two, ALPHA, "hydra.sweeper.n_trials=1", "hydra.sweeper.study=of_runs")
    done = snnexp(*space, "hydra.sweeper.take_over={mlflow:snnexp}")
    assert done.code == 0, done.err
    assert done.err.count("1, because its surrogate.alpha is outside the search space (run ") == 1
    assert "because seed is 1 there and 0 here. If that does not matter, add differing:[seed] (run " in done.err
    url, (folder,) = f"sqlite:///{done.outputs / 'optuna.db'}", done.outputs.glob("multirun/*/*/0")
    assert "alpha: 2.0\n" in (folder / "config.yaml").read_text()
    first = trials(url, "of_runs")[0]
    reached = json.loads((folder / "result.json").read_text())
    assert (first.params, first.value) == ({"surrogate.alpha": 2.0}, reached["val/accuracy"]), "at its best epoch"
    parent = json.loads((folder.parent / "tracking.json").read_text())["run_id"]
    take = f"hydra.sweeper.take_over=[{{mlflow:{parent}}},{{mlflow:snnexp,differing:[seed]}}]"
    again = snnexp(*space, take)
    assert again.code == 0, again.err
    assert "taken over from MLflow experiment snnexp: 1 trial\n" in again.err
    assert [t.params["surrogate.alpha"] for t in trials(url, "of_runs")][::2] == [2.0, 3.0], "not twice"
    both = snnexp(*space[:-1], "hydra.sweeper.take_over=[{study:of_runs},{mlflow:snnexp}]")
    assert both.code == 0, both.err
    assert "taken over from study of_runs: 3 trials\nnot taken over" in both.err, "nothing by two ways"
    assert "memory" not in both.err
    for take, said in {
        "{mlflow:odd}": "odd is neither an experiment nor a run in",
        f"{{mlflow:{parent}}}": "because trainer.epochs is 2 there and 3 here",
    }.items():
        refused = snnexp(*space[:-1], "trainer.epochs=3", f"hydra.sweeper.take_over={take}")
        assert (refused.code, said in refused.err) == (1, True), refused.err
        assert "Traceback" not in refused.err
