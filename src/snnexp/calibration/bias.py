"""Bias correction: the mean error of each channel is added to the layer's bias. Li et al., ICML 2021 (light pipeline).

b += mean over images and space of (a - phi)
"""

from torch import Tensor

from snnexp.conversion.trains import along
from snnexp.conversion.walk import Layer, Proposal, Stats


class Bias:
    """Proposes a bias at every site and at the output; its objective is the squared mean error of each channel."""

    name = "bias"

    def propose(self, layer: Layer) -> Proposal | None:
        if "bias" not in layer.neuron.values:
            return None
        shift = along(layer.stats.channel, layer.stats.error.dim())
        return Proposal(self.score, layer.neuron.changed(bias=layer.neuron.bias + shift))

    @staticmethod
    def score(stats: Stats) -> Tensor:
        return stats.channel.square()
