"""What holds for every option of a group, and for the source as a whole."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from conftest import ROOT
from snnexp.build import build

# From the command line down to equations; a module may import from its own row (its package) and from rows below.
ROWS = (
    ("__main__", "testing"),
    ("api",),
    ("run",),
    ("callbacks",),
    ("sweep",),
    ("task",),
    ("report",),
    ("record",),
    ("recorded", "session"),
    ("calibration", "mitigation"),
    ("conversion",),
    ("analysis",),
    ("evaluate",),
    ("training", "tracking", "terminal"),
    ("journal", "origin", "trial"),
    ("rundir",),
    ("build",),
    ("trust", "mistakes"),
    ("config", "address"),
    ("model", "loss", "few_spike"),
    ("neuron", "dataset"),
    ("surrogate", "dynamics", "timefold", "checkpoint", "activations"),
    ("finite", "weightfile"),
    ("lock", "signals"),
    ("files",),
    ("errors", "masking", "callable"),
)
ROW = {name: row for row, names in enumerate(ROWS) for name in names}


def imported(path: Path) -> set[str]:
    """First parts below `snnexp` of everything that the file imports when it runs (not for type checking only)."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "snnexp":
            parts = (node.module or "").split(".")[1:]
            names |= {parts[0]} if parts else {alias.name for alias in node.names}
    return names


def test_imports_run_one_way() -> None:
    checked = 0
    for path in sorted((ROOT / "src" / "snnexp").rglob("*.py")):
        own = path.relative_to(ROOT / "src" / "snnexp").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for other in imported(path) - {own}:
            assert ROW[other] > ROW[own], f"{path.name} ({own}) imports {other}, which stands above or beside it"
            checked += 1
    assert checked > 40


def test_only_the_boundary_sees_a_dictconfig_and_only_tracking_mlflow() -> None:
    sees = {word: set() for word in ("DictConfig", "import mlflow", "from mlflow")}
    for path in (ROOT / "src").rglob("*.py"):
        for word, files in sees.items():
            if word in path.read_text():
                parent = path.parent.name
                files.add("sweeper" if "hydra_plugins" in path.parts else parent if parent == "tracking" else path.name)
    assert sees["DictConfig"] == {
        "run.py",
        "api.py",
        "config.py",
        "callbacks.py",
        "command.py",
        "experiment.py",
        "sweeper",
    }
    assert sees["import mlflow"] | sees["from mlflow"] == {"tracking"}


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (ROOT / "conf" / group).rglob("*.yaml"))


def settings(group: str, option: str) -> dict[str, object]:
    """The option's YAML in a config of the defaults it refers to."""
    trainer = OmegaConf.load(ROOT / "conf" / "trainer" / "default.yaml")
    adam = OmegaConf.load(ROOT / "conf" / "optimizer" / "adam.yaml")
    chosen = OmegaConf.load(ROOT / "conf" / group / f"{option}.yaml")
    return OmegaConf.to_container(
        OmegaConf.create({"trainer": trainer, "optimizer": adam, group: chosen}), resolve=True
    )


def test_the_groups_are_complete() -> None:
    assert options("optimizer") == ["adam", "adamw", "sgd"]
    assert options("scheduler") == ["constant", "cosine", "one_cycle", "step"]
    assert options("loss") == ["cross_entropy", "mse_rate", "tet"]


@pytest.mark.parametrize("option", options("optimizer"))
def test_every_optimizer_goes_downhill(option: str) -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = build("optimizer", settings("optimizer", option))([weight])
    for _ in range(20):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert float(weight.detach().square().sum()) < 13.0


@pytest.mark.parametrize("option", options("scheduler"))
def test_every_scheduler_lasts_all_epochs(option: str) -> None:
    config = settings("scheduler", option)
    optimizer = build("optimizer", config)([torch.nn.Parameter(torch.zeros(1))])
    scheduler = build("scheduler", config)(optimizer)
    rates = []
    for _ in range(config["trainer"]["epochs"]):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < config["trainer"]["epochs"]:
            scheduler.step()
    assert max(rates) == pytest.approx(1e-3, rel=0.05)
    if option in ("constant", "step"):  # the steps come later, at epochs 50 and 75
        assert set(rates) == {1e-3}
    else:
        assert rates[-1] < 1e-4


@pytest.mark.parametrize("option", options("loss"))
def test_every_loss_prefers_the_right_class(option: str) -> None:
    loss = build("loss", settings("loss", option))
    target = torch.tensor([0, 1, 2])
    right = torch.nn.functional.one_hot(target, 3).float().expand(4, 3, 3)  # [T, N, K]
    assert loss(right, target) < loss(right.roll(1, dims=2), target)


def test_tet_equals_its_formula() -> None:
    from torch.nn.functional import cross_entropy, mse_loss

    outputs, target = torch.randn(5, 4, 3), torch.tensor([0, 2, 1, 1])
    loss = build("loss", settings("loss", "tet"))
    each = torch.stack([cross_entropy(o, target) for o in outputs]).mean()
    expected = 0.95 * each + 0.05 * mse_loss(outputs, torch.ones_like(outputs))
    assert torch.allclose(loss(outputs, target), expected)
