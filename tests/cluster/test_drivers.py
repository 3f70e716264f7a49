"""PostgreSQL by the address that the documentation names, with either driver."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from cluster.engines import Cluster, query
from snnexp.address import advisory, with_driver
from snnexp.lock import Held

pytestmark = pytest.mark.cluster
OTHER = {"psycopg2": "psycopg", "psycopg": "psycopg2"}


@pytest.mark.parametrize("driver", OTHER)
def test_studies_and_tracking_take_either_driver(
    cluster: Cluster, environment: dict[str, str], tmp_path: Path, driver: str
) -> None:
    pytest.importorskip(driver)
    hidden = tmp_path / "hidden"  # where the other driver cannot be imported
    (hidden / OTHER[driver]).mkdir(parents=True)
    (hidden / OTHER[driver] / "__init__.py").write_text("raise ImportError")
    study_at, runs_at = cluster.database("study"), cluster.database("mlflow")
    plain = [address.replace("+psycopg2", "").replace("snnexp@", "snnexp:hunter2@") for address in (study_at, runs_at)]
    command = [sys.executable, "-m", "snnexp.run", "-m", "surrogate.alpha=interval(1,2)", "hydra.sweeper.n_trials=2"]
    command += ["trainer.epochs=1", "model.hidden=8", "timesteps=2", "trainer.threads=1"]
    command += ["hydra.sweeper.storage=${oc.env:STUDY}", "tracking.uri=${oc.env:RUNS}"]
    more = {"STUDY": plain[0], "RUNS": plain[1], "PYTHONPATH": os.pathsep.join([str(hidden), *sys.path])}
    done = subprocess.run(command, env=environment | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert query(study_at, "SELECT count(*) FROM trials WHERE state = 'COMPLETE'") == [(2,)]
    assert query(runs_at, "SELECT count(*) FROM runs WHERE status = 'FINISHED'") == [(3,)]
    for path in tmp_path.rglob("outputs/**/*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snnexp.address.TELL_AFTER", 0.2)
    monkeypatch.setattr("snnexp.address.LOCK_PATIENCE", 0.5)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("driver", OTHER)
def test_a_held_lock_of_the_server_is_told(cluster: Cluster, caplog: pytest.LogCaptureFixture, driver: str) -> None:
    pytest.importorskip(driver)
    caplog.set_level(logging.INFO)
    address = cluster.database().replace("+psycopg2", f"+{driver}")
    one, two = create_engine(with_driver(address)), create_engine(with_driver(address))
    free = threading.Event()
    with advisory(one, address, "mlflow"):
        with (
            pytest.raises(Held, match=r"is in use by process \d+ of snnexp from 127\.0\.0\.1"),
            advisory(two, address, "mlflow"),
        ):
            free.set()
        with advisory(two, address, "sweep"):  # another purpose
            pass
    assert not free.is_set()
    assert [message.split(", which")[0] for message in caplog.messages] == [f"waiting for the lock of {address}"]
    with advisory(two, address, "mlflow"):
        free.set()
    assert free.is_set()
