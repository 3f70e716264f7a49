"""Waiting, the control: a site fires when all its input is there, as often as evenly arriving input would make it.

So there is no unevenness: the network is its source with activations of T levels, exactly. The answer comes after
depth x T steps, and what it has to wait for must be summed somewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snnexp.conversion.neuron import ScaledIF
from snnexp.mitigation.base import Mitigation


class Waiting(Mitigation):
    """No options."""

    whole = True

    def neuron(self, placed: ScaledIF) -> ScaledIF:
        return Patient(placed.theta, placed.v_init, placed.bias)


class Patient(ScaledIF):
    """Emits n = clip(floor(v/theta), 0, T) spikes, evenly spread, for the potential v that the T inputs add up to."""

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
