"""Names and configs of somebody else: reports show them as they are, and configs of runs name known classes only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf
from torch import nn

from conftest import SMALL, Done, start
from snnexp.build import build
from snnexp.errors import UserError
from snnexp.report import html, markdown
from snnexp.report.document import Link, Name, Paragraph, Section, Table
from snnexp.report.lab import Lab, lab
from snnexp.sweep import summary
from snnexp.sweep.command import _trust
from snnexp.task.compare_surrogates import _settings
from snnexp.trust import allowed, check_targets, guard

BAD = 'a|b ` [x](http://evil) <img src=x onerror=alert(1)> &lt;b&gt; $x$ ~~y~~ "q"\n\n# head\n- item'
SHOWN = " ".join(BAD.split())


class Seen(HTMLParser):
    """The text, the tags and the addresses of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.links, self.anchors = "", set[str](), list[str](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [str(value) for key, value in attributes if key == "href"]
        self.anchors += [str(value) for key, value in attributes if key == "id"]

    def handle_data(self, data: str) -> None:
        self.text += data


def document() -> Section:
    inner = Section(BAD, BAD, [Table(BAD, [BAD], [[BAD], [[Link(BAD, "../a (b)|c")]]])])
    return Section("top", BAD, [Paragraph(["best: ", Name(BAD), " with `code`"]), Paragraph([inner.link]), inner])


def test_a_page_shows_names_as_they_are() -> None:
    seen = Seen(html.written(document()))
    assert not seen.tags & {"img", "i"}
    assert seen.text.count(BAD) == 9
    assert set(seen.links) == {f"#{seen.anchors[1]}", "../a (b)|c"}
    assert re.fullmatch(r"[\w%.~-]+", seen.anchors[1])


def test_markdown_shows_names_as_they_are() -> None:
    text = markdown.written(document(), "figures")
    shown = re.sub(r'<a id="[^"]*"></a>|\]\([^()]*\)', "", text)  # without anchors and addresses
    marks = re.sub(r"\\[^\w\s]", "", shown)  # what is left after an escape is read as Markdown
    assert not re.search(r"<img|onerror=alert\(1\)>|&lt;|~~|\$|evil\)\]", marks)
    assert marks.count("`") == 2  # of `code`
    assert not [line for line in text.splitlines() if line.startswith(("# head", "- item"))]
    unescaped = re.sub(r"\\([^\w\s])", r"\1", text)
    assert unescaped.count(SHOWN) == 8
    assert "](../a%20%28b%29%7Cc)" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 2 for row in rows)


def test_an_experiment_names_no_file_elsewhere() -> None:
    assert lab("../../../../conf/task/report") == Lab("../../../../conf/task/report")


def test_the_table_of_a_sweep_keeps_its_columns() -> None:
    text = summary.markdown([{"surrogate": "a|b\nc", "n": 1}])
    assert text == "| surrogate | n |\n| --- | --- |\n| a\\|b c | 1 |\n"


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "another package": ({"_target_": "joblib.load", "filename": "x"}, "names joblib.load, which is not allowed"),
    "pandas": ({"_target_": "pandas.read_pickle"}, "names pandas.read_pickle, which is not allowed"),
    "a function of torch": ({"_target_": "torch.load", "f": "x"}, "names torch.load, which is not allowed"),
    "a class of another kind": ({"_target_": "torch.nn.Linear"}, "must be a SurrogateFunctionBase class of snnexp"),
    "a package that begins alike": ({"_target_": "torchevil.A"}, "names torchevil.A"),
    "nested": (
        {"_target_": "snnexp.surrogate.sine.Sine", "alpha": [{"a": {"_target_": "os.system"}}]},
        "names os.system",
    ),
    "an interpolation": (
        {"_target_": "snnexp.surrogate.sine.Sine", "alpha": "${oc.decode:'{_target_: os.system}'}"},
        "it must be a plain value, without ${",
    ),
    "a program": ({"_target_": "snnexp.__main__.main"}, "not allowed"),
}


def sweep_of(folder: Path, surrogate: dict[str, Any]) -> Path:
    """A sweep of one finished run, with this surrogate."""
    run = folder / "sweep" / "0"
    run.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create({"seed": 0, "surrogate": surrogate}), run / "config.yaml")
    torch.save({"history": []}, run / "last.pt")
    for name, content in {"result.json": {}, "job.json": {"folder": "."}}.items():
        (run / name).write_text(json.dumps(content))
    return folder / "sweep"


@pytest.mark.parametrize("case", HOSTILE)
def test_a_run_of_somebody_else_names_known_surrogates_only(case: str, tmp_path: Path) -> None:
    surrogate, message = HOSTILE[case]
    sweep = sweep_of(tmp_path, surrogate)
    with pytest.raises(UserError, match=rf"{sweep}/0/config\.yaml") as refused:
        _settings(sweep)
    assert message in str(refused.value)


