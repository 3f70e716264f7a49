"""Signed spikes: a neuron that has fired too often takes a spike back.

Wang et al., "Signed Neuron with Memory", IJCAI 2022: where v has reached -theta after charging, and there are spikes to
take back, the neuron emits -theta and v rises by theta. Here v must be below -`level` theta: `level=0` takes a spike
back as soon as v < 0, so that v ends in [0, theta) wherever there is enough time.
"""

import torch
from torch import Tensor

from snnexp.conversion.neuron import ScaledIF
from snnexp.errors import number
from snnexp.mitigation.base import Mitigation, Replaced

State = tuple[Tensor, Tensor]  # v [N, ...], and the number of spikes that can be taken back


class Signed(Mitigation):
    """Takes a spike back where v is below -`level` theta; `level` >= 0. Raises InvalidValue."""

    def __init__(self, level: float) -> None:
        self.level = number("level", level, "a number >= 0, in units of the threshold", at_least=0)

    def neuron(self, placed: ScaledIF) -> ScaledIF:
        return SignedIF(placed, self.level)


class SignedIF(Replaced):
    """Integrate-and-fire neuron that emits theta, 0 or -theta, and never less than 0 in total."""

    def __init__(self, placed: ScaledIF, level: float) -> None:
        super().__init__(placed)
        self.level = level

    def scan(self, x: Tensor, state: State | None, out: Tensor | None = None) -> tuple[Tensor, State]:  # type: ignore[override]
        v, total = (self.start(x[0]), torch.zeros_like(x[0])) if state is None else state
        out = torch.empty_like(x) if out is None else out
        for current, s in zip(x, out, strict=True):
            v = v + current + self.bias
            spike = (v >= self.theta).to(v) - ((v < -self.level * self.theta) & (total > 0)).to(v)
            total = total + spike
            torch.mul(spike, self.theta, out=s)
            v = v - s
        return out, (v, total)
