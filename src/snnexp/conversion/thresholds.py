"""Common parts of the conversion methods: their options, the largest activations, and histograms."""

import torch
from torch import Tensor

from snnexp.conversion.neuron import ScaledIF
from snnexp.conversion.placed import Placed
from snnexp.conversion.trains import along
from snnexp.conversion.vocabulary import MAXPOOL
from snnexp.conversion.walk import Layer
from snnexp.errors import boolean, choice, number
from snnexp.neuron.clip import Bounded

BINS = 2**12  # of a histogram
SMALLEST = 1e-6  # threshold of a layer or channel that is never active


class Placing:
    """The base class of methods that place integrate-and-fire neurons, with their common options: thresholds
    `per_channel` or per layer, `start` v(0)/theta in [0, 1], `maxpool`. Raises InvalidValue."""

    neuron: type[Placed] = ScaledIF

    def __init__(self, per_channel: bool, start: float, maxpool: str | None) -> None:
        self.per_channel = boolean("per_channel", per_channel)
        self.start = number("start", start, "a share of the threshold, from 0 to 1", at_least=0, at_most=1)
        self.maxpool = None if maxpool is None else choice("maxpool", maxpool, MAXPOOL)

    @property
    def per_T(self) -> bool:
        """Whether the neurons placed depend on T."""
        return False

    def place(self, layer: Layer) -> ScaledIF:
        """Return the neuron for a site."""
        raise NotImplementedError


def bound(layer: Layer, activation: Bounded) -> Tensor:
    """Return the bound of a site's activation, [1, C, 1, ...]."""
    _, a = next(layer.activations())
    return along(activation.threshold.to(a).expand(a.shape[1]), a.dim()).clone()


def largest(layer: Layer, percentile: float = 100.0, per_channel: bool = False) -> Tensor:
    """Return a percentile of the ANN's activations, [1, C, 1, ...], of the layer or by channel; at least 1e-6.

    A percentile below 100 is read from a histogram of 4096 bins of (0, maximum].
    """
    found = [(a.transpose(0, 1).flatten(1).amax(1), a.dim()) for _, a in layer.activations()]
    top, dims = torch.stack([peak for peak, _ in found]).amax(0), found[0][1]
    if not per_channel:
        top = top.max().expand_as(top).clone()
    top = top.clamp(min=SMALLEST)
    if percentile < 100:
        counts = torch.zeros(len(top), BINS, device=top.device)
        for _, a in layer.activations():
            counts += counted(a, torch.zeros_like(top), top / BINS, BINS)
        if not per_channel:
            counts = counts.sum(0, keepdim=True).expand(len(top), -1)
        share = counts.cumsum(1) / counts.sum(1, keepdim=True)
        top = ((share < percentile / 100).sum(1) + 1).clamp(max=BINS) * top / BINS
    return along(top, dims).clone()


def counted(x: Tensor, low: Tensor, width: Tensor, bins: int, weights: Tensor | None = None) -> Tensor:
    """Return the number of values x [N, C, ...], or the sum of `weights`, in each bin of a channel: [C, bins]."""
    at = ((x - along(low, x.dim())) / along(width, x.dim())).clamp_(0, bins - 1).to(torch.int64)
    at += along(torch.arange(len(low), device=x.device) * bins, x.dim())
    flat = torch.bincount(at.flatten(), None if weights is None else weights.flatten(), len(low) * bins)
    return flat.view(len(low), bins).to(torch.float32)
