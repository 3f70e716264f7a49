"""docs/extending.md, followed to the letter: its files are written, its commands run; and what its readers are told."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from conftest import ROOT, SMALL, Done
from snnexp.build import build
from snnexp.config import conf_dir, without_hydra
from snnexp.record import Record
from snnexp.session import Session
from snnexp.task.base import Task

PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```", re.M | re.S)
# Of a command, what it does not set itself.
CONVERTED = ("model.width=4", "calibration.images=32", "task.layer_images=8", "trainer.epochs=1", "trainer.threads=1")
EVALUATED = ("task.val_images=20", "task.test_images=20")


def files() -> dict[str, str]:
    """Return the page's files by path."""
    return {title: text for _, title, text in BLOCK.findall(PAGE) if title}


def commands() -> list[list[str]]:
    """Return the page's commands, without the PYTHONPATH that their first word sets."""
    found = [
        shlex.split(text.replace("\\\n", " "))
        for language, title, text in BLOCK.findall(PAGE)
        if language == "sh" and not title
    ]
    assert all(words[0] == "PYTHONPATH=." for words in found)
    return [words[1:] for words in found]


def small(words: list[str]) -> list[str]:
    """Return the arguments of a command with small settings added, for those that it does not set."""
    converts = any(word.startswith("conversion=") for word in words)
    settings = (*CONVERTED, *(EVALUATED if "task=agreement" not in words else ())) if converts else SMALL
    settings = [s for s in settings if "hidden" not in s or not any("model=" in word for word in words)]
    given = {word.split("=")[0] for word in words} | ({"timesteps"} if "experiment=first" in words else set())
    return [*words, *(s for s in settings if s.split("=")[0] not in given), "tracking=none"]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder, with the page's files in it, as working directory and on the path."""
    folder = tmp_path / "reader"
    for path, text in files().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.split(".")[0] in ("my_lab", "broken")]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def repository() -> dict[Path, int]:
    """Return the files of snnexp itself, with their times of change."""
    found = (path for part in ("src", "conf", "sweeps") for path in (ROOT / part).rglob("*"))
    return {path: path.stat().st_mtime_ns for path in found if path.is_file() and "__pycache__" not in path.parts}


def test_an_addition_is_one_python_file_one_yaml_file_and_a_test() -> None:
    kinds = {"surrogate", "neuron", "dataset", "model", "conversion", "calibration", "mitigation", "task"}
    options = {Path(path).stem: Path(path).parent.name for path in files() if path.startswith("my_conf")}
    assert set(options.values()) == kinds | {"experiment"}
    for name, group in options.items():
        python = [path for path in files() if Path(path).stem in (name, f"test_{name}") and path.endswith(".py")]
        assert python == ([] if group == "experiment" else [f"my_lab/{name}.py", f"my_tests/test_{name}.py"])
    assert len(files()) == 3 * len(kinds) + 1
    assert all("snnexp.testing" in text for path, text in files().items() if path.startswith("my_tests"))


def test_the_way_to_a_conversion_is_at_most_150_lines() -> None:
    way = PAGE.partition("\n## What each group asks for")[0]
    assert "at most 150 lines" in way
    assert [line for line in way.splitlines() if line.startswith("## ")] == ["## A conversion"]
    assert len(way.splitlines()) <= 150


def test_the_commands_work_as_written_and_touch_nothing_of_snnexp(lab: Path, snnexp: Callable[..., Done]) -> None:
    before = repository()
    results = {}
    for words in commands()[:-2] + commands()[-1:]:
        assert words[0] == "snnexp"
        done = snnexp(*small(words[1:]))
        assert done.code == 0, (words, done.err)
        results[" ".join(words)] = done.out
    assert len(results) == 10
    assert all("accuracy" in out or "agreement" in out or " -m " in words for words, out in results.items())
    assert "val/agreement" in next(out for words, out in results.items() if "task=agreement" in words)
    assert repository() == before


