"""Clipped ReLU with a trainable bound, `neuron=clip`: an ANN activation whose values a firing rate can represent.

h(z) = clip(z, 0, bound). The activation of the source network of Deng and Gu, "Optimal Conversion of Conventional
Artificial Neural Networks to Spiking Neural Networks", ICLR 2021; the bound is learnt as by Choi et al., "PACT", 2018.
"""

from typing import Any

import torch
from torch import Tensor, nn

from snnexp.errors import boolean, number

SMALLEST = 1e-3  # least bound in effect: h stays defined, and its gradient can raise the bound again


class Bounded(nn.Module):
    """An activation in [0, bound], elementwise on any shape; it is not a spiking site and has no time.

    `levels`: number of equal steps of h above 0, or None for a continuous h. `bound` > 0 is the initial value of one
    scalar per layer: a parameter if `trainable`, else a buffer. Raises `InvalidValue`.
    """

    bound: Tensor
    levels: int | None = None

    def __init__(self, bound: float, trainable: bool, name: str) -> None:
        super().__init__()
        start = torch.tensor(number(name, bound, f"a number of at least {SMALLEST}", at_least=SMALLEST))
        if boolean("trainable", trainable):
            self.bound = nn.Parameter(start)
        else:
            self.register_buffer("bound", start)

    @property
    def threshold(self) -> Tensor:
        """The bound in effect, a scalar, which conversion takes as the firing threshold."""
        return self.bound.detach().clamp(min=SMALLEST)

    def forward(self, z: Tensor) -> Tensor:
        return _Bounded.apply(z, self.bound, self.levels)  # type: ignore[no-any-return, no-untyped-call]

    def extra_repr(self) -> str:
        return f"bound={float(self.threshold):.4g}" + (f", L={self.levels}" if self.levels else "")


class Clip(Bounded):
    """h(z) = clip(z, 0, bound); dh/dz = 1 on [0, bound] and 0 outside, dh/dbound = 1 above the bound and 0 below."""

    def __init__(self, bound: float = 4.0, trainable: bool = True) -> None:
        super().__init__(bound, trainable, "bound")


class _Bounded(torch.autograd.Function):
    """h and its gradients in one pass each; only z and the bound are kept for backward."""

    @staticmethod
    def forward(z: Tensor, bound: Tensor, levels: int | None) -> Tensor:
        return _value(z, bound.clamp(min=SMALLEST), levels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int | None], output: Tensor) -> None:
        z, bound, ctx.levels = inputs
        ctx.save_for_backward(z, bound)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        z, bound = ctx.saved_tensors
        lam = bound.clamp(min=SMALLEST)
        above = z > lam
        each = above.to(z)  # (h - z)/lam inside, 1 above, 0 below: h - clip(z) vanishes on either side
        if ctx.levels:
            each = each + (_value(z, lam, ctx.levels) - z.clamp(min=0).minimum(lam.to(z))) / lam
        return grad * ((z >= 0) & ~above), (grad * each).sum(dtype=bound.dtype), None


def _value(z: Tensor, lam: Tensor, levels: int | None) -> Tensor:
    lam = lam.to(z)
    if levels is None:
        return z.clamp(min=0).minimum(lam)
    # The result must be a new tensor: if forward returns one that it changed in place, torch.compile silently ignores
    # `backward` and takes autograd's gradient of floor, 0 (torch 2.11; pytorch issue 180642).
    return (z / lam).clamp_(0, 1).mul_(levels).add_(0.5).floor_() * (lam / levels)
