"""Unusual places and surroundings: paths with any characters, moved outputs, no home, no locale, little memory."""

from __future__ import annotations

import json
import os
import pwd
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest

import stored
from conftest import SMALL, Done, start
from snnexp.address import SQLITE_PATH, checked_uri, database, sqlite
from snnexp.config import quoted
from snnexp.errors import UserError, explained
from snnexp.run import _check_surroundings
from snnexp.sweep import summary
from snnexp.terminal import closing_table, rows_table
from snnexp.tracking import MLflow, Store

ODD = "q?x=1 %20 [b]bold[i] $d :smile: 'é日' #h&;"


@pytest.fixture
def odd(tmp_path: Path, empty_database: Path) -> Path:
    """An outputs folder with a store, whose name has all that URIs, shells, rich and YAML treat in a special way."""
    outputs = tmp_path / ODD
    outputs.mkdir()
    shutil.copy(empty_database, outputs / "mlflow.db")
    return outputs


def trained(outputs: Path) -> str:
    """Log a run with best.pt, a table and a figure; return its id."""
    tracker = MLflow(outputs=outputs)
    folder = outputs / "runs" / "2026-01-01" / "1"
    folder.mkdir(parents=True)
    tracker.start(folder, "a run", {"seed": 0}, stored.TRAINED)
    (folder / "best.pt").write_bytes(b"weights")
    (folder / "tables").mkdir()
    (folder / "tables" / "ranking.csv").write_text("a,b\n1,2\n")
    for name in ("best.pt", "tables"):
        tracker.artifact(folder / name)
    tracker.metrics({"test/accuracy": 0.5}, step=1)
    tracker.finish("FINISHED")
    return str(tracker.run_id)


def test_outputs_in_a_folder_of_any_name_and_after_a_move(odd: Path, tmp_path: Path) -> None:
    run_id = trained(odd)
    assert [p.name for p in tmp_path.iterdir()] == [ODD]  # nothing beside it
    assert (odd / "artifacts" / run_id / "artifacts" / "best.pt").read_bytes() == b"weights"
    stored.report(odd, name="before")
    moved = tmp_path / "moved 100% ?"
    odd.rename(moved)
    stored.report(moved, name="after")
    for name in ("before", "after"):
        page = (moved / "reports" / f"{name}.html").read_text(encoding="utf-8")
        assert "<caption>ranking</caption>" in page
        assert 'href="../runs/2026-01-01/1"' in page
    (tmp_path / "to").mkdir()
    MLflow(outputs=moved).weights(run_id, tmp_path / "to")  # checkpoint=runs:/<run id>
    assert (tmp_path / "to" / "best.pt").read_bytes() == b"weights"
    assert not odd.exists()


def test_files_that_were_not_moved_along_are_a_sentence(odd: Path, tmp_path: Path) -> None:
    run_id = trained(odd)
    odd.rename(tmp_path / "moved")
    (tmp_path / "moved" / "artifacts").rename(tmp_path / "elsewhere")
    said = (
        rf"stored in {tmp_path}.*/artifacts, which no longer exists, and are not in {tmp_path}/moved/artifacts either"
    )
    with pytest.raises(UserError, match=said):
        MLflow(outputs=tmp_path / "moved").weights(run_id, tmp_path)


def test_a_moved_sweep_is_found_again(tmp_path: Path) -> None:
    for folder, job in (("earlier/0", {}), ("sweep/0", {"folder": "."}), ("sweep/1", {"folder": "../../earlier/0"})):
        (tmp_path / "outputs" / folder).mkdir(parents=True)
        for name, content in {"job.json": job, "result.json": {"val/accuracy": 0.5}}.items():
            given = {"name": folder, "varied": {}, "overrides": []} if name == "job.json" else {}
            (tmp_path / "outputs" / folder / name).write_text(json.dumps(content | given))
    (tmp_path / "outputs").rename(tmp_path / "moved")
    found = summary.children(tmp_path / "moved" / "sweep")
    assert [child.metrics for child in found] == 2 * [{"val/accuracy": 0.5}]


