"""Tracking against real stores: nothing lost, nothing twice, whatever dies."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import free_port
from snnexp.errors import InvalidValue, UserError
from snnexp.task.sync import send_kept
from snnexp.tracking import MLflow, Nothing, Tracker
from waiting import until

fork = multiprocessing.get_context("fork")  # children then need not import mlflow again


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """An outputs folder that does not exist yet."""
    return tmp_path / "outputs"


@pytest.fixture
def outputs(fresh: Path, empty_database: Path) -> Path:
    fresh.mkdir()
    shutil.copy(empty_database, fresh)
    return fresh


def run_dir(outputs: Path, name: str = "a") -> Path:
    folder = outputs / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def begin(tracker: Tracker, folder: Path, **more: Any) -> None:
    tracker.start(folder, "a-name", {"trainer.epochs": 3}, {"task": "train"}, **more)


def stored(uri: str) -> list[Any]:
    """Every run in the store."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000))


def history(uri: str, run_id: str, *keys: str) -> Counter[tuple[str, int, float]]:
    """How often each (metric, step, value) stands in the store."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    return Counter((key, m.step, m.value) for key in keys for m in client.get_metric_history(run_id, key))


def artifacts(uri: str, run_id: str, folder: str = "") -> set[str]:
    from mlflow import MlflowClient

    return {item.path for item in MlflowClient(uri).list_artifacts(run_id, folder or None)}


def database(outputs: Path) -> str:
    return f"sqlite:///{outputs}/mlflow.db"


def test_import_and_construction_do_not_import_mlflow() -> None:
    code = "import sys; from snnexp.tracking import MLflow; MLflow(); assert not {'mlflow', 'torch'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sqlite_end_to_end(outputs: Path) -> None:
    folder, tracker = run_dir(outputs), MLflow(outputs=outputs)
    many = {f"group.key[{i}]": i for i in range(230)}
    tracker.start(
        folder,
        "my run",
        {**many, "long": "x" * 9000, "empty": "", "uri": "http://me:secret@host"},
        {"task": "train", "git_commit": "abc"},
        parent="0123",
    )
    for epoch in range(1, 4):
        tracker.metrics({"train/loss": 1 / epoch, "val/accuracy": epoch / 4}, step=epoch)
    tracker.metrics({"bad": math.nan, "worse": -math.inf, "//odd[name]": 1}, step=2)
    (folder / "config.yaml").write_text("seed: 0")
    (folder / "figures").mkdir()
    (folder / "figures" / "raster.png").write_bytes(b"png")
    tracker.artifact(folder / "config.yaml")
    tracker.artifact(folder / "figures")
    tracker.artifact(folder / "config.yaml", "copies")
    tracker.finish("FINISHED")

    (run,) = stored(database(outputs))
    assert run.info.run_id == tracker.run_id
    assert (run.info.run_name, run.info.status) == ("my run", "FINISHED")
    assert len(run.data.params) == 233
    assert run.data.params["group.key_229_"] == "229"
    assert len(run.data.params["long"]) == 500
    assert run.data.params["uri"] == "http://me:***@host"
    assert run.data.tags.items() >= {"task": "train", "git_commit": "abc", "mlflow.parentRunId": "0123"}.items()
    found = history(database(outputs), run.info.run_id, "train/loss", "val/accuracy")
    assert found == Counter((k, e, v) for e in range(1, 4) for k, v in (("train/loss", 1 / e), ("val/accuracy", e / 4)))
    assert math.isnan(run.data.metrics["bad"])
    assert run.data.metrics["worse"] < -1e308
    assert run.data.metrics["odd_name_"] == 1
    assert artifacts(database(outputs), run.info.run_id) == {"config.yaml", "figures", "copies"}
    assert artifacts(database(outputs), run.info.run_id, "figures") == {"figures/raster.png"}
    assert run.info.artifact_uri.startswith(str(outputs / "artifacts"))
    for line in (folder / "tracking.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN and Infinity are not JSON
    assert send_kept(outputs, None, MLflow(outputs=outputs)) == {"runs": 0, "records": 0}


def test_repeated_metrics_are_ignored_and_a_copy_of_the_tracker_reports_to_the_same_run(outputs: Path) -> None:
    tracker = MLflow(outputs=outputs)
    begin(tracker, run_dir(outputs))
    tracker.metrics({"x": 1.0}, step=1)
    spawned = pickle.loads(pickle.dumps(tracker))  # as a data-parallel rank gets it
    spawned.metrics({"x": 9.0}, step=1)
    spawned.metrics({"x": 2.0}, step=2)
    spawned.flush()
    tracker.metrics({"x": 9.0}, step=2)
    tracker.finish("FINISHED")
    (run,) = stored(database(outputs))
    assert history(database(outputs), run.info.run_id, "x") == {("x", 1, 1.0): 1, ("x", 2, 2.0): 1}


def test_sending_again_changes_nothing(outputs: Path) -> None:
    """A process killed between a send and its receipt sends the same records again."""
    folder = run_dir(outputs)
    tracker = MLflow(outputs=outputs)
    begin(tracker, folder)
    for step in range(1200):  # more than one batch
        tracker.metrics({"x": step / 7, "y": math.nan}, step=step)
    tracker.finish("FINISHED")
    state = json.loads((folder / "tracking.json").read_text())
    (folder / "tracking.json").write_text(json.dumps(state | {"sent": 0, "run_id": None}))
    assert send_kept(outputs, folder, MLflow(outputs=outputs)) == {"runs": 1, "records": 1202}
    (run,) = stored(database(outputs))
    assert run.info.status == "FINISHED"
    assert history(database(outputs), run.info.run_id, "x") == {("x", s, s / 7): 1 for s in range(1200)}
    assert sum(history(database(outputs), run.info.run_id, "y").values()) == 1200


def test_a_torn_last_line_is_dropped(outputs: Path) -> None:
    folder = run_dir(outputs)
    tracker = MLflow(outputs=outputs)
    begin(tracker, folder)
    tracker.metrics({"x": 1.0}, step=1)
    with (folder / "tracking.jsonl").open("a") as file:
        file.write('{"metrics": {"x": 2.0}, "st')
    again = MLflow(outputs=outputs)
    begin(again, folder)
    again.metrics({"x": 3.0}, step=2)
    again.finish("KILLED")
    (run,) = stored(database(outputs))
    assert run.info.status == "KILLED"
    assert history(database(outputs), run.info.run_id, "x") == {("x", 1, 1.0): 1, ("x", 2, 3.0): 1}


EPOCHS = 20


def train(outputs: Path, name: str) -> None:
    """A 'training' that is a function of the epoch, and on resumption repeats what it had already reported."""
    folder, tracker = run_dir(outputs, name), MLflow(outputs=outputs)
    begin(tracker, folder)
    mark = folder / "epoch"
    first = int(mark.read_text()) if mark.exists() and mark.read_text() else 1
    for epoch in range(max(1, first - 3), EPOCHS + 1):
        tracker.metrics({"train/loss": 1 / epoch, "val/accuracy": epoch / EPOCHS, "nan": math.nan}, step=epoch)
        mark.write_text(str(epoch))
        tracker.artifact(mark)
        tracker.flush()
    tracker.finish("FINISHED")


def assert_complete(uri: str, run_id: str) -> None:
    steps = range(1, EPOCHS + 1)
    expected = {("train/loss", s, 1 / s): 1 for s in steps} | {("val/accuracy", s, s / EPOCHS): 1 for s in steps}
    assert history(uri, run_id, "train/loss", "val/accuracy") == expected
    assert Counter(step for _, step, _ in history(uri, run_id, "nan").elements()) == Counter(steps)


@pytest.mark.parametrize("store", ["fresh", "outputs"])
def test_killed_at_random_moments_and_resumed_it_is_one_complete_run(
    store: str, request: pytest.FixtureRequest, empty_database: Path
) -> None:
    """Killed twice within 0.4 s of its start, when a fresh store is being created, and four times in later epochs."""
    outputs, chance = request.getfixturevalue(store), random.Random(0)
    mark, kills = outputs / "runs" / "a" / "epoch", 0
    process: Any = None

    def epoch() -> int:
        text = mark.read_text() if mark.exists() else ""
        return int(text or 0) if process.is_alive() else EPOCHS + 2

    for target in (0, 0, 3, 6, 9, 12, EPOCHS + 1):
        process = fork.Process(target=train, args=(outputs, "a"))
        process.start()
        until(partial(lambda target: epoch() >= target, target), f"epoch {target}", progress=epoch)
        process.join(chance.uniform(0, 0.02 if target else 0.4))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert process.exitcode == 0
    assert kills >= 3
    (run,) = stored(database(outputs))
    assert run.info.status == "FINISHED"
    assert_complete(database(outputs), run.info.run_id)


def test_four_processes_create_and_write_one_database(fresh: Path, empty_database: Path) -> None:
    processes = [fork.Process(target=train, args=(fresh, str(i))) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    runs = stored(database(fresh))
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    for run in runs:
        assert_complete(database(fresh), run.info.run_id)


def test_a_store_that_goes_away_is_reported_once_and_not_asked_all_the_time(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, tracker, asked = run_dir(outputs), MLflow(outputs=outputs), 0

    def refuse(*_: Any, **__: Any) -> None:
        nonlocal asked
        asked += 1
        raise ConnectionError("gone")

    begin(tracker, folder)
    from mlflow import MlflowClient

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", refuse)
        for step in range(100):
            tracker.metrics({"x": step}, step=step)
            tracker.flush()
        assert asked == 1
        tracker.finish("FAILED")
        assert asked == 2
        with pytest.raises(UserError, match="gone"):
            send_kept(outputs, None, MLflow(outputs=outputs))
    away, rest = (record.getMessage() for record in caplog.records)
    assert "MLflow is unavailable (gone)" in away
    assert f"snnexp task=sync task.run_dir='{folder}'" in rest
    assert send_kept(outputs, None, MLflow(outputs=outputs)) == {"runs": 1, "records": 101}
    (run,) = stored(database(outputs))
    assert run.info.status == "FAILED"
    assert history(database(outputs), run.info.run_id, "x") == {("x", s, float(s)): 1 for s in range(100)}


def test_sync_closes_the_dead_spares_the_living_and_can_fill_another_store(outputs: Path, tmp_path: Path) -> None:
    import fcntl

    dead, living = MLflow(outputs=outputs), MLflow(outputs=outputs)
    for tracker, name in ((dead, "dead"), (living, "living")):
        begin(tracker, run_dir(outputs, name))
        tracker.metrics({"x": 1.0}, step=1)
    with (run_dir(outputs, "living") / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert send_kept(outputs, None, MLflow(outputs=outputs)) == {"runs": 1, "records": 2}
        with pytest.raises(UserError, match="still going on"):
            send_kept(outputs, run_dir(outputs, "living"), MLflow(outputs=outputs))
    assert {run.info.run_id: run.info.status for run in stored(database(outputs))} == {
        dead.run_id: "KILLED",
        living.run_id: "RUNNING",
    }
    other = f"sqlite:///{tmp_path}/other/mlflow.db"
    assert send_kept(outputs, run_dir(outputs, "dead"), MLflow(other, outputs=outputs)) == {"runs": 1, "records": 3}
    (run,) = stored(other)
    assert run.data.metrics == {"x": 1.0}
    assert (tmp_path / "other" / "artifacts").as_posix() in run.info.artifact_uri


def test_a_run_deleted_in_the_store_is_written_anew(outputs: Path) -> None:
    from mlflow import MlflowClient

    folder = run_dir(outputs)
    for step in (1, 2):
        tracker = MLflow(outputs=outputs)
        begin(tracker, folder)
        tracker.metrics({"x": step}, step=step)
        tracker.flush()
        if step == 1:
            MlflowClient(database(outputs)).delete_run(str(tracker.run_id))
    tracker.finish("FINISHED")
    (run,) = stored(database(outputs))
    assert history(database(outputs), run.info.run_id, "x") == {("x", 1, 1.0): 1, ("x", 2, 2.0): 1}


def test_a_database_that_was_moved_away_from_its_artifacts_is_not_written(outputs: Path, tmp_path: Path) -> None:
    tracker = MLflow(outputs=outputs)
    begin(tracker, run_dir(outputs))
    (run_dir(outputs) / "x").touch()
    tracker.artifact(run_dir(outputs) / "x")
    tracker.finish("FINISHED")
    moved = outputs.rename(tmp_path / "moved")
    with pytest.raises(
        UserError, match=r"experiment=snnexp stores its artifacts in .*outputs/artifacts, which no longer"
    ):
        begin(MLflow(outputs=moved), run_dir(moved, "b"))
    begin(MLflow(experiment="other", outputs=moved), run_dir(moved, "b"))


@pytest.mark.parametrize("uri", ["file:///tmp/x", "mlruns", "ftp://host", "sqlite://", "http://", ""])
def test_a_wrong_uri_is_refused(uri: str) -> None:
    with pytest.raises(InvalidValue, match="uri"):
        MLflow(uri)


def test_a_run_begins_without_the_store_and_is_sent_later(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = f"http://me:secret@127.0.0.1:{free_port()}"
    tracker = MLflow(uri, outputs=outputs)
    begin(tracker, run_dir(outputs))
    message = r"MLflow is unavailable \(.*refused\)\. The run continues; results are kept in .*a and sent to "
    assert re.search(message + r"http://me:\*\*\*@127", caplog.text)
    assert (tracker.run_id, "not sent yet" in tracker.place) == (None, True)
    tracker.metrics({"x": 1.0}, step=1)
    tracker.finish("FINISHED")
    assert caplog.text.count("is unavailable") == 1
    assert "snnexp task=sync" in caplog.text
    with pytest.raises(UserError, match=r"http://me:\*\*\*@127.* cannot be reached: .*refused\n"):
        send_kept(outputs, None, MLflow(uri, outputs=outputs))
    store = database(outputs)
    assert send_kept(outputs, None, MLflow(store, outputs=outputs)) == {"runs": 1, "records": 3}
    (run,) = stored(store)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"x": 1.0})


def test_runs_that_begin_without_the_store_are_nested_all_the_same(outputs: Path) -> None:
    uri, store = f"http://127.0.0.1:{free_port()}", database(outputs)
    parent, child = MLflow(uri, outputs=outputs), MLflow(uri, outputs=outputs)
    begin(parent, run_dir(outputs, "z"))  # whose folder comes after that of its child
    begin(child, run_dir(outputs, "a"), parent=parent.link)
    for tracker in (child, parent):
        tracker.finish("FINISHED")
    assert send_kept(outputs, None, MLflow(store, outputs=outputs))["runs"] == 2
    runs = {run.data.tags.get("mlflow.parentRunId"): run.info.run_id for run in stored(store)}
    assert len(runs) == 2
    assert runs[None] in runs


def test_tracking_none_writes_nothing(outputs: Path) -> None:
    tracker: Tracker = Nothing()
    folder = run_dir(outputs)
    begin(tracker, folder, parent="x")
    tracker.metrics({"x": 1.0}, step=1)
    tracker.artifact(folder)
    tracker.model(torch.nn.Linear(3, 2))
    tracker.flush()
    tracker.finish("FINISHED")
    assert tracker.run_id is None
    assert not list(folder.iterdir())
    with pytest.raises(UserError, match="tracking=mlflow"):
        send_kept(outputs, None, tracker)


LOG_MODEL = """
import pathlib, sys, torch
from snnexp.tracking import MLflow
outputs = pathlib.Path(sys.argv[1])
folder = outputs / "runs" / "a"
tracker = MLflow(outputs=outputs)
tracker.start(folder, "a", {}, {})
torch.manual_seed(0)
tracker.model(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout()))
tracker.finish("FINISHED")
"""
LOAD_MODEL = """
import sys, mlflow, torch
mlflow.set_tracking_uri(f"sqlite:///{sys.argv[1]}/mlflow.db")
run = mlflow.search_runs(search_all_experiments=True, output_format="list")[0]
module = mlflow.pytorch.load_model(f"runs:/{run.info.run_id}/model")
torch.manual_seed(0)
assert isinstance(module, torch.nn.Sequential) and not module.training
assert torch.equal(module[0].weight, torch.nn.Linear(3, 2).weight)
"""


def test_the_model_loads_as_the_module_that_was_saved(outputs: Path) -> None:
    from mlflow.pytorch import load_model

    folder, tracker, module = run_dir(outputs), MLflow(outputs=outputs), torch.nn.Linear(3, 2)
    begin(tracker, folder)
    for _ in range(2):  # a resumed run does it again
        tracker.model(module)
    tracker.finish("FINISHED")
    (run,) = stored(database(outputs))
    loaded = load_model(f"{run.info.artifact_uri}/model")
    assert not loaded.training
    assert torch.equal(loaded.weight, module.weight)


@pytest.mark.slow
def test_the_model_loads_in_a_fresh_process_and_nothing_is_printed(outputs: Path) -> None:
    run_dir(outputs)
    done = subprocess.run([sys.executable, "-c", LOG_MODEL, str(outputs)], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
    subprocess.run([sys.executable, "-c", LOAD_MODEL, str(outputs)], capture_output=True, check=True)


class Server:
    """A real `mlflow server` on loopback, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.uri = f"http://127.0.0.1:{port}"
        self.command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination",
            str(folder / "artifacts"),
        ]

    def start(self) -> None:
        env = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.process = subprocess.Popen(
            self.command, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        host, port = self.uri.removeprefix("http://").split(":")

        def listens() -> bool:
            assert self.process.poll() is None, "the server ended"
            with socket.socket() as probe:
                return probe.connect_ex((host, int(port))) == 0

        until(listens, "the server to listen")

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # it and its worker: a session of their own
            self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_gets_everything_once(
    server: Server, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snnexp.tracking.writer.RETRY_AFTER", 0.2)
    monkeypatch.setattr("snnexp.tracking.writer.RETRY_SHARE", 0)
    folder, tracker = run_dir(fresh), MLflow(server.uri, outputs=fresh)
    begin(tracker, folder)
    (folder / "figure.png").write_bytes(b"png" * 1000)
    slowest = 0.0
    for epoch in range(1, 61):
        tracker.metrics({"x": epoch / 7, "nan": math.nan}, step=epoch)
        if epoch == 10:
            server.kill()
        if epoch == 30:
            tracker.artifact(folder / "figure.png")
        if epoch == 40:
            server.start()
        before = time.monotonic()
        tracker.flush()
        slowest = max(slowest, time.monotonic() - before)
    assert slowest < 2

    def back() -> bool:
        tracker.flush()
        return history(server.uri, str(tracker.run_id), "x")[("x", 60, 60 / 7)] == 1

    until(back, "what was kept back to be sent")
    server.kill()
    tracker.metrics({"x": 0.0}, step=61)
    tracker.finish("FINISHED")

    server.start()
    assert stored(server.uri)[0].info.status == "RUNNING"
    with pytest.raises(UserError, match="which this command does not name"):
        send_kept(fresh, None, MLflow(outputs=fresh))  # a run directory may be somebody else's: it chooses no server
    assert send_kept(fresh, None, MLflow(server.uri, outputs=fresh))["runs"] == 1
    (run,) = stored(server.uri)
    assert run.info.status == "FINISHED"
    expected = {("x", e, e / 7): 1 for e in range(1, 61)} | {("x", 61, 0.0): 1}
    assert history(server.uri, run.info.run_id, "x") == expected
    assert sum(history(server.uri, run.info.run_id, "nan").values()) == 60
    assert artifacts(server.uri, run.info.run_id) == {"figure.png"}
    assert not (fresh / "mlflow.db").exists()
