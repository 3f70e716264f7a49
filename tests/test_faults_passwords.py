"""Passwords of stores: shown nowhere, stored nowhere, sent nowhere, and yet a run resumes and is sent later."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.plugins import Plugins

from conftest import SMALL, Done
from snnexp.errors import InvalidValue, UserError
from snnexp.masking import masked
from snnexp.record import Record
from snnexp.session import Session
from snnexp.task.train import Train
from snnexp.task.ui import UI
from snnexp.tracking import MLflow
from snnexp.trial.storage import open_storage

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:hunter2@host:5000/x", "http://me:***@host:5000/x"),
        ("at postgresql://me:hunter2@host/db, or", "at postgresql://me:***@host/db, or"),
        ("postgresql+psycopg://me:hun@ter2@host/db", "postgresql+psycopg://me:***@host/db"),
        ("mysql://me@server:hunter2@host/db", "mysql://me@server:***@host/db"),
        ("postgresql://me:hun/ter2@host/db", "postgresql://me:***@host/db"),
        ("postgresql://:hunter2@host/db", "postgresql://:***@host/db"),
        ("postgresql://host/db?user=me&password=hunter2&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("sqlite:///a.db?PASSWORD=hunter2", "sqlite:///a.db?PASSWORD=***"),
        ("http://host?access_token=hunter2#a", "http://host?access_token=***"),
        ("['uri=http://h?password=hunter2', 'b=1']", "['uri=http://h?password=***', 'b=1']"),
        ("['uri=http://me:hunter2@h', 'b=1']", "['uri=http://me:***@h', 'b=1']"),
        ("http://hunter2@host:5000/x", "http://***@host:5000/x"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dsa;PWD%3Dhunter2", "mssql+pyodbc:///?odbc_connect=***"),
        ("https://hun@ter2@host/x", "https://***@host/x"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("http://[::1]:5000/#/runs", "http://[::1]:5000/#/runs"),
        ("sqlite:////home/me@work/x:y.db", "sqlite:////home/me@work/x:y.db"),
        ("loss 0.5 at 10:30, mail me@host", "loss 0.5 at 10:30, mail me@host"),
    ],
)
def test_every_form_of_a_password_is_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown
    assert masked({"a": [text, 1, None], "b": {"c": (text,)}}) == {"a": [shown, 1, None], "b": {"c": [shown]}}


@pytest.mark.parametrize(
    ("uri", "allowed"),
    [
        ("postgresql://me:hun@ter2@host/db", "percent-encoded"),
        ("http://me:hun ter2@host", "percent-encoded"),
        ("http://me:***@host", "by *** in all that they store"),
        ("postgresql://host/db?password=***", "by *** in all that they store"),
    ],
)
def test_addresses_that_could_not_work_are_refused_without_their_password(uri: str, allowed: str) -> None:
    with pytest.raises(InvalidValue) as tracking:
        MLflow(uri)
    with pytest.raises(UserError, match=r"hydra\.sweeper\.storage=") as study:
        open_storage(uri)
    for told in (tracking.value, study.value):
        assert allowed in str(told)
        assert "hun" not in str(told)
        assert "ter2" not in str(told)


def work(record: Record, interrupt: bool) -> dict[str, float]:
    record.metrics({"val/accuracy": 0.5}, step=1)
    if interrupt:
        raise KeyboardInterrupt
    return {"val/accuracy": 0.5}


def leaks(outputs: Path) -> list[str]:
    return [str(path) for path in outputs.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.fixture
def store(tmp_path: Path, empty_database: Path) -> str:
    """The address of a store with a password, which SQLite ignores."""
    (tmp_path / "outputs").mkdir()
    shutil.copy(empty_database, tmp_path / "outputs")
    return f"sqlite:///{tmp_path}/outputs/mlflow.db?password={SECRET}"


def test_no_file_of_a_run_and_no_line_holds_the_password_and_the_run_resumes(
    snnexp: Callable[..., Done], store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def interrupted(self: Train, session: Session, record: Record) -> dict[str, float]:
        return record.tracked(lambda: work(record, interrupt=True))

    monkeypatch.setattr(Train, "run", interrupted)
    done = snnexp(*SMALL, f'tracking.uri="{store}"')
    assert done.code == 130
    shown = store.replace(SECRET, "***")
    assert f'"{shown}"' in done.err.split("go on with: ")[1]
    assert SECRET not in done.out + done.err
    assert leaks(done.outputs) == []
    (run,) = done.runs()
    for name in ("config.yaml", "run.json", "tracking.json", "tracking.jsonl"):
        assert (run / name).is_file()
    assert json.loads((run / "run.json").read_text())["config"]["tracking"]["uri"] == shown

    def finished(self: Train, session: Session, record: Record) -> dict[str, float]:
        return record.tracked(lambda: work(record, interrupt=False))

    monkeypatch.setattr(Train, "run", finished)
    monkeypatch.setenv("STORE", store)  # as the documentation recommends
    assert snnexp(*SMALL, "tracking.uri=${oc.env:STORE}", "resume=true").code == 0
    assert done.runs() == [run]
    client = MlflowClient(store.split("?")[0])
    (tracked,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert tracked.info.status == "FINISHED"
    assert SECRET not in json.dumps(tracked.to_dictionary())
    assert leaks(done.outputs) == []


def test_a_server_with_a_password_is_the_same_store_when_the_password_changes(tmp_path: Path) -> None:
    from snnexp.journal import Journal

    folder = tmp_path / "run"
    folder.mkdir()
    journal = Journal(folder)
    journal.address(f"http://me:{SECRET}@host", "snnexp")
    journal.note(run_id="0123", sent=7)
    journal.append(params={"uri": f"http://me:{SECRET}@host"}, tags={"a": f"http://h?token={SECRET}"}, name="a")
    before = journal.state
    journal.address("http://me:other@host", "snnexp")
    assert journal.state == before
    assert before["uri"] == "http://me:***@host"
    assert leaks(folder) == []
    journal.address("http://you:other@host", "snnexp")
    assert (journal.state["run_id"], journal.state["sent"]) == (None, 0)


def test_no_file_of_a_grid_holds_the_password(
    snnexp: Callable[..., Done], store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finished(self: Train, session: Session, record: Record) -> dict[str, float]:
        return record.tracked(lambda: work(record, interrupt=False))

    monkeypatch.setattr(Train, "run", finished)
    done = snnexp("-m", "seed=0,1", *SMALL, f'tracking.uri="{store}"')
    assert done.code == 0
    assert SECRET not in done.out + done.err
    (folder,) = done.outputs.glob("multirun/*/*")
    assert {path.name for path in folder.iterdir()} >= {"0", "1", "multirun.yaml", "summary.md", "experiment"}
    for name in ("multirun.yaml", "summary.md", "0/job.json", "1/job.json"):
        assert "password=***" in (folder / name).read_text()
    assert "password" not in (folder / "experiment" / "best.yaml").read_text()  # the store stays on the command line
    assert leaks(done.outputs) == []


def test_the_folder_of_submitit_which_keeps_the_config_is_the_users_alone(
    snnexp: Callable[..., Done], store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise UserError("enough")

    monkeypatch.setattr(Plugins, "instantiate_launcher", stop)
    done = snnexp("-m", "hydra/launcher=submitit_local", "seed=0,1", *SMALL, f'tracking.uri="{store}"')
    (folder,) = done.outputs.glob("multirun/*/*/.submitit")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tracking.url=http://me:hunter2@host"], "tracking.url"),  # Hydra's own errors
        (["task=report", "tracking.uri=http://me:hunter2@127.0.0.1:9"], "@127.0.0.1:9 cannot be reached"),
        (["tracking.uri=http://me:hunter2@host", "seed=("], "seed=("),
        (["-m", "+sweep=learning_rate", "hydra.sweeper.storage=postgresql://me:hunter2@127.0.0.1:9/x"], "storage="),
    ],
)
def test_no_error_shows_the_password(snnexp: Callable[..., Done], arguments: list[str], told: str) -> None:
    done = snnexp(*arguments)
    assert done.code == 1
    assert told in done.err
    assert SECRET not in done.out + done.err
    assert leaks(done.outputs) == []


def test_the_server_of_the_ui_gets_its_store_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[str, Any] = {}

    @contextmanager
    def server(command: Sequence[str], env: Mapping[str, str]) -> Iterator[None]:
        called.update(command=command, env=env)
        yield

    monkeypatch.setattr("snnexp.task.ui._server", server)
    monkeypatch.setattr("snnexp.task.ui._answers", lambda server, port: False)
    store = SimpleNamespace(uri=f"postgresql+psycopg2://me:{SECRET}@host/db", presented=lambda experiment: {})
    monkeypatch.setattr("snnexp.task.ui.Store", lambda tracker, what: store)
    UI(port=54321).run(SimpleNamespace(tracker=None), SimpleNamespace(overrides=[]))  # type: ignore[arg-type]
    assert SECRET not in " ".join(called["command"])
    assert called["env"]["MLFLOW_BACKEND_STORE_URI"] == f"postgresql+psycopg2://me:{SECRET}@host/db"
