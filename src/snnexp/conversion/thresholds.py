"""What the conversion methods share: their common options, and how activations are distributed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from snnexp.conversion.graph import MAXPOOL
from snnexp.conversion.neuron import ScaledIF
from snnexp.conversion.walk import Layer, along
from snnexp.errors import choice, number, require

BINS = 2**12  # of a histogram: one bin is 1/4096 of the range
SMALLEST = 1e-6  # threshold of a layer or channel that is never active


class Placing:
    """Options of every method: thresholds `per_channel` or per layer, `start` v(0)/theta in [0, 1], `maxpool`."""

    def __init__(self, per_channel: bool, start: float, maxpool: str | None) -> None:
        require(isinstance(per_channel, bool), "per_channel", per_channel, "true or false")
        self.per_channel = per_channel
        self.start = number("start", start, "a share of the threshold, from 0 to 1", at_least=0, at_most=1)
        self.maxpool = None if maxpool is None else choice("maxpool", maxpool, MAXPOOL)

    @property
    def per_T(self) -> bool:
        """Whether what is placed depends on T."""
        return False

    def place(self, layer: Layer) -> ScaledIF:
        """The neuron for a site."""
        raise NotImplementedError


class Histogram(NamedTuple):
    """By channel: `x` [C, B], the bins' centres, `counts` [C, B], and `target` [C, B], the mean of a in each bin."""

    x: Tensor
    counts: Tensor
    target: Tensor


def largest(layer: Layer, percentile: float = 100.0, per_channel: bool = False) -> Tensor:
    """The percentile of the ANN's activations, [1, C, 1, ...]; of the layer, or by channel. At least 1e-6.

    Below 100 it is read from a histogram of 4096 bins of (0, maximum].
    """
    top, dims = None, 2
    for _, a, _ in layer.means():
        here, dims = a.transpose(0, 1).flatten(1).amax(1), a.dim()
        top = here if top is None else torch.maximum(top, here)
    assert top is not None
    if not per_channel:
        top = top.max().expand_as(top).clone()
    top = top.clamp(min=SMALLEST)
    if percentile < 100:
        counts = torch.zeros(len(top), BINS, device=top.device)
        for _, a, _ in layer.means():
            counts += _counted(a, torch.zeros_like(top), top / BINS, None)
        if not per_channel:
            counts = counts.sum(0, keepdim=True).expand(len(top), -1)
        share = counts.cumsum(1) / counts.sum(1, keepdim=True)
        top = ((share < percentile / 100).sum(1) + 1).clamp(max=BINS) * top / BINS
    return along(top, dims).clone()


def histogram(layer: Layer, on: str, top: Tensor, bias: Tensor | None = None) -> Histogram:
    """Of the inputs that a site gets (`on` ann: the ANN's; snn: the mean input of the network below,
    and `bias`), from -top/2 to
    3/2 top (what is outside counts in the last bins), with the activations that are wanted there."""
    top = top.flatten()
    low, width = -top / 2, 2 * top / BINS
    count = torch.zeros(len(top), BINS, device=top.device)
    total = torch.zeros_like(count)
    for z, a, c in layer.means():
        x = z if on == "ann" else c if bias is None else c + bias
        count += _counted(x, low, width, None)
        total += _counted(x, low, width, a)
    centres = low.unsqueeze(1) + width.unsqueeze(1) * (torch.arange(BINS, device=top.device) + 0.5)
    return Histogram(centres, count, total / count.clamp(min=1))


def _counted(x: Tensor, low: Tensor, width: Tensor, weights: Tensor | None) -> Tensor:
    """How many values of x [N, C, ...] fall into each of a channel's bins, or the sum of their `weights`: [C, BINS]."""
    channels = len(low)
    bins = ((x - along(low, x.dim())) / along(width, x.dim())).clamp_(0, BINS - 1).to(torch.int64)
    bins += along(torch.arange(channels, device=x.device) * BINS, x.dim())
    flat = torch.bincount(bins.flatten(), None if weights is None else weights.flatten(), channels * BINS)
    return flat.view(channels, BINS).to(torch.float32)
