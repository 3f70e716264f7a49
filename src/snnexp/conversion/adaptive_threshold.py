"""Adaptive threshold, `conversion=adaptive_threshold`: the theta whose T-step neuron comes closest to the activation.

Li et al., "A Free Lunch From ANN: Towards Efficient, Accurate Spiking Neural Networks Calibration", ICML 2021:

    theta = argmin over grid points theta_i = (i / grid) max a of  mean (CF(x + v(0)/T; theta_i, T) - a)^2

with CF the clip-floor of `snnexp.dynamics`, and the threshold shift of Deng and Gu (v(0) = theta/2) unless start=0.

The neuron fires at least k times where x >= (k - start) theta_i / T. With start = p/q, all these bounds are multiples
of max a / (q grid T), so the exact errors of all grid points follow from one histogram with cells of this width:

    mean (CF - a)^2 = mean a^2 + sum over k of ((2k - 1) u^2 P(x >= bound k) - 2u E[a; x >= bound k]), u = theta_i / T
"""

from collections.abc import Iterator
from fractions import Fraction

import torch
from torch import Tensor

from snnexp.conversion.neuron import ScaledIF
from snnexp.conversion.thresholds import SMALLEST, Placing, largest
from snnexp.conversion.trains import along
from snnexp.conversion.walk import Layer
from snnexp.errors import choice, integer

CELLS = 2**24  # counted at a time
VALUES = 2**16  # of one channel, at most
FINEST = 64  # the largest denominator of `start`


class AdaptiveThreshold(Placing):
    """The best theta of `grid` points, as above, for the layer or `per_channel`; v(0) = `start` theta.

    `inputs`, the source of x: `ann`, the ANN's inputs (the paper), or `snn`, the mean inputs from the converted network
    below. Channels with more than 65,536 values are sampled evenly. For the search, `start` is rounded to the nearest
    fraction with a denominator of at most 64. Raises InvalidValue.
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
        highest = top.flatten() if self.per_channel else top.flatten()[:1]
        start = Fraction(self.start).limit_denominator(FINEST)
        step = max(1, CELLS // (start.denominator * self.grid * layer.T))
        best = torch.cat([self._best(layer, highest, start, c) for c in torch.split(torch.arange(len(highest)), step)])
        theta = along((best / self.grid * highest).clamp(min=SMALLEST).expand(top.shape[1]), top.dim()).clone()
        return ScaledIF(theta, self.start * theta)

    def _best(self, layer: Layer, top: Tensor, start: Fraction, channels: Tensor) -> Tensor:
        """Return the best grid point, 1 to `grid`, of each of `channels`; of equally good points, the largest."""
        p, q, T = start.numerator, start.denominator, layer.T
        bins = q * self.grid * T
        counts = torch.zeros(len(channels), bins + 2, dtype=torch.float64, device=top.device)
        sums = torch.zeros_like(counts)
        for x, a in self._values(layer, channels):
            # cell 0: x < 0; the last: x >= top
            at = (x.double() * bins / top[channels].double().unsqueeze(1)).floor_().add_(1).clamp_(0, bins + 1).long()
            counts.scatter_add_(1, at, torch.ones_like(at, dtype=torch.float64))
            sums.scatter_add_(1, at, a.double())
        above, total = (part.flip(1).cumsum(1).flip(1) for part in (counts, sums))  # in this cell or higher
        k = torch.arange(1, T + 1, device=top.device)
        best, least = torch.zeros(len(channels), device=top.device), torch.full_like(counts[:, 0], torch.inf)
        for i in range(self.grid, 0, -1):
            bound, u = 1 + (q * k - p) * i, i / self.grid * top[channels].double() / T
            error = u * (u * (above[:, bound] @ (2.0 * k - 1).double()) - 2 * total[:, bound].sum(1))
            best = torch.where(error < least, i, best)
            least = torch.minimum(error, least)
        return best

    def _values(self, layer: Layer, channels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, a) [channels, values], the inputs and activations of `channels`, or of all as one."""
        for x, a in layer.activations() if self.inputs == "ann" else ((c, a) for a, c in layer.means()):
            if x.dim() > 2:
                step = max(1, layer.images * x[0, 0].numel() // VALUES)
                x, a = x.flatten(2)[..., ::step], a.flatten(2)[..., ::step]
            rows = (v.transpose(0, 1).flatten(1) for v in (x, a))
            x, a = (v[channels.to(v.device)] if self.per_channel else v.reshape(1, -1) for v in rows)
            yield x, a
