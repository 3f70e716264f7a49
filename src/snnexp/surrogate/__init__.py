"""Surrogate gradients: SpikingJelly's (YAML alone) and ours (sine, power, dspike), checked and plotted alike.

A surrogate is a `SurrogateFunctionBase`: forward is the Heaviside step (1 where x >= 0), backward the derivative of a
primitive g, with x = v - theta. Importing this package does not import torch, so a config can be checked at once.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

from snnexp.errors import InvalidValue, require
from snnexp.surrogate.limits import arguments_of, check_arguments

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SurrogateCurve", "check_arguments", "checked_surrogate", "curve", "primitive"]


class SurrogateCurve(NamedTuple):
    """A surrogate over x: its output, its primitive g (None if it has none), and the factor in backward."""

    forward: Tensor
    primitive: Tensor | None
    derivative: Tensor


def checked_surrogate(surrogate: Any) -> Any:
    """Return `surrogate` if a neuron can be trained with it, else raise `InvalidValue`.

    The name raised is `surrogate` (wrong kind of object) or `surrogate.<argument>` (value out of range). SpikingJelly
    itself accepts any value, even those that reverse every gradient or make it nan.
    """
    from spikingjelly.activation_based.surrogate import SurrogateFunctionBase

    allowed = "a surrogate function (a SurrogateFunctionBase of SpikingJelly)"
    require(isinstance(surrogate, SurrogateFunctionBase), "surrogate", surrogate, allowed)
    kind = type(surrogate)
    arguments = {name: getattr(surrogate, name) for name in arguments_of(kind) if hasattr(surrogate, name)}
    try:
        check_arguments(f"{kind.__module__}.{kind.__qualname__}", arguments)
    except InvalidValue as error:
        raise InvalidValue(f"surrogate.{error.name}", error.value, error.allowed) from None
    if not surrogate.spiking:
        import torch

        allowed = f"true: {kind.__name__} has no primitive to emit in place of spikes"
        require(primitive(surrogate, torch.zeros(1)) is not None, "surrogate.spiking", False, allowed)
    return surrogate


def primitive(surrogate: Any, x: Tensor) -> Tensor | None:
    """Return the primitive g(x), shape of x, or None if the surrogate defines only a derivative."""
    smooth = copy.deepcopy(surrogate)
    smooth.spiking = False
    try:
        out: Tensor = smooth(x)
    except NotImplementedError:
        return None
    return out


def curve(surrogate: Any, x: Tensor) -> SurrogateCurve:
    """Return output, primitive and derivative of any surrogate at the points x; each has the shape of x.

    The derivative comes from a backward pass, so it is the one used in training. A copy is used, so no counter changes.
    """
    import torch

    spiking = copy.deepcopy(surrogate)
    spiking.spiking = True
    with torch.enable_grad():
        points = x.detach().clone().requires_grad_()
        out = spiking(points)
        (derivative,) = torch.autograd.grad(out.sum(), points)
    return SurrogateCurve(out.detach(), primitive(surrogate, x.detach()), derivative)