@pytest.mark.slow
def test_a_sweep_writes_relative_folders(tmp_path: Path, snnexp: Callable[..., Done]) -> None:
    folders = []
    for _ in range(2):
        done = snnexp("-m", *SMALL, "trainer.epochs=1", "seed=0,1", "tracking=none", "resume=true")
        assert done.code == 0, done.err
        latest = max(done.outputs.glob("multirun/*/*"))
        folders.append(json.loads((latest / "1" / "job.json").read_text())["folder"])
        assert (latest / "1" / folders[-1] / "result.json").exists()
    assert folders[0] == "."
    assert folders[1].startswith("../../")


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a%b", "a#b", "a b", "é日", "[b]", "x&y=z"])
def test_the_address_of_an_sqlite_file_is_escaped(name: str) -> None:
    path = Path("/tmp") / name / "mlflow.db"
    assert database(sqlite(path)) == path
    assert checked_uri(sqlite(path)) == sqlite(path)
    assert unquote(sqlite(path)) == f"sqlite:///{path}"


def test_a_path_too_long_for_sqlite_is_a_sentence(snnexp: Callable[..., Done], tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["x" * 200] * 3)
    done = snnexp(*SMALL, f"outputs_dir={deep}")
    assert done.code == 1
    assert f"bytes, and SQLite opens none of more than {SQLITE_PATH}: choose a shorter outputs_dir" in done.err
    assert "Traceback" not in done.err


def test_the_longest_path_works(tmp_path: Path, empty_database: Path) -> None:
    rest = SQLITE_PATH - len("/mlflow.db") - len(str(tmp_path)) - 1
    outputs = tmp_path / ("x" * 200) / ("y" * (rest - 201))
    outputs.mkdir(parents=True)
    shutil.copy(empty_database, outputs / "mlflow.db")
    assert len(str(outputs / "mlflow.db")) == SQLITE_PATH
    assert Store(MLflow(outputs=outputs), "a test").runs(["Default"]) == []


def test_a_reference_in_a_path_is_refused(snnexp: Callable[..., Done], tmp_path: Path) -> None:
    for key in ("outputs_dir", "cache_dir"):
        done = snnexp(*SMALL, f"{key}={quoted(str(tmp_path / 'a${b}'))}", "tracking=none")
        assert "a${b} is not allowed: ${ in a path would be read as a reference to another key" in done.err
        assert "Traceback" not in done.err


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    closing_table(f"train: {ODD}", {ODD: 0.5}, {"results": f"/tmp/{ODD}"})
    rows_table(ODD, [{ODD: ODD}])
    out = capsys.readouterr().out
    assert out.count(ODD) == 6


def test_a_deleted_working_directory_is_a_sentence(
    snnexp: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit, match="the working directory no longer exists: change to another one"):
        _check_surroundings()


def test_a_user_without_account_has_a_home_and_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    _check_surroundings()
    assert (Path.home(), os.environ["LOGNAME"]) == (Path("/"), f"uid{os.getuid()}")


ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


def test_an_ascii_terminal_shows_what_it_can() -> None:
    program = "from snnexp.run import _check_surroundings as check; check(); print('0.9 \\xb1 0.1')"
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | ASCII, capture_output=True)
    assert done.stdout == b"0.9 \\xb1 0.1\n"


@pytest.mark.slow
def test_a_report_in_an_ascii_locale(tmp_path: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, tmp_path)
    trained(tmp_path)
    command = [sys.executable, "-m", "snnexp.run", "task=report", f"outputs_dir={tmp_path}"]
    done = subprocess.run(command, env=os.environ | ASCII, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "·" in (tmp_path / "reports" / "snnexp.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_a_sentence(error: Exception) -> None:
    told = explained(error)
    assert told is not None
    assert str(told).startswith("not enough memory: ")
    assert "ulimit -v" in str(told)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "/tmp/x"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_is_a_sentence(error: Exception) -> None:
    assert "Make room in outputs_dir, cache_dir or TMPDIR, then repeat the command" in str(explained(error))


def test_other_errors_are_not_explained() -> None:
    assert explained(ValueError("a wrong value")) is None
    assert explained(UserError("killed by SIGKILL (out of memory?)")) is None


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
def test_a_limit_too_small_for_torch_is_a_sentence(environment: dict[str, str]) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))

    done = subprocess.run(
        [sys.executable, "-m", "snnexp.run", *SMALL, "tracking=none"],
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    assert done.returncode == 1
    assert "not enough memory: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error(environment: dict[str, str]) -> None:
    process = start(environment, "--help")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait()) == ("", 0)
