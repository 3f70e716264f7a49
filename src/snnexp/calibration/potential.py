"""Potential correction: each neuron starts where its mean error over images is made up for. Li et al., ICML 2021.

v(0) += T x mean over images of (a - phi)
"""

from __future__ import annotations

from torch import Tensor

from snnexp.conversion.neuron import ScaledIF
from snnexp.conversion.walk import Layer, Proposal, Stats, per_channel


class Potential:
    """Proposes the start of each neuron; its objective is the squared mean error of the neurons of each channel."""

    name = "potential"

    def propose(self, layer: Layer) -> Proposal | None:
        if not isinstance(layer.neuron, ScaledIF):
            return None
        return Proposal(self.score, layer.neuron.changed(v_init=layer.neuron.v_init + layer.T * layer.stats.error))

    @staticmethod
    def score(stats: Stats) -> Tensor:
        return per_channel(stats.error.square())
