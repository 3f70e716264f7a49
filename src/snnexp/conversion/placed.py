"""`Placed`: the neuron that a conversion places at a site. A code (rate, few-spike, ...) is a subclass of it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from snnexp.conversion.stateful import Stateful
from snnexp.conversion.trains import along, mean_over_time
from snnexp.conversion.vocabulary import TRAINS, Vocabulary
from snnexp.timefold import fold

if TYPE_CHECKING:
    from snnexp.conversion.network import Converted


class Placed(Stateful):
    """A neuron at a site, whose output approximates the ANN's activation in the mean over T steps, in the ANN's units.

    Everything that depends on the code is defined here. A subclass sets `network`, and defines `scan` if it is
    `stepwise`, else `forward`, which maps the mean input [N, C, ...] to the output. `bias` [1, C, 1, ...] is added to
    the input of every step; it and all `values` are buffers.
    """

    network: ClassVar[type[Converted]]  # the class that runs a network of these neurons
    vocabulary: ClassVar[Vocabulary] = TRAINS  # the operations that may stand between them
    values: ClassVar[tuple[str, ...]] = ("bias",)  # the buffers that corrections may change
    stepwise: ClassVar[bool] = True  # hears T steps of input one by one; False: hears the whole input at once
    integrates: ClassVar[bool] = False  # is a plain `ScaledIF`, whose state is its membrane potential
    advice: ClassVar[str] = "more steps (timesteps), or another conversion"  # if the output's error is large
    bias: Tensor

    @property
    def threshold(self) -> float | None:
        """The mean threshold, for the record of a conversion; None if the neuron has no single threshold."""
        return None

    def check(self) -> None:
        """Raise InvalidValue if a buffer holds a value that is not allowed."""

    def changed(self, **values: Tensor) -> Self:
        """Return a copy with new tensors, of any shape, for some of `values`. Raises what `check` raises."""
        if unknown := values.keys() - set(self.values):
            raise TypeError(f"corrections may change {', '.join(self.values)} of {type(self).__name__}, not {unknown}")
        made = copy.copy(self)
        made._buffers = {**self._buffers, **values}
        made.check()
        return made

    def mixed(self, better: Tensor, other: Placed) -> Self:
        """Return a copy with the values of `other` in the channels where `better` [C] is true."""
        values = {}
        for name in self.values:
            old, new = getattr(self, name), getattr(other, name)
            if new is not old:
                values[name] = torch.where(along(better, max(old.dim(), new.dim())), new, old)
        return self.changed(**values)

    def answer(self, current: Tensor) -> tuple[Tensor, Tensor]:
        """Return (mean output [n, ...], emitted values [k, n, C, ...]) for calibration inputs, without changing these.

        `current`: [T, n, C, ...] from the start if `stepwise`, else the mean input [n, C, ...].
        """
        if self.stepwise:
            out, _ = self.scan(current, None)
            return mean_over_time(out), out
        phi = self(current)
        return phi, phi.unsqueeze(0)

    def packed(self, emitted: Tensor) -> Tensor:
        """Return the emitted values of `answer` in the form [k, n, C, ...] in which the walk stores them."""
        return emitted

    def recalled(self, stored: Tensor, T: int, mean: bool) -> Tensor:
        """Return `packed` values for the layers above: with `mean`, the time mean [n, ...], else the train [T*n,
        ...]."""
        if not self.stepwise:
            return stored[0]
        return mean_over_time(stored) if mean else fold(stored)

    def correctable(self, a: Tensor, phi: Tensor) -> Tensor:
        """Return the error a - phi, activation less mean output, with 0 where weights cannot reduce it."""
        return a - phi

    def traits(self, c: Tensor, z: Tensor, phi: Tensor, state: Any, T: int, f: nn.Module) -> dict[str, Tensor]:
        """Return columns of `measure.LayerError` as tensors over neurons and inputs, whose means are reported.

        `c`: the mean input, bias included; `z`: the ANN's input; `phi`: the mean output; `state`: that after T steps;
        `f`: the ANN's activation.
        """
        reached, a = f(c), f(z)
        parts = {"error": phi - a, "quantisation": phi - reached, "propagated": reached - a}
        means = {"ann_mean": a, "snn_mean": phi, "silent": (phi == 0).to(phi)}
        return means | {name: part.square() for name, part in parts.items()}


class Readout(Placed):
    """The stand-in for a neuron at the network's output, where nothing fires: it adds `bias` to the mean."""

    stepwise = False

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias
