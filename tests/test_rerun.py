"""A run again from its record (`task=rerun`), and runs side by side (`task=diff`)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from conftest import SMALL, Done
from snnexp import origin

ONCE = (*SMALL, "trainer.epochs=1", "model.hidden=8")


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_run_is_run_again_from_its_folder_and_from_mlflow(snnexp: Callable[..., Done]) -> None:
    first = snnexp(*ONCE, "surrogate=sine", "seed=3")
    assert first.code == 0, first.err
    (folder,) = first.runs()
    run_id = json.loads((folder / "tracking.json").read_text())["run_id"]
    changed(folder / "config.yaml", "uri: null", "uri: http://elsewhere.example:1")  # never asked
    told = json.loads((folder / "origin.json").read_text())
    assert told["packages"]["torch"] == origin.version("torch")
    told["packages"]["torch"] = "0.1"
    (folder / "origin.json").write_text(json.dumps(told | {"data": told["data"] | {"digest": "other"}}))
    again = snnexp("task=rerun", f"task.run={folder}")
    assert again.code == 0, again.err
    assert f"rerun of {folder}: torch was 0.1, and is {origin.version('torch')} now" in again.err
    assert "the run used other data of the dataset digits_saccade" in again.err
    assert "all 17 metrics equal those of the run" in again.out
    (new,) = set(again.runs()) - {folder}
    assert (new / "result.json").exists()
    third = snnexp("task=rerun", f"task.run={run_id}")
    assert third.code == 0, third.err
    assert "code, packages and data are those of the run" in third.err
    assert "metrics equal those of the run" in third.out
    client = MlflowClient(f"sqlite:///{first.outputs / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [run.info.run_name for run in runs] == ["two_layer-digits_saccade-lif-sine-s3"] * 3
    assert sorted(run.data.tags.get("rerun_of", "") for run in runs) == sorted(["", str(folder), run_id])


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of a run that never ran."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from snnexp.config import conf_dir

    folder = tmp_path_factory.mktemp("record")
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        text = OmegaConf.to_yaml(compose("config", list(ONCE)), resolve=True)
    (folder / "config.yaml").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("snnexp.loss.MseRate", "os.system", "names os.system, which is not allowed"),
        ("snnexp.surrogate.sine.Sine", "torch.load", "names torch.load, which is not allowed"),
        ("hidden: 8", "hidden: ${oc.env:HOME}", "model.hidden=${oc.env:HOME} is not allowed: it must be a plain"),
        ("timesteps: 4", "steps: 4", "its config.yaml lacks timesteps"),
        ("hidden: 8", "hidden: http://me:***@host", "the record hides a password in model.hidden"),
        ("hidden: 8", "hidden: [", "its config.yaml cannot be read"),
    ],
)
def test_a_record_may_not_run_code(
    snnexp: Callable[..., Done], record: Path, tmp_path: Path, old: str, new: str, told: str
) -> None:
    text = (record / "config.yaml").read_text()
    old = old if old in text else "snnexp.task.train.Train"
    (tmp_path / "config.yaml").write_text(text.replace(old, new))
    done = snnexp("task=rerun", f"task.run={tmp_path}")
    assert done.code == 1
    assert told in done.err
    assert "Traceback" not in done.err
    assert not done.runs()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["task.run=/nowhere"], "task.run=/nowhere: there is no such folder, and it is not the id of an MLflow run"),
        (["task.run=."], "task.run=.: there is no record of a run (no config.yaml)"),
        (["task.run=.", "seed=1"], "seed=1 is not allowed with task=rerun"),
        ([f"task.run={'0a' * 16}"], "nothing was logged yet"),
    ],
)
def test_a_run_that_cannot_be_run_again_is_refused(
    snnexp: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = snnexp("task=rerun", *arguments)
    assert done.code == 1
    assert told in done.err
    assert "Traceback" not in done.err


def test_the_diff_of_a_checkout_has_new_files_and_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "old.py").write_text("one\n")
    who = ("-c", "user.name=n", "-c", "user.email=e@e")
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    assert origin.diff(tmp_path) == ""
    (tmp_path / "src" / "old.py").write_text("two\n")
    (tmp_path / "src" / "new.py").write_text("three\n")
    (tmp_path / "outside.txt").write_text("four\n")
    text = origin.diff(tmp_path)
    assert "-one\n+two\n" in text
    assert "+three\n" in text
    assert "four" not in text
    monkeypatch.setattr(origin, "LIMIT", 100)
    (tmp_path / "src" / "new.py").write_text("x" * 101)
    assert len(origin.diff(tmp_path)) < 160


def test_what_differs_is_told() -> None:
    code = {"version": "1", "commit": "a", "diff": ""}
    now = {"python": "3.11", "packages": {"torch": "2"}, "code": code}
    assert origin.differences(now, now) == []
    assert origin.differences({}, now) == [
        "the run kept no record of its code and packages, so they cannot be compared"
    ]
    assert origin.differences(now | {"code": code | {"commit": "b"}}, now) == ["commit was b, and is a now"]
    (line,) = origin.differences(now | {"code": code | {"diff": "x\n"}}, now)
    assert line == "the uncommitted changes of the code differ (those of the run are in its origin.json)"


def test_runs_are_shown_side_by_side(snnexp: Callable[..., Done], record: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    text = (record / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("hidden: 8", "hidden: 9"))
    (other / "result.json").write_text('{"val/accuracy": 0.123456789}')
    done = snnexp("task=diff", f"task.runs=[{record},{other}]")
    assert done.code == 0, done.err
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.out.splitlines() if "│" in line]
    assert rows == [["model.hidden", "8", "9"], ["val/accuracy", "-", "0.123456789"]]
    assert "code, packages and data: not recorded for run 1, run 2" in done.out
    refused = snnexp("task=diff", f"task.runs={record}")
    assert refused.code == 1
    assert "is not allowed: it must be a list of two or more folders or MLflow ids of runs" in refused.err
