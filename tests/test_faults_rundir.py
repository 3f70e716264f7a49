"""Run directories that are broken, half written, or were made by somebody who means harm."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from snnexp.config import fingerprint
from snnexp.errors import UserError
from snnexp.files import odd, replace
from snnexp.journal import Journal
from snnexp.rundir import RunDir, write_json
from snnexp.task.sync import send_kept
from snnexp.tracking import MLflow
from stored import TRAINED, logged, report

CONFIG: dict[str, Any] = {"seed": 0, "resume": True, "tracking": {}}


@pytest.fixture
def outputs(tmp_path: Path, empty_database: Path) -> Path:
    (tmp_path / "outputs").mkdir()
    shutil.copy(empty_database, tmp_path / "outputs")
    return tmp_path / "outputs"


def run_dir(outputs: Path, name: str = "a") -> Path:
    folder = outputs / "runs" / "day" / name
    folder.mkdir(parents=True)
    return folder


def kept(outputs: Path, name: str) -> Path:
    """A run whose process died before anything but its beginning was sent."""
    folder, tracker = run_dir(outputs, name), MLflow(outputs=outputs)
    tracker.start(folder, name, {}, {})
    tracker.metrics({"x": 1.0}, step=1)
    return folder


def stored(outputs: Path) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{outputs}/mlflow.db")
    return {
        run.info.run_name: run for run in client.search_runs([e.experiment_id for e in client.search_experiments()])
    }


class Server(HTTPServer):
    """A server that keeps the headers of each request and answers 500."""

    def __init__(self) -> None:
        self.headers: list[str] = []

        class Answer(BaseHTTPRequestHandler):
            def do_GET(answer) -> None:
                self.headers.append(str(answer.headers))
                answer.send_response(500)
                answer.end_headers()
                answer.wfile.write(b"<html>no")

            do_POST = do_GET

            def log_message(*_: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Answer)
        self.uri = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


# whom a run directory may send to, and what


def test_the_token_goes_only_to_an_address_that_the_command_names(
    outputs: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "my-token")
    folder = kept(outputs, "foreign")
    Journal(folder).note(uri=server.uri)
    before = (folder / "tracking.jsonl").read_bytes()
    for one in (folder, None):
        with pytest.raises(UserError, match=f"task.run_dir='{folder}' tracking.uri='{server.uri}'"):
            send_kept(outputs, one, MLflow(outputs=outputs))
    assert server.headers == []
    assert (folder / "tracking.jsonl").read_bytes() == before

    begun = MLflow(outputs=outputs)  # resuming goes to the configured store
    begun.start(folder, "foreign", {}, {})
    begun.finish("FINISHED")
    assert server.headers == []
    assert Journal(folder).state["uri"] == f"sqlite:///{outputs}/mlflow.db"

    with pytest.raises(UserError, match=r"cannot be reached: .*500 error responses"):  # named, so it is asked
        send_kept(outputs, folder, MLflow(server.uri, outputs=outputs))
    assert "Bearer my-token" in server.headers[0]


def test_a_run_of_somebody_else_in_the_same_store_is_not_written_to(outputs: Path) -> None:
    mine, foreign = kept(outputs, "mine"), kept(outputs, "foreign")
    Journal(foreign).note(run_id=Journal(mine).state["run_id"], sent=0)
    Journal(foreign).append(tags={"spoilt": "yes"})
    send_kept(outputs, foreign, MLflow(outputs=outputs))
    runs = stored(outputs)
    assert "spoilt" not in runs["mine"].data.tags
    assert runs["foreign"].data.tags["spoilt"] == "yes"


def test_artifacts_outside_of_the_run_directory_are_not_sent(outputs: Path) -> None:
    folder, outside = kept(outputs, "a"), outputs / "runs" / "day" / "outside"
    outside.write_text("my key")
    (folder / "inside").write_text("mine")
    journal, written = Journal(folder), (folder / "tracking.jsonl").read_bytes()
    for name, to in [
        (str(outside), ""),
        ("../outside", ""),
        ("figures/../../outside", ""),
        ("inside", "../../up"),
        ("inside", "/up"),
    ]:
        journal.file.write_bytes(written)
        journal.append(artifact=name, folder=to)
        with pytest.raises(UserError, match="not a file or folder of that run directory"):
            send_kept(outputs, None, MLflow(outputs=outputs))
    sent = [path.name for path in (outputs / "artifacts").rglob("*") if path.is_file()]
    assert sent == []


def test_a_task_is_told_at_once_of_an_artifact_that_could_not_be_sent(outputs: Path) -> None:
    folder, tracker = run_dir(outputs), MLflow(outputs=outputs)
    tracker.start(folder, "a", {}, {})
    (folder / "link").symlink_to(outputs / "mlflow.db")
    with pytest.raises(UserError, match="names an artifact that is not a file or folder of that run directory: link"):
        tracker.artifact(folder / "link")
    tracker.finish("FINISHED")


NAMES = (
    ".lock",
    "config.yaml",
    "run.json",
    "tracking.json",
    "tracking.jsonl",
    "last.tmp12",
    "tables/a.csv",
    "run.json.tmp",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_links_and_pipes_are_neither_followed_nor_waited_for(outputs: Path, name: str, kind: str) -> None:
    folder, victim = run_dir(outputs), outputs / "victim"
    write_json(
        folder / "run.json", {"status": "KILLED", "fingerprint": fingerprint(CONFIG), "created": 1.0, "config": CONFIG}
    )
    (folder / "tracking.jsonl").write_text("")
    victim.mkdir() if kind == "folder" else kind == "dangling" or victim.write_text("precious")
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(victim)

    config = CONFIG | {"outputs_dir": str(outputs)}
    with pytest.raises(UserError):
        RunDir.open(outputs / "new", config | {"resume": str(folder)})
    with RunDir.open(outputs / "new", config) as run:
        assert run.path == outputs / "new"
    if (folder / "tracking.jsonl").exists():
        with pytest.raises(UserError, match=r"could not be sent \(1\)"):
            send_kept(outputs, None, MLflow(outputs=outputs))
    assert odd(folder) == path
    if kind == "link":
        assert victim.read_text() == "precious"
    elif kind == "dangling":
        assert not victim.exists()
    elif kind == "folder":
        assert list(victim.iterdir()) == []


def test_what_is_written_replaces_a_link_and_leaves_its_target(tmp_path: Path) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    run.mkdir()
    victim.write_text("precious")
    for name in ("config.yaml", f"config.yaml.tmp{os.getpid()}", "config.yaml.tmp", "tracking.jsonl"):
        (run / name).symlink_to(victim)
    replace(run / "config.yaml", "mine")
    for write in (Journal(run).mend, lambda: Journal(run).append(tags={})):
        with pytest.raises(OSError, match="symbolic links"):
            write()
    assert victim.read_text() == "precious"
    assert (run / "config.yaml").read_text() == "mine"
    assert not (run / "config.yaml").is_symlink()


# broken neighbours

BROKEN = {
    "null": b"null",
    "latin-1": '{"status": "é"}'.encode("latin-1"),
    "list": b"[1]",
    "empty": b"",
    "nothing": b"{}",
    "deep": b"[" * 100_000,
    "types": json.dumps({"status": 1, "fingerprint": fingerprint(CONFIG), "created": "x", "config": []}).encode(),
}


def test_resume_passes_over_broken_runs_and_says_so_once(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = CONFIG | {"outputs_dir": str(outputs)}
    good = {"status": "KILLED", "fingerprint": fingerprint(config), "created": 1.0, "config": config}
    for name, content in BROKEN.items():
        (run_dir(outputs, name) / "run.json").write_bytes(content)
    write_json(run_dir(outputs, "good") / "run.json", good)
    finished = run_dir(outputs, "no-result")
    write_json(finished / "run.json", good | {"status": "FINISHED", "created": 2.0})
    (finished / "result.json").touch()
    (run_dir(outputs, "lock") / ".lock").mkdir()  # cannot be locked, as if it were another user's
    write_json(outputs / "runs" / "day" / "lock" / "run.json", good | {"created": 3.0})
    with RunDir.open(outputs / "new", config) as run:
        assert run.path.name == "good"
    (record,) = caplog.records
    for name in (*BROKEN, "lock"):
        assert record.getMessage().count(f"/day/{name}/") == 1
    with pytest.raises(UserError, match=r"day/null/run\.json cannot be read: it holds no JSON object"):
        RunDir.open(outputs / "new", config | {"resume": str(outputs / "runs" / "day" / "null")})
    caplog.clear()
    shutil.rmtree(outputs / "runs" / "day" / "good")
    with RunDir.open(outputs / "other", config) as run:
        assert run.path.name == "other"
    assert f"{finished}/result.json cannot be read" in caplog.text


def test_sync_sends_all_it_can_and_fails_at_the_end(outputs: Path) -> None:
    first, last = kept(outputs, "a"), kept(outputs, "z")
    odd = json.dumps({"key": "0" * 32, "uri": "sqlite:foo", "experiment": "x", "run_id": None, "sent": 0}).encode()
    negative = json.dumps({"key": "0" * 32, "uri": "", "experiment": "x", "run_id": None, "sent": -5}).encode()
    states = {"empty": b"", "list": b"[]", "key": b'{"key": "a\' or 1"}', "latin": b"\xe9", "address": odd}
    states |= {"negative": negative}
    for name, state in states.items():
        folder = run_dir(outputs, name)
        (folder / "tracking.jsonl").write_text("")
        (folder / "tracking.json").write_bytes(state)
    shutil.copytree(first, outputs / "runs" / "day" / "values")
    (outputs / "runs" / "day" / "values" / "tracking.jsonl").write_text(
        '{"time": 1, "metrics": {"x": "y"}, "step": 1}\n'
    )
    shutil.copytree(first, outputs / "runs" / "day" / "lock")
    (outputs / "runs" / "day" / "lock" / ".lock").mkdir()
    (run_dir(outputs, "folder") / "tracking.jsonl").mkdir()
    with pytest.raises(UserError) as told:
        send_kept(outputs, None, MLflow(outputs=outputs))
    lines = str(told.value).splitlines()
    assert lines[:2] == ["sent to MLflow: 4 records of 2 runs", "could not be sent (9):"]
    assert len(lines) == 11
    for name in (*states, "values", "lock", "folder"):
        assert sum(f"/day/{name}" in line for line in lines) == 1
    assert [stored(outputs)[name].info.status for name in ("a", "z")] == ["KILLED", "KILLED"]
    assert Journal(last).ended()


def test_sync_stops_where_the_store_itself_is_away(outputs: Path, server: Server) -> None:
    for name in "abc":
        kept(outputs, name)
    (run_dir(outputs, "0") / "tracking.jsonl").mkdir()
    with pytest.raises(UserError) as told:
        send_kept(outputs, None, MLflow(server.uri, outputs=outputs))
    lines = str(told.value).splitlines()
    assert lines[:2] == ["sent to MLflow: 0 records of 0 runs", "could not be sent (1):"]
    assert "/day/0" in lines[2]
    assert re.match("no other run was tried, because of the store: tracking.uri=.* cannot be reached", lines[3])
    assert len(server.headers) == 2  # one run, and the question whether the server is there


def test_a_report_leaves_out_what_is_broken_and_fails_at_the_end(outputs: Path) -> None:
    logged(outputs, "a", TRAINED, {"seed": 0}, {"test/accuracy": 0.5}, files=["tables", "figures"])
    figure, *_ = sorted((outputs / "artifacts").rglob("*.png"))
    figure.write_bytes(b"")
    table, *_ = sorted((outputs / "artifacts").rglob("*.csv"))
    table.write_bytes(b"surrogate\n\xe9\xff\n")
    state, *_ = sorted((outputs / "runs").rglob("tracking.json"))
    state.write_bytes(b"")
    with pytest.raises(UserError) as told:
        report(outputs)
    _, *lines = str(told.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"  {state} cannot be read")
    assert f"  figures/{figure.name} of run {figure.parents[2].name}: it is not a PNG image" in lines
    assert (outputs / "reports" / "lab.html").stat().st_size > 1000


# full disks and leftovers


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Limit the size of files, so that a write is short and the next one fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_journal_survives_a_short_write(
    tmp_path: Path, limited: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path)
    for step in range(3):
        journal.append(metrics={"x": step}, step=step)
    size = journal.file.stat().st_size
    limited(size + 10)
    with pytest.raises(OSError, match="too large"):
        journal.append(metrics={"x": 3}, step=3)
    limited(resource.RLIM_INFINITY)
    assert journal.file.stat().st_size == size + 10
    for step in (4, 5):
        journal.append(metrics={"x": step}, step=step)
    again = Journal(tmp_path)
    assert again.logged() == {("x", step) for step in (0, 1, 2, 4, 5)}
    assert caplog.messages == [f"{again.file}: a line was not written completely; it is left out"]
    limited(again.file.stat().st_size + 10)
    with pytest.raises(OSError, match="too large"):
        again.append(metrics={"x": 6}, step=6)
    limited(resource.RLIM_INFINITY)
    again.mend()
    assert caplog.messages[1:] == [f"{again.file}: the last line was not written completely; it is removed"]
    again.append(metrics={"x": 6}, step=6)
    assert [r["step"] for records, _ in again.batches(0) for r in records] == [0, 1, 2, 4, 5, 6]


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, limited: Callable[[int], None]) -> None:
    write_json(tmp_path / "run.json", {"status": "RUNNING"})
    limited(5)
    with pytest.raises(OSError, match="too large"):
        write_json(tmp_path / "run.json", {"status": "FINISHED"})
    limited(resource.RLIM_INFINITY)
    assert json.loads((tmp_path / "run.json").read_text()) == {"status": "RUNNING"}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_leftovers_are_removed_when_the_run_is_opened_again(outputs: Path) -> None:
    config, left = CONFIG | {"outputs_dir": str(outputs)}, {"last.pt", "notes.tmp", "0/.lock", "0/last.tmp7"}
    with RunDir.open(outputs / "runs" / "day" / "a", config) as run:
        for name in ("last.tmp4242", "run.json.tmp9", "tracking.json.tmp17", "ann/best.tmp3", *left):
            (run.path / name).parent.mkdir(exist_ok=True)
            (run.path / name).touch()
    with RunDir.open(outputs / "new", config) as again:
        assert again.path == run.path
        names = {str(path.relative_to(again.path)) for path in again.path.rglob("*") if path.is_file()}
    assert names == {"run.json", ".lock", *left}  # a job of a sweep may be active


def test_a_run_whose_state_is_lost_is_tracked_as_a_new_one(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = kept(outputs, "a")
    (folder / "tracking.json").write_bytes(b"")
    tracker = MLflow(outputs=outputs)
    tracker.start(folder, "again", {}, {})
    tracker.finish("FINISHED")
    assert "tracking.json cannot be read" in caplog.text
    assert stored(outputs)["again"].data.metrics == {"x": 1.0}