def test_the_refusal_reaches_the_user(snnexp: Callable[..., Done], tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"_target_": "joblib.load", "filename": "x"})
    done = snnexp(*SMALL, "task=compare_surrogates", f"task.sweep={sweep}", "tracking=none")
    assert (done.code, done.runs()) == (1, [])
    assert "names joblib.load, which is not allowed: it must be a SurrogateFunctionBase class of snnexp" in done.err
    assert "If you trust joblib with your account, set SNNEXP_TRUSTED=joblib" in done.err
    assert "Traceback" not in done.err


class Mine(nn.Module):
    """A class of the user's own package."""


def test_own_code_may_be_named_and_installed_packages_with_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    assert allowed("torch.nn.ReLU", nn.Module, "config.yaml") is nn.ReLU
    check_targets({"_target_": "test_faults_trust.Mine", "alpha": 1.0}, nn.Module, "config.yaml")
    for name in ("test_faults_trust.nn.ReLU", "test_faults_trust.load_it", "test_faults_trust.Callable"):
        with pytest.raises(UserError, match=f"names {name}, which is not allowed"):
            allowed(name, nn.Module, "config.yaml")
    flow = "lightning_fabric.wrappers._FabricModule"
    with pytest.raises(UserError, match="set SNNEXP_TRUSTED=lightning_fabric "):
        allowed(flow, nn.Module, "config.yaml")
    monkeypatch.setenv("SNNEXP_TRUSTED", "lightning_fabric, numpy")
    assert issubclass(allowed(flow, nn.Module, "config.yaml"), nn.Module)


load_it = joblib.load
JOBLIB = "names joblib.load, which is not allowed"
REFUSED: dict[str, tuple[str, str, str]] = {
    "an experiment": ("experiment/x", "model: {_target_: joblib.load, filename: x}", JOBLIB),
    "another group": ("optimizer/x", "_target_: pandas.read_pickle", "names pandas.read_pickle"),
    "nested in a list": ("experiment/x", "model: {a: [1, {_target_: joblib.load}]}", JOBLIB),
    "a function of torch": ("experiment/x", "model: {_target_: torch.load, f: x}", "names torch.load"),
    "a function of torch in own code": ("experiment/x", "model: {_target_: test_faults_trust.load_it}", "load_it"),
    "a private part": ("experiment/x", "model: {_target_: torch._dynamo.OptimizedModule}", "names torch._dynamo"),
    "the standard library": ("experiment/x", "model: {_target_: subprocess.run, args: [id]}", "names subprocess.run"),
    "a reference": ("experiment/x", "a: joblib.load\nmodel: {_target_: '${a}'}", r"names ${a}"),
    "a dictionary in a text": ("experiment/x", 'model: "${oc.select:b,{_target_: joblib.load}}"', "alone"),
    "a decoded text": ("experiment/x", "model: \"${oc.decode:'{a: b}'}\"", "a reference is plain"),
    "a pieced-together reference": (
        "experiment/x",
        "d: decode\nmodel: \"${oc.${d}:'{a: b}'}\"",
        "a reference is plain",
    ),
    "arguments by place": ("tracking/x", "_target_: snnexp.tracking.MLflow\n_args_: ['http://evil']", "by name"),
    "a module's attribute": ("experiment/x", "model: {_target_: torch.hub.torch.load}", "names torch.hub.torch.load"),
    "another module's attribute": ("experiment/x", "model: {_target_: test_faults_trust.joblib.load}", "joblib.load"),
    "tests of Python": ("experiment/x", "model: {_target_: test.support.run_in_subinterp}", "names test.support"),
    "a text in the defaults": ("experiment/x", "defaults: ['/optimizer/log@hydra.job_logging']", "leads into Hydra"),
    "a folder like a package": ("hydra.job_logging/x", "handlers: {a: {class: a.b}}", "sets a part of hydra"),
    "commands of a launcher": ("sweep/x", "hydra: {launcher: {setup: [id]}}", "sets hydra.launcher.setup"),
    "a server among the values of a sweep": (
        "sweep/x",
        "# @package _global_\nhydra: {sweeper: {space: {tracking.uri: \"choice('http://a','http://b')\"}}}",
        "name a server on the command line",
    ),
    "a value of a sweep": (
        "sweep/x",
        "# @package _global_\nhydra: {sweeper: {params: {model._target_: joblib.load}}}",
        JOBLIB,
    ),
    "a value of a sweep in a text": (
        "sweep/x",
        "# @package _global_\nhydra: {sweeper: {params: {model: 'choice({_target_:joblib.load})'}}}",
        "stand under the key _target_ alone",
    ),
    "a key of Hydra in a sweep": (
        "sweep/x",
        "# @package _global_\nhydra: {sweeper: {params: {hydra.job.env_set.A: 'a,b'}}}",
        "keys of Hydra stand in the section hydra alone",
    ),
    "a callback": ("experiment/x", "# @package _global_\nhydra: {callbacks: {a: {b: c}}}", "sets hydra.callbacks"),
    "the environment": (
        "experiment/x",
        "# @package _global_\nhydra: {job: {env_set: {A: b}}}",
        "sets hydra.job.env_set",
    ),
    "a logger": ("experiment/x", "# @package hydra.job_logging\nhandlers: {a: {class: a.b}}", "sets a part of hydra"),
    "an option of Hydra": ("hydra/job_logging/x", "handlers: {a: {class: a.b}}", "sets a part of hydra"),
    "a package in the defaults": (
        "experiment/x",
        "defaults:\n  - /optimizer@hydra.callbacks.a: adam",
        "leads into Hydra",
    ),
    "a tracking server": (
        "experiment/x",
        "# @package _global_\ntracking: {uri: http://evil}",
        "tracking.uri=http://evil is",
    ),
    "a database": (
        "sweep/x",
        "# @package _global_\nhydra: {sweeper: {storage: 'postgresql://evil/db'}}",
        "storage=postgresql://evil/db is not allowed: name a server on the command line",
    ),
}


