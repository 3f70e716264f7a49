"""The table of elementwise activations: their names, modules and functions, and the rectifiers among them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnexp.errors import choice

Interval = tuple[float, float]


class Activation(NamedTuple):
    """An elementwise activation: `name` (of its function in PyTorch), `module`, and `function` with default parameters.

    `bounded`: its output is bounded on both sides, so it does not scale with the input. `ranges`: the input ranges of
    the shipped few-spike coefficients, the default range first.
    """

    name: str
    module: type[nn.Module]
    function: Callable[[Tensor], Tensor]
    bounded: bool = False
    ranges: tuple[Interval, ...] = ()


ACTIVATIONS = {
    row.name: row
    for row in (
        Activation("relu", nn.ReLU, F.relu, ranges=((0.0, 25.0),)),
        Activation("silu", nn.SiLU, F.silu, ranges=((-8.0, 12.0), (-6.0, 6.0), (-4.0, 3.0), (-1.0, 1.0))),
        Activation("sigmoid", nn.Sigmoid, torch.sigmoid, bounded=True, ranges=((-10.0, 10.0), (-5.0, 5.0))),
        Activation("gelu", nn.GELU, F.gelu, ranges=((-4.0, 10.0), (-4.0, 4.0))),
        Activation("tanh", nn.Tanh, torch.tanh, bounded=True, ranges=((-4.0, 4.0), (-2.0, 2.0))),
        Activation("hardswish", nn.Hardswish, F.hardswish, ranges=((-4.0, 10.0), (-4.0, 4.0))),
        Activation("hardsigmoid", nn.Hardsigmoid, F.hardsigmoid, bounded=True, ranges=((-4.0, 4.0),)),
        Activation("elu", nn.ELU, F.elu),
        Activation("leaky_relu", nn.LeakyReLU, F.leaky_relu),
        Activation("mish", nn.Mish, F.mish),
        Activation("softplus", nn.Softplus, F.softplus),
        Activation("selu", nn.SELU, F.selu),
        Activation("celu", nn.CELU, F.celu),
        Activation("softsign", nn.Softsign, F.softsign, bounded=True),
        Activation("tanhshrink", nn.Tanhshrink, F.tanhshrink),
        Activation("logsigmoid", nn.LogSigmoid, F.logsigmoid),
        Activation("hardtanh", nn.Hardtanh, F.hardtanh, bounded=True),
    )
}
_BY_FUNCTION = {row.function.__name__: row for row in ACTIVATIONS.values()}  # as torch.fx records it


def named(name: str) -> Activation:
    """Return the activation called `name`. Raises InvalidValue."""
    return ACTIVATIONS[choice("activation", name, tuple(ACTIVATIONS))]


def of_module(module: nn.Module) -> Activation | None:
    """Return the activation that `module` computes, whatever its parameters; None for another module."""
    return next((row for row in ACTIVATIONS.values() if isinstance(module, row.module)), None)


def as_module(name: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> nn.Module | None:
    """Return a module that computes function `name`, called with these arguments after its input.

    None for a function that is no activation; clamp, clip and clamp_min count where they are rectifiers.
    """
    if name in ("clamp", "clip", "clamp_min"):
        low, high = (*arguments, None, None)[:2]
        return _clipped(keywords.get("min", low), keywords.get("max", high))
    if name == "relu6":
        return nn.ReLU6()
    if name not in _BY_FUNCTION:
        return None
    settings = {key: value for key, value in keywords.items() if key not in ("inplace", "input")}
    module = _BY_FUNCTION[name].module(*arguments, **settings)
    if hasattr(module, "inplace"):
        module.inplace = False  # type: ignore[assignment]
    return module


def _clipped(low: Any, high: Any) -> nn.Module | None:
    if low != 0 or not (high is None or (isinstance(high, int | float) and high > 0)):
        return None
    return nn.ReLU() if high is None else nn.Hardtanh(0.0, float(high))
