"""Waiting, the control: a site fires after its whole input, as often as it would for evenly arriving input.

So there is no unevenness error: the network equals its source with activations of T levels. The answer comes after
depth x T steps, and the input has to be summed while a site waits.
"""

import torch
from torch import Tensor

from snnexp.conversion.neuron import ScaledIF
from snnexp.mitigation.base import Mitigation, Replaced


class Waiting(Mitigation):
    """Makes each site wait for its whole input. It has no options."""

    whole = True

    def neuron(self, placed: ScaledIF) -> ScaledIF:
        return Patient(placed)


class Patient(Replaced):
    """Neuron that emits n = clip(floor(v/theta), 0, T) spikes, evenly spread; v: the potential after all T inputs."""

    def scan(self, x: Tensor, state: Tensor | None, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert state is None, "it answers once"
        T, theta = len(x), self.theta
        v = self.start(x[0]) + x.sum(0) + T * self.bias
        n = torch.floor(v / theta)
        n -= (v - n * theta < 0).to(n)  # the quotient was rounded up to an integer
        n = n.clamp_(0, T)
        out = torch.empty_like(x) if out is None else out
        given = torch.zeros_like(n)
        for t in range(1, T + 1):
            by_now = torch.floor(n * t / T)
            torch.mul(by_now - given, theta, out=out[t - 1])
            given = by_now
        return out, v - n * theta

    def residual(self, state: Tensor) -> Tensor:  # type: ignore[override]
        return state
