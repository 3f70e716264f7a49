"""Integrate-and-fire, `neuron=if`: v_temp(t) = v(t-1) + c(t), as SpikingJelly's `functional.if_multi_step`."""

from spikingjelly.activation_based import functional
from torch import Tensor

from snnexp.neuron.base import SpikingSite


class IF(SpikingSite):
    """Integrate-and-fire neuron; arguments and errors are those of `SpikingSite`. [T*N, ...] -> [T*N, ...]."""

    @property
    def decay(self) -> float:
        return 1.0

    def library(self, x_seq: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        spikes, v, _ = functional.if_multi_step(
            x_seq, v, self.threshold, self.v_reset, self.surrogate, self.detach_reset
        )
        return spikes, v
