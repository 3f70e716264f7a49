"""Potential correction: the start v(0) of each neuron compensates its mean error over images. Li et al., ICML 2021.

v(0) += T x mean over images of (a - phi)
"""

from torch import Tensor

from snnexp.conversion.trains import per_channel
from snnexp.conversion.walk import Layer, Proposal, Stats


class Potential:
    """Proposes v(0) of each neuron; its objective is the squared mean error of a neuron, averaged over a channel."""

    name = "potential"

    def propose(self, layer: Layer) -> Proposal | None:
        if "v_init" not in layer.neuron.values:
            return None
        start: Tensor = layer.neuron.v_init  # type: ignore[assignment]
        return Proposal(self.score, layer.neuron.changed(v_init=start + layer.T * layer.stats.error))

    @staticmethod
    def score(stats: Stats) -> Tensor:
        return per_channel(stats.error.square())
