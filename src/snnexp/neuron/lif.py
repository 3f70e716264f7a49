"""Leaky integrate-and-fire, `neuron=lif`: v_temp(t) = alpha v(t-1) + c(t), as SpikingJelly's
`functional.lif_multi_step` with tau = 1 / (1 - alpha) and an input that does not decay."""

from typing import Any

from spikingjelly.activation_based import functional
from torch import Tensor

from snnexp.errors import number
from snnexp.neuron.base import SpikingSite


class LIF(SpikingSite):
    """LIF neuron with decay 0 < `alpha` < 1 (alpha = 1 is `neuron=if`); other arguments and errors: `SpikingSite`."""

    def __init__(self, surrogate: Any, alpha: float = 0.5, **settings: Any) -> None:
        super().__init__(surrogate, **settings)
        allowed = "a number between 0 and 1, both excluded (neuron=if has alpha = 1)"
        self.alpha = number("alpha", alpha, allowed, above=0, below=1)
        self.tau = 1 / (1 - self.alpha)

    @property
    def decay(self) -> float:
        return self.alpha

    def library(self, x_seq: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.reset_value:  # SpikingJelly decays toward the reset value, we toward 0
            x_seq = x_seq - self.reset_value / self.tau
        spikes, v, _ = functional.lif_multi_step(
            x_seq, v, self.tau, False, self.threshold, self.v_reset, self.surrogate, self.detach_reset
        )
        return spikes, v

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, {super().extra_repr()}"
