"""Parametric LIF, `neuron=plif`: LIF with a learnt decay, one per site. Fang et al., "Incorporating Learnable Membrane
Time Constant to Enhance Learning of Spiking Neural Networks", ICCV 2021: 1/tau = sigmoid(w), so alpha = 1 - sigmoid(w).
As SpikingJelly's `functional.plif_multi_step` with an input that does not decay."""

import math
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from snnexp.errors import number
from snnexp.neuron.base import SpikingSite


class PLIF(SpikingSite):
    """LIF neuron whose decay starts at 0 < `alpha` < 1 and is learnt through the scalar parameter `w`; other arguments
    and errors: `SpikingSite`."""

    def __init__(self, surrogate: Any, alpha: float = 0.5, **settings: Any) -> None:
        super().__init__(surrogate, **settings)
        alpha = number("alpha", alpha, "a number between 0 and 1, both excluded", above=0, below=1)
        self.w = nn.Parameter(torch.tensor(math.log((1 - alpha) / alpha)))  # sigmoid(w) = 1 - alpha

    @property
    def decay(self) -> Tensor:
        return torch.sigmoid(-self.w)

    def library(self, x_seq: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.reset_value:  # SpikingJelly decays toward the reset value, we toward 0
            x_seq = x_seq - self.reset_value * torch.sigmoid(self.w)
        spikes, v, _ = functional.plif_multi_step(
            x_seq, v, self.w, False, self.threshold, self.v_reset, self.surrogate, self.detach_reset
        )
        return spikes, v

    def extra_repr(self) -> str:
        return f"alpha={float(self.decay.detach()):.4g} (learnt), {super().extra_repr()}"
