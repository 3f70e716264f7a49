"""Sweeps whose tracking server, storage or disk is away for a while: nothing is lost, and no point is given up."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

import sweep_app
from conftest import Done, free_port
from forked import Forked
from hydra_plugins.snnexp_optuna import _loop, _pause, _report
from snnexp.trial import outage
from test_sweeps import GRID, INTERVAL, TINY, app, runs, states, study, until_called
from waiting import until


def main() -> None:
    """Run the program; while there is a file "away", SQLite fails, in this process and its forks."""
    _report._figures = lambda study, names, folder: None
    _pause.FIRST = outage.POLL = _loop.POLL = 0.01

    @event.listens_for(Engine, "do_execute")
    def fail(*_: Any) -> None:
        if Path("outputs/away").exists():
            raise sqlite3.OperationalError("unable to open database file")

    sweep_app.main()


def begin(folder: Path, *arguments: str) -> Forked:
    (folder / "outputs").mkdir(exist_ok=True)
    return Forked(main, "sweep_app", "-m", f"outputs_dir='{folder / 'outputs'}'", *arguments, folder=folder)


def said(child: Forked, text: str) -> None:
    until(lambda: text in "".join(child.output()), text, progress=lambda: child.output())


def test_a_storage_that_is_away_for_a_while_costs_no_trial(tmp_path: Path) -> None:
    parent = begin(tmp_path, INTERVAL, "hold=2", "epochs=1", "hydra.sweeper.n_trials=4")
    until_called(tmp_path, 2)
    (tmp_path / "outputs" / "away").touch()
    (tmp_path / "outputs" / "go").touch()
    said(parent, "optuna.db cannot be reached (unable to open database file): waiting for up to 600 s")
    (tmp_path / "outputs" / "away").unlink()
    out, err = parent.communicate()
    assert parent.returncode == 0, err
    assert "is available again: the sweep goes on" in out
    assert states(study(tmp_path).trials) == {"COMPLETE": 4}


def test_a_storage_that_stays_away_ends_a_sweep_which_the_same_command_continues(tmp_path: Path) -> None:
    command = (INTERVAL, "hold=2", "epochs=1", "hydra.sweeper.n_trials=4", "hydra.sweeper.wait=0.05")
    parent = begin(tmp_path, *command)
    until_called(tmp_path, 2)
    (tmp_path / "outputs" / "away").touch()
    (tmp_path / "outputs" / "go").touch()
    _, err = parent.communicate()
    assert parent.returncode == 1
    assert "for 0.05 s (hydra.sweeper.wait)\nThe same command goes on from there" in err
    assert "Traceback" not in err
    (tmp_path / "outputs" / "away").unlink()
    app(tmp_path, *command)
    trials = study(tmp_path).trials
    assert states(trials) == {"COMPLETE": 4, "FAIL": 1}
    assert [t.params for t in trials if t.user_attrs.get("retry_of") == 1] == [trials[1].params]


def test_failures_of_the_surroundings_use_no_trial_and_no_attempt(tmp_path: Path) -> None:
    few = ("hydra.sweeper.n_trials=2", "hydra.sweeper.max_failures=1", "hydra.sweeper.retries=0", GRID)
    command = ("x=choice(1,2)", "kind=full", *few)
    parent = begin(tmp_path, *command, "hydra.sweeper.wait=0.1")
    _, err = parent.communicate()
    assert parent.returncode == 1
    stopped = "stopped after waiting for 0.1 s (hydra.sweeper.wait): cannot write: [Errno 28] No space left on device"
    assert stopped in err
    assert "Then the same command goes on; it repeats what has failed" in err
    before = states(study(tmp_path).trials)
    assert before["FAIL"] > 3
    assert before["WAITING"] == 1
    (tmp_path / "outputs" / "room").touch()
    app(tmp_path, *command, "hydra.sweeper.wait=5")
    done = [t for t in study(tmp_path).trials if t.state.name == "COMPLETE"]
    assert sorted(t.params["x"] for t in done) == [1, 2]


def test_a_study_without_its_tracking_server_runs_all_trials_which_are_sent_later(
    snnexp: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, empty_database: Path
) -> None:
    monkeypatch.setattr(_report, "_figures", lambda study, names, folder: None)
    server = f"tracking.uri=http://127.0.0.1:{free_port()}"
    done = snnexp("-m", *TINY, "neuron.threshold=interval(0.5,2)", "hydra.sweeper.n_trials=2", server)
    assert done.code == 0, done.err
    assert states(study(done.outputs.parent).trials) == {"COMPLETE": 2}
    assert "(not sent yet: see task=sync)" in done.out
    shutil.copy(empty_database, done.outputs)
    sent = snnexp("task=sync", f"tracking.uri=sqlite:///{done.outputs / 'mlflow.db'}")
    assert sent.code == 0, sent.err
    (parent,) = [run for run in runs(done) if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs(done) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 3
