"""Adaptive threshold, `conversion=adaptive_threshold`: the theta whose T-step neuron comes closest to the activation.

Li et al., "A Free Lunch From ANN: Towards Efficient, Accurate Spiking Neural Networks Calibration", ICML 2021:

    theta = argmin over grid points theta_i = (i / grid) max a of  mean (CF(x + v(0)/T; theta_i, T) - a)^2

with CF the clip-floor of `snnexp.dynamics`, and the threshold shift of Deng and Gu (v(0) = theta/2) unless start=0.
"""

import torch
from torch import Tensor

from snnexp.conversion.neuron import ScaledIF
from snnexp.conversion.thresholds import SMALLEST, Histogram, Placing, histogram, largest
from snnexp.conversion.trains import along
from snnexp.conversion.walk import Layer
from snnexp.dynamics import clip_floor
from snnexp.errors import choice, integer


class AdaptiveThreshold(Placing):
    """The best theta of `grid` points, as above, for the layer or `per_channel`; v(0) = `start` theta.

    `inputs`, the source of x: `ann`, the ANN's inputs (the paper), or `snn`, the mean inputs from the converted network
    below. Sums run over a histogram of 4096 bins. Raises InvalidValue.
    """

    def __init__(
        self,
        grid: int = 100,
        per_channel: bool = False,
        start: float = 0.5,
        inputs: str = "ann",
        maxpool: str | None = None,
    ) -> None:
        super().__init__(per_channel, start, maxpool)
        self.grid = integer("grid", grid, at_least=1)
        self.inputs = choice("inputs", inputs, ("ann", "snn"))

    @property
    def per_T(self) -> bool:
        return True

    def place(self, layer: Layer) -> ScaledIF:
        top = largest(layer, per_channel=self.per_channel)
        seen = histogram(layer, self.inputs, top, self.per_channel)
        theta = best_threshold(seen, top, layer.T, self.start, self.grid)
        return ScaledIF(theta, self.start * theta)


def best_threshold(seen: Histogram, top: Tensor, T: int, start: float, grid: int) -> Tensor:
    """Return the grid point of (0, top] with the least squared error over `seen`, in the shape of `top` [1, C, 1, ...].

    Of equally good points, the largest is taken.
    """
    highest = top.flatten()[: len(seen.x)]
    least, theta = torch.full_like(highest, torch.inf), highest
    for i in range(grid, 0, -1):
        candidate = (highest * (i / grid)).clamp(min=SMALLEST)
        at = candidate.unsqueeze(1)
        error = (seen.counts * (clip_floor(seen.x + start * at / T, at, T) - seen.target).square()).sum(1)
        theta = torch.where(error < least, candidate, theta)
        least = torch.minimum(error, least)
    return along(theta.expand(top.shape[1]), top.dim()).clone()