def loaded(folder: Path, name: str, text: str) -> ConfigResult:
    """What Hydra reads from an option of a folder of somebody else."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)
    return guard()("command-line", f"file://{folder}").load_config(name)


@pytest.mark.parametrize("case", REFUSED)
def test_a_configuration_file_of_somebody_else_runs_no_code(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, text, message = REFUSED[case]
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        loaded(tmp_path, name, text)
    assert f"{tmp_path}/{name}" in str(refused.value)
    monkeypatch.setenv("SNNEXP_TRUSTED", str(tmp_path))
    assert loaded(tmp_path, name, text)


ALLOWED = {
    "own code": "neuron: {_target_: test_faults_trust.Mine}",
    "snnexp's own": "model: {_target_: snnexp.model.mlp.MLP, hidden: [1]}",
    "a module of torch": "neuron: {_target_: torch.nn.Hardtanh}",
    "an optimiser": "optimizer: {_target_: torch.optim.RAdam}",
    "a schedule": "scheduler: {_target_: torch.optim.lr_scheduler.StepLR}",
    "a network of torchvision": "model: {_target_: torchvision.models.resnet18}",
    "a network of SpikingJelly": "model: {_target_: spikingjelly.activation_based.model.spiking_vgg.spiking_vgg11}",
    "a launcher": "hydra: {launcher: {n_jobs: 2, partition: gpu}, job: {name: a}}",
    "a sampler": "hydra: {sweeper: {sampler: {_target_: optuna.samplers.QMCSampler}, params: {seed: '1,2'}}}",
    "a pruner and a folder": "hydra: {sweep: {dir: x}, sweeper: {pruner: {_target_: optuna.pruners.HyperbandPruner}}}",
    "references": "a: {root: '${data_dir}/x', seed: '${seed}'}",
    "a file as the store": "hydra: {sweeper: {storage: 'sqlite:///${hydra.sweep.dir}/a.db'}}",
    "Hydra's own options": "defaults: [{override /hydra/sweeper: basic}, _self_]\nseed: 1",
    "a missing name": "model: {_target_: '???'}",
    "what is not there": "model: {_target_: no_such_package.A}",
}


@pytest.mark.parametrize("case", ALLOWED)
def test_a_configuration_file_of_somebody_else_may_use_known_classes(case: str, tmp_path: Path) -> None:
    assert loaded(tmp_path, "experiment/x", f"# @package _global_\n{ALLOWED[case]}").config


@pytest.mark.parametrize("outside", [False, True], ids=["in the folder", "elsewhere"])
def test_the_program_refuses_a_file_but_not_its_own_line(
    outside: bool, environment: dict[str, str], tmp_path: Path
) -> None:
    """In a process of its own, because Hydra makes its reader of files when it starts."""
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "x.yaml").write_text("_target_: joblib.load\nfilename: x\n")
    (tmp_path / "conf" / "model" / "x.yaml").symlink_to(tmp_path / "x.yaml")
    option = "/".join([".."] * 20) + f"{tmp_path}/x" if outside else "x"
    process = start(environment, "--config-dir", str(tmp_path / "conf"), "dataset=digits", f"model={option}")
    _, err = process.communicate()
    assert (process.returncode, JOBLIB in err, "Traceback" in err) == (1, True, False), err


def test_the_command_line_needs_no_trust(snnexp: Callable[..., Done]) -> None:
    done = snnexp("dataset=digits", "timesteps=2", "model=custom", "model._target_=joblib.load", "tracking=none")
    assert "model (joblib.load) cannot be made" in done.err


def test_the_printed_command_trusts_what_was_trusted_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        loaded(tmp_path, "experiment/best", "# @package _global_\nmodel: {_target_: joblib.load}")
    assert _trust(tmp_path, "best", ["model._target_=joblib.load", "seed=1"]) == {"SNNEXP_TRUSTED": "joblib"}
    assert loaded(tmp_path, "experiment/best", "# @package _global_\nseed: 1")
    assert _trust(tmp_path, "best", []) == {}


def test_a_text_that_becomes_a_reference_is_refused_before_anything_is_made() -> None:
    text = "${oc.decode:'{_target_: joblib.load}'}"  # pieced together from plain references by the first resolution
    with pytest.raises(UserError, match=r"model: args.0.b=.* must be a plain value, without \$\{"):
        build("model", {"model": {"_target_": "torch.nn.Identity", "args": [{"b": text}]}})
