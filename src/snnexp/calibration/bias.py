"""Bias correction: the layer's bias takes up the mean error of each channel. Li et al., ICML 2021 (light pipeline).

b += mean over images and space of (a - phi)
"""

from __future__ import annotations

from torch import Tensor

from snnexp.conversion.walk import Layer, Proposal, Stats, along


class Bias:
    """Proposes the bias at every site and at the output; its objective is the squared mean error of each channel."""

    name = "bias"

    def propose(self, layer: Layer) -> Proposal:
        shift = along(layer.stats.channel, layer.stats.error.dim())
        return Proposal(self.score, layer.neuron.changed(bias=layer.neuron.bias + shift))

    @staticmethod
    def score(stats: Stats) -> Tensor:
        return stats.channel.square()
