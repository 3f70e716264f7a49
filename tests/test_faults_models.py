"""Every wrong value and every wrong shape of data for every model option is a sentence, never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from conftest import Done
from snnexp.config import conf_dir
from snnexp.dataset.base import Data, Split
from snnexp.errors import InvalidValue, UserError
from snnexp.session import Session

FILES = [path for path in sorted(Path(conf_dir(), "model").glob("*.yaml"), reverse=True) if path.stem != "custom"]
OPTIONS = list(
    {yaml.safe_load(path.read_text())["_target_"]: path.stem for path in FILES}.values()
)  # one of each class
LARGE = ("vgg16", "wideresnet", "resnet18", "cifarnet")  # what they refuse is refused by the code of the others
SMALL = {"width": 2, "widen": 1, "hidden": 4, "name": "squeezenet1_1", "depth": 8}
VALUES = [
    [16],
    16,
    "a",
    "1",
    True,
    1.5,
    -1,
    0,
    [],
    [[1]],
    [1.5],
    ["a"],
    [None],
    None,
    {"a": 1},
    float("nan"),
    10**20 + 1,
]  # no depth
SHAPES = [(3, 32, 32), (1, 8, 8), (2, 34, 34), (10,), (3, 1, 1), (3, 2, 64), (1, 16), (3, 4, 4, 4)]
# What each key may be among VALUES, of the type that its default has.
GOOD: dict[str, list[Any]] = {
    "width": [16],
    "widen": [16],
    "hidden": [16],
    "dropout": [0],
    "weights": [None],
    "depth": [16],  # 6n + 4 of a wide residual network
}


def data(shape: tuple[int, ...], temporal: bool = False) -> Data:
    x = torch.zeros(3, *([2] * temporal), *shape, dtype=torch.uint8)
    split = Split(x, torch.arange(3), torch.arange(3))
    return Data("toy", split, split, split, shape, ("a", "b", "c"), temporal)


def config(option: str) -> dict[str, Any]:
    """The option, as small as it can be."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        made: Any = OmegaConf.to_container(
            compose("config", [f"model={option}", "timesteps=2", "neuron=relu"]), resolve=True
        )
    model = made["model"]
    for key, value in SMALL.items():
        if key in model and not (key == "depth" and option.startswith("wide")):
            model[key] = [value] if isinstance(model[key], list) else value
    return dict(made | {"model": model | ({"depth": 10} if option.startswith("wide") else {})})


def outcome(session: Session) -> str:
    try:
        session.network()
    except (UserError, InvalidValue) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("option", [pytest.param(o, marks=pytest.mark.slow if o in LARGE else ()) for o in OPTIONS])
def test_wrong_values_and_shapes_are_sentences(option: str) -> None:
    assert len(OPTIONS) == 9
    base = config(option)
    refused = 0
    for key, default in base["model"].items():
        for value in VALUES if key != "_target_" else ():
            session = Session(base | {"model": base["model"] | {key: value}}, {})
            session.data = data((3, 32, 32))
            said = outcome(session)
            good = [[16], []] if isinstance(default, list) else GOOD.get(key, [])
            good = [v for v in good if not (key == "depth" and not option.startswith("wide"))]
            fits = any(type(value) is type(v) and value == v for v in good)
            assert bool(said) != fits, f"model.{key}={value!r}: {said}"
            assert not said or f"model.{key}=" in said
            refused += bool(said)
    for shape in SHAPES:
        for temporal in (False, True):
            session = Session(base, {})
            session.data = data(shape, temporal)
            said = outcome(session)
            assert not said or "model" in said
            if len(shape) != 3 and option not in ("mlp", "two_layer"):
                assert str(shape) in said or "three channels" in said
    assert refused >= 15 * (len(base["model"]) - 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=mlp", "model.hidden=16"], "model.hidden=16 is not allowed: it must be a list (default [512])"),
        (["model.hidden=[16]"], "model.hidden=[16] is not allowed: it must be an integer >= 1"),
        (["model=vgg16", "model.hidden=4096"], "model.hidden=4096 is not allowed: it must be a list"),
        (["model=mlp", "model.hidden=[10000000000000]"], "is larger than the memory of this machine: choose smaller"),
        (["task=calibrate", "calibration.steps=bias"], "calibration.steps=bias is not allowed: it must be a list"),
    ],
)
def test_on_the_command_line(arguments: list[str], words: str, snnexp: Callable[..., Done]) -> None:
    done = snnexp("dataset=digits", "tracking=none", *arguments)
    assert done.code == 1
    assert words in done.err
    assert not done.runs()
