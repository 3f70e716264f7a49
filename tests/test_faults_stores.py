"""Stores that are held, away or without a driver: the user is told what is wrong, soon, and what to do."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from conftest import Done
from snnexp.address import DRIVERS, with_driver
from snnexp.errors import UserError
from snnexp.lock import TELL_AFTER, Held, holder, locked
from snnexp.tracking import MLflow
from snnexp.tracking.client import reason, unreachable
from snnexp.trial.storage import exclusive

HOLDER = """
import sys
from pathlib import Path
from snnexp.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(path: Path, *arguments: str) -> Iterator[Popen[str]]:
    """Another process that holds the lock."""
    with Popen([sys.executable, "-c", HOLDER, str(path), *arguments], text=True, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_held_lock_says_within_seconds_who_holds_it_and_then_gives_up_with_advice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "mlflow.db.lock"
    assert TELL_AFTER == 2.0
    with held(path, "http://me:hunter2@host") as process:
        begin = time.monotonic()
        with pytest.raises(Held) as told, locked(path, patience=2.3):
            pass
        assert 2.3 <= time.monotonic() - begin < 10
    (record,) = caplog.records
    who = f"process {process.pid} ({sys.executable} -c import sys"
    assert record.getMessage().startswith(f"waiting for {path}, which is held by {who}")
    assert record.getMessage().endswith("(for up to 2.3 s)")
    lines = str(told.value).splitlines()
    assert lines[0].startswith(f"{path} is in use by {who}")
    assert lines[0].endswith("which did not release it within 2.3 s")
    assert lines[1] == "Start again when it has ended. If it hangs, end it: its lock is then released"
    assert "hunter2" not in record.getMessage() + str(told.value)


def test_holders_that_cannot_be_seen_are_another_process(tmp_path: Path) -> None:
    assert holder(tmp_path / "none") == "another process"
    path = tmp_path / "a.lock"
    with locked(path):
        assert holder(path).startswith(f"process {os.getpid()} (")
    assert holder(path) == "another process"  # nobody


def test_a_held_store_is_told_as_such_by_runs_and_studies(
    snnexp: Callable[..., Done],
    tmp_path: Path,
    empty_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("snnexp.lock.TELL_AFTER", 0.1)
    monkeypatch.setattr("snnexp.address.LOCK_PATIENCE", 0.2)
    (tmp_path / "outputs").mkdir()
    shutil.copy(empty_database, tmp_path / "outputs")
    with held(tmp_path / "outputs" / "mlflow.db.lock") as process:
        folder = tmp_path / "outputs" / "runs" / "a"
        folder.mkdir(parents=True)
        (tmp_path / "none").mkdir()
        MLflow(outputs=tmp_path / "outputs").start(folder, "a", {}, {})
        assert f"unavailable ({tmp_path}/outputs/mlflow.db.lock is in use by process {process.pid} (" in caplog.text
        monkeypatch.setenv("SNNEXP_OUTPUTS", str(tmp_path / "none"))
        done = snnexp("task=sync")
        assert done.code == 0  # nothing to send, so nothing to wait for
    monkeypatch.setattr("snnexp.trial.storage.PATIENCE", 0.2)
    url = f"sqlite:///{tmp_path}/optuna.db"
    with (
        held(tmp_path / ".optuna.db.turn"),
        pytest.raises(UserError, match=r"\.optuna\.db\.turn is in use by process"),
        exclusive(url),
    ):
        pass


def test_a_failure_while_another_is_handled_names_its_own_reason(
    tmp_path: Path, empty_database: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_database, tmp_path)
    (tmp_path / "a").mkdir()
    tracker = MLflow(outputs=tmp_path)
    tracker.start(tmp_path / "a", "a", {}, {})
    monkeypatch.setattr("snnexp.address.LOCK_PATIENCE", 0.1)
    with held(tmp_path / "mlflow.db.lock"):
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            tracker.finish("FAILED")
    assert "MLflow is unavailable (" + str(tmp_path / "mlflow.db.lock") in caplog.text
    assert "No space left" not in caplog.text


def raised(outer: Exception, inner: Exception, cause: bool) -> Exception:
    """`outer`, raised while `inner` was handled, as from it or not."""
    try:
        try:
            raise inner
        except Exception as error:
            if cause:
                raise outer from error
            raise outer  # noqa: B904
    except Exception as error:
        return error


def test_the_reason_is_the_cause_and_not_what_else_went_wrong() -> None:
    from requests import ConnectionError as Away

    refused = ConnectionRefusedError(111, "Connection refused")
    assert reason(raised(Exception("API request failed"), raised(Away("x"), refused, False), False)).endswith("refused")
    answer = Exception("error code 500. Response body: '<html>'")
    assert reason(raised(answer, ValueError("Expecting value: line 1"), False)) == str(answer)
    assert reason(raised(Exception("wrapped"), ValueError("the driver's words"), True)) == "the driver's words"
    lock = Held("a.lock is in use")
    assert str(unreachable("sqlite:///a", raised(lock, ValueError("no"), False))) == "a.lock is in use"


# drivers


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let only these modules of drivers be there."""

    def only(*names: str) -> None:
        for module in (module for drivers in DRIVERS.values() for _, module, _ in drivers):
            monkeypatch.setitem(sys.modules, module, sys if module in names else None)  # None: ImportError

    return only


@pytest.mark.parametrize(
    ("there", "address", "used"),
    [
        (["psycopg2"], "postgresql://me@h/d", "postgresql+psycopg2://me@h/d"),
        (["psycopg"], "postgresql://me@h/d", "postgresql+psycopg://me@h/d"),
        (["psycopg", "psycopg2"], "postgresql://me@h/d", "postgresql+psycopg2://me@h/d"),
        (["psycopg", "psycopg2"], "postgresql+psycopg://me@h/d", "postgresql+psycopg://me@h/d"),
        (["pymysql"], "mysql://me@h/d", "mysql+pymysql://me@h/d"),
        (["MySQLdb"], "mysql://me@h/d", "mysql+mysqldb://me@h/d"),
        ([], "postgresql+pg8000://me@h/d", "postgresql+pg8000://me@h/d"),
        (["pymysql"], "mysql://me@server:p@h/d", "mysql+pymysql://me@server:p@h/d"),
        ([], "sqlite:////a.db", "sqlite:////a.db"),
        ([], "http://h:5000", "http://h:5000"),
    ],
)
def test_the_installed_driver_is_used(
    installed: Callable[..., None], there: list[str], address: str, used: str
) -> None:
    installed(*there)
    assert with_driver(address) == used


@pytest.mark.parametrize(
    ("address", "drivers", "package"),
    [
        ("postgresql://me:hunter2@h/d", "psycopg2 or psycopg", "psycopg2-binary"),
        ("postgresql+psycopg://me:hunter2@h/d", "psycopg", "psycopg[binary]"),
        ("mysql://me:hunter2@h/d", "pymysql or mysqldb", "pymysql"),
    ],
)
def test_a_missing_driver_is_named_with_the_command_that_installs_it(
    installed: Callable[..., None], address: str, drivers: str, package: str
) -> None:
    installed()
    with pytest.raises(UserError) as told:
        with_driver(address)
    shown = address.replace("hunter2", "***")
    assert str(told.value) == (
        f"{shown} needs the Python driver {drivers}, which is not installed: "
        f"python -m pip install '{package}' (with uv: uv pip install '{package}')"
    )


@pytest.mark.parametrize("arguments", [["tracking.uri="], ["-m", "+sweep=learning_rate", "hydra.sweeper.storage="]])
def test_a_missing_driver_stops_runs_and_studies_before_they_begin(
    installed: Callable[..., None], snnexp: Callable[..., Done], arguments: list[str]
) -> None:
    installed()
    *others, last = arguments
    done = snnexp(*others, f"{last}postgresql://me@127.0.0.1:9/d")
    assert done.code == 1
    assert "needs the Python driver psycopg2 or psycopg" in done.err
    assert "Traceback" not in done.err
    assert not done.runs()
