"""Threshold correction: the threshold and start of each channel, chosen by simulation on the layer's real input.

Thresholds that are best for the ANN's activations, or for evenly arriving input, are not best for the trains that the
corrected network below emits within a few steps. Here every pair (theta factor, start) is simulated on these trains.
"""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from snnexp.conversion.trains import along, per_channel
from snnexp.conversion.walk import Layer, Proposal, Stats
from snnexp.errors import integer, number, require


class Threshold:
    """Proposes for each channel one of `factors` x theta, with v(0) one of `starts` x theta.

    The pair with the least mean squared error on the first `images` calibration images is taken; this error is also the
    objective. Raises InvalidValue.
    """

    name = "threshold"

    def __init__(
        self,
        factors: Sequence[float] = (0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5),
        starts: Sequence[float] = (0.35, 0.5, 0.65),
        images: int = 200,
    ) -> None:
        require(bool(factors) and bool(starts), "factors", list(factors), "a list of numbers > 0")
        self.factors = [number("factors", f, "numbers > 0", above=0) for f in factors]
        self.starts = [number("starts", s, "shares of theta, from 0 to 1", at_least=0, at_most=1) for s in starts]
        self.images = integer("images", images, at_least=1)

    def propose(self, layer: Layer) -> Proposal | None:
        neuron = layer.neuron
        if not {"theta", "v_init"} <= set(neuron.values):
            return None
        before: Tensor = neuron.theta  # type: ignore[assignment]
        pairs = list(product(self.factors, self.starts))
        tried = [neuron.changed(theta=f * before, v_init=f * s * before) for f, s in pairs]
        error, seen = torch.zeros(len(pairs), layer.stats.square.numel(), device=before.device), 0
        for a, current in layer.inputs():
            for k, candidate in enumerate(tried):
                error[k] += per_channel((a - candidate.answer(current)[0]).square()) * len(a)
            seen += len(a)
            if seen >= self.images:
                break
        factor, start = torch.tensor(pairs, device=error.device)[error.argmin(0)].to(before).unbind(1)
        theta = before * along(factor, before.dim())
        return Proposal(self.score, neuron.changed(theta=theta, v_init=theta * along(start, theta.dim())))

    @staticmethod
    def score(stats: Stats) -> Tensor:
        return stats.square
