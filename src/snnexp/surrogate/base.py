"""The base class of our surrogates: Heaviside in forward, `derivative(x)` in backward."""

from typing import Any

import torch
from spikingjelly.activation_based.surrogate import SurrogateFunctionBase, heaviside
from torch import Tensor

from snnexp.surrogate.limits import check_arguments


class Surrogate(SurrogateFunctionBase):  # type: ignore[misc]
    """A surrogate given by `primitive(x)` and its `derivative(x)`, both elementwise on x = v - theta, any shape.

    Derivatives are cut to their support by a product with the mask: on a CPU, several times faster than `masked_fill`.

    Keyword arguments become attributes; those with a rule in `limits.py` are checked (`InvalidValue`). With
    `spiking=False` the output is the primitive instead of spikes (for gradient checks).
    """

    def __init__(self, *, spiking: bool, **parameters: float) -> None:
        kind = type(self)
        check_arguments(f"{kind.__module__}.{kind.__qualname__}", {"spiking": spiking, **parameters})
        super().__init__(spiking=spiking, **parameters)

    def primitive(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def derivative(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def gradient(self, x: Tensor) -> Tensor:
        """Return the factor of backward; a subclass may also count here."""
        return self.derivative(x)

    def epoch_metrics(self) -> dict[str, float]:
        """Return what to log after an epoch, as train/<name> (the mean over sites), and reset any counts."""
        return {}

    def forward(self, x: Tensor) -> Tensor:
        return _Spike.apply(x, self) if self.spiking else self.primitive(x)  # type: ignore[no-untyped-call]


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, surrogate: Surrogate) -> Tensor:
        spikes: Tensor = heaviside(x)
        return spikes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate], output: Tensor) -> None:
        x, ctx.surrogate = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output * ctx.surrogate.gradient(*ctx.saved_tensors), None
