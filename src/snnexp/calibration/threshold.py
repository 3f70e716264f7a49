"""Threshold correction: thresholds of each channel chosen anew, on the inputs that the corrected layer now gets.

As `snnexp.conversion.adaptive_threshold`, but whatever conversion placed the neurons, by channel, and on the spiking
network's own mean inputs: those of the ANN say little of what arrives after few steps. The start is theta/2.
"""

from __future__ import annotations

from torch import Tensor

from snnexp.conversion.adaptive_threshold import best_threshold
from snnexp.conversion.neuron import ScaledIF
from snnexp.conversion.thresholds import histogram, largest
from snnexp.conversion.walk import Layer, Proposal, Stats
from snnexp.errors import integer


class Threshold:
    """Proposes thresholds from `grid` points up to the channel's largest activation; its objective is the mean squared
    error of each channel. Raises InvalidValue."""

    name = "threshold"

    def __init__(self, grid: int = 50) -> None:
        self.grid = integer("grid", grid, at_least=1)

    def propose(self, layer: Layer) -> Proposal | None:
        if not isinstance(layer.neuron, ScaledIF):
            return None
        top = largest(layer, per_channel=True)
        seen = histogram(layer, "snn", top, True, layer.neuron.bias)
        theta = best_threshold(seen, top, layer.T, 0.5, self.grid)
        return Proposal(self.score, layer.neuron.changed(theta=theta, v_init=theta / 2))

    @staticmethod
    def score(stats: Stats) -> Tensor:
        return stats.square
