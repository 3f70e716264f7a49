"""Threshold balancing, `conversion=max_threshold`: theta is the largest activation of the layer on calibration images.

Diehl et al., "Fast-Classifying, High-Accuracy Spiking Deep Networks Through Weight and Threshold Balancing", IJCNN
2015; a percentile in place of the maximum: Rueckauer et al., Frontiers in Neuroscience 2017; a share of the maximum:
Lu and Xu, "Linear Leaky-Integrate-and-Fire Neuron Model Based Spiking Neural Networks", 2022.
"""

from snnexp.conversion.neuron import ScaledIF
from snnexp.conversion.thresholds import Placing, largest
from snnexp.conversion.walk import Layer
from snnexp.errors import number


class MaxThreshold(Placing):
    """theta = `scale` x the `percentile` (0 to 100) of the ANN's activations, of the layer or `per_channel`.

    `start` in [0, 1]: v(0) in units of theta. `maxpool`: see `snnexp.conversion.rewrite`. Raises InvalidValue.
    """

    def __init__(
        self,
        percentile: float = 100.0,
        scale: float = 1.0,
        per_channel: bool = False,
        start: float = 0.0,
        maxpool: str | None = None,
    ) -> None:
        super().__init__(per_channel, start, maxpool)
        self.percentile = number("percentile", percentile, "a percentage above 0 and at most 100", above=0, at_most=100)
        self.scale = number("scale", scale, "a number > 0", above=0)

    def place(self, layer: Layer) -> ScaledIF:
        theta = self.scale * largest(layer, self.percentile, self.per_channel)
        return ScaledIF(theta, self.start * theta)
