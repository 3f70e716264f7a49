"""Surrogate gradients: SpikingJelly's (YAML alone) and ours (sine, power, dspike), checked and plotted alike.

A surrogate is a `SurrogateFunctionBase`: forward is the Heaviside step (1 where x >= 0), backward the derivative of a
primitive g, with x = v - theta. Importing this package imports no torch, so a config can be checked at once.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

from snnexp.errors import InvalidValue, require
from snnexp.surrogate.limits import arguments_of, check_arguments

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Curve", "check_arguments", "checked_surrogate", "curve", "primitive"]


class Curve(NamedTuple):
    """A surrogate over x: what it emits, its primitive g (None where it has none), and what backward multiplies by."""

    forward: Tensor
    primitive: Tensor | None
    derivative: Tensor


def checked_surrogate(surrogate: Any) -> Any:
    """Return `surrogate` if a neuron can be trained with it, else raise `InvalidValue`.

    Names are `surrogate` (the wrong kind of object) or `surrogate.<argument>` (a parameter out of range). SpikingJelly
    itself accepts any parameter, also ones that turn every gradient into its opposite or into nan.
    """
    from spikingjelly.activation_based.surrogate import SurrogateFunctionBase

    require(
        isinstance(surrogate, SurrogateFunctionBase),
        "surrogate",
        surrogate,
        "a surrogate function (a SurrogateFunctionBase of SpikingJelly)",
    )
    kind = type(surrogate)
    arguments = {name: getattr(surrogate, name) for name in arguments_of(kind) if hasattr(surrogate, name)}
    try:
        check_arguments(f"{kind.__module__}.{kind.__qualname__}", arguments)
    except InvalidValue as error:
        raise InvalidValue(f"surrogate.{error.name}", error.value, error.allowed) from None
    if not surrogate.spiking:
        import torch

        require(
            primitive(surrogate, torch.zeros(1)) is not None,
            "surrogate.spiking",
            False,
            f"true: {kind.__name__} has no primitive to emit in place of spikes",
        )
    return surrogate


def primitive(surrogate: Any, x: Tensor) -> Tensor | None:
    """The primitive g(x), shape of x; None where the surrogate defines only a derivative."""
    smooth = copy.deepcopy(surrogate)
    smooth.spiking = False
    try:
        out: Tensor = smooth(x)
    except NotImplementedError:
        return None
    return out


def curve(surrogate: Any, x: Tensor) -> Curve:
    """Forward, primitive and derivative of any surrogate at the points x; each has the shape of x.

    The derivative is taken from backward, so it is what training sees. Works on a copy: no counter moves.
    """
    import torch

    spiking = copy.deepcopy(surrogate)
    spiking.spiking = True
    with torch.enable_grad():
        points = x.detach().clone().requires_grad_()
        out = spiking(points)
        (derivative,) = torch.autograd.grad(out.sum(), points)
    return Curve(out.detach(), primitive(surrogate, x.detach()), derivative)