@pytest.mark.usefixtures("environment")
def test_the_contract_tests_of_the_page_pass(lab: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (command,) = (words for words in commands() if words[0] == "python")
    assert command[1:3] == ["-m", "pytest"]
    inside = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", f"--basetemp={lab.parent / 'inside'}"]
    assert pytest.main([*command[3:], *inside]) == 0, capfd.readouterr().out
    assert re.search(r"\d\d passed", capfd.readouterr().out)


def parts(folder: Path, *overrides: str) -> tuple[Session, Task]:
    """Return session and task of a command, made but not run."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        search = f"hydra.searchpath=[file://{folder / 'my_conf'}]"
        cfg = compose("config", overrides=[search, *overrides, "tracking=none"], return_hydra_config=True)
    config = without_hydra(cfg, resolve=True)
    return Session(config, dict(cfg.hydra.runtime.choices)), build("task", config, Task)


def test_a_new_converting_task_has_name_tags_and_parameters_of_its_conversion(lab: Path, tmp_path: Path) -> None:
    session, task = parts(lab, "task=agreement", "conversion=sigma", "model=convnet", "neuron=relu", "dataset=digits")
    record = Record(session, task, tmp_path)
    assert record.name == "convnet-digits-relu-sigma-s0"
    assert {"task": "agreement", "conversion": "sigma", "calibration": "none"}.items() <= record.tags.items()
    assert record.parameters["conversion.k"] == 4.0


def test_the_objectives_of_a_new_task_are_accepted_and_others_refused(lab: Path, snnexp: Callable[..., Done]) -> None:
    ann = ("model=convnet", "neuron=relu", "dataset=digits", "timesteps=[4,8]", "tracking=none")
    for name in ("val/agreement_T5", "val/snn_accuracy_T8"):
        done = snnexp("--config-dir", "my_conf", "task=agreement", *ann, f"objective={name}")
        assert done.code == 1
        assert f"objective={name} is not allowed: it must be one of val/agreement_T4, val/agreement_T8" in done.err


BROKEN = """
import torch
from torch import nn
from snnexp.conversion.neuron import ScaledIF
from snnexp.mitigation.base import Mitigation

class Conversion:
    neuron, maxpool, per_T = ScaledIF, None, False

class Correction:
    name = "mine"

class Callable:
    def __call__(self): ...

def task(): return {"val/accuracy": 1.0}

def dataset(): return torch.zeros(4, 1, 2, 2), torch.zeros(4)
"""


@pytest.mark.parametrize(
    ("group", "target", "settings", "said"),
    [
        ("conversion", "Conversion", "", "conversion (broken.Conversion) gives a Conversion, which lacks place of"),
        ("task", "task", "", "task (broken.task) gives a dict, which is no snnexp.task.base.Task"),
        ("dataset", "dataset", "", "dataset (broken.dataset) gives a tuple, which is no snnexp.dataset.base.Data"),
        ("mitigation", "Callable", "", "gives a Callable, which is no snnexp.mitigation.base.Mitigation"),
        ("model", "Callable", "", "gives a Callable, which is no torch.nn.modules.module.Module"),
        ("neuron", "Callable", "", "gives a Callable, which is no torch.nn.modules.module.Module"),
        ("surrogate", "Callable", "", "it must be a surrogate function (a SurrogateFunctionBase of SpikingJelly)"),
        ("calibration", "Correction", "", "calibration.available.mine=Correction is not allowed"),
        ("conversion", "Absent", "", "conversion (broken.Absent) cannot be made"),
        ("conversion", "Conversion", "k: 1", "conversion (broken.Conversion) cannot be made"),
    ],
)
def test_what_lacks_a_member_is_refused_by_its_name(
    lab: Path, snnexp: Callable[..., Done], group: str, target: str, settings: str, said: str
) -> None:
    (lab / "broken.py").write_text(BROKEN)
    made = f"_target_: broken.{target}\n{settings}\n"
    if group == "calibration":
        made = f"defaults: [none]\nsteps: [mine]\navailable:\n  mine:\n    _target_: broken.{target}\n"
    (lab / "my_conf" / group / "broken.yaml").write_text(made)
    ann = ("task=convert", "model=convnet", "neuron=relu", "dataset=digits", "loss=cross_entropy")
    trained = ("dataset=digits",) if group in ("model", "neuron", "surrogate", "dataset") else ann
    arguments = [a for a in trained if not a.startswith(f"{group}=")]
    arguments = [a.replace("convert", "calibrate") if group == "calibration" else a for a in arguments]
    done = snnexp("--config-dir", "my_conf", *arguments, f"{group}=broken", "tracking=none")
    assert done.code == 1
    assert said in done.err
    assert "Traceback" not in done.err
    assert not done.runs()
