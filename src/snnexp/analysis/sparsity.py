"""Measure the sparsity of a surrogate's gradient: exact zeros in one backward pass (the lab's question I.iii; the idea
of skipping them: Perez-Nieves and Goodman, NeurIPS 2021)."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snnexp.neuron.base import SpikingSite
from snnexp.surrogate import curve
from snnexp.timefold import TimeFold, observed


class SiteSparsity(NamedTuple):
    """For one spiking layer, over samples, neurons and steps: the share of potentials at which the surrogate's
    derivative is exactly 0, the share of currents c(t) whose gradient dL/dc(t) is exactly 0 (a potential may also get a
    gradient from later steps), and spikes per neuron and step."""

    potentials: float
    currents: float
    rate: float


class Sparsity(NamedTuple):
    """`sites` by name; `weights`: for each layer, the share of weights whose gradient is exactly 0; `skippable`: the
    share of these layers' backward multiply-accumulates that multiply by an exactly zero dL/d(output)."""

    sites: dict[str, SiteSparsity]
    weights: dict[str, float]
    skippable: float


def sparsity(net: TimeFold, loss: nn.Module, x: Tensor, y: Tensor) -> Sparsity:
    """Count the exact zeros of one backward pass on the batch x [N, ...], y [N]; `net` stays unchanged."""
    net = copy.deepcopy(net).eval()
    sites = {name: site for name, site in net.sites().items() if isinstance(site, SpikingSite)}
    layers = {name: m for name, m in net.network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    ends: dict[str, tuple[Tensor, Tensor]] = {}  # by module: input and output
    with torch.enable_grad(), observed({**sites, **layers}, lambda name, x, y: ends.update({name: (x, y)})):
        value = loss(net(x), y)
        points = [ends[name][0] for name in sites] + [ends[name][1] for name in layers]
        slopes = torch.autograd.grad(value, [*points, *(m.weight for m in layers.values())])
    of_sites, of_layers, of_weights = (slopes[: len(sites)], slopes[len(sites) : -len(layers)], slopes[-len(layers) :])
    found = {}
    for (name, site), slope in zip(sites.items(), of_sites, strict=True):
        current, spikes = ends[name]
        derivative = curve(site.surrogate, site.charged(current.detach()) - site.threshold).derivative
        found[name] = SiteSparsity(_zeros(derivative), _zeros(slope), float(spikes.detach().mean()))
    work, skipped = 0.0, 0.0
    for i, (name, slope) in enumerate(zip(layers, of_layers, strict=True)):
        products = 1 if i == 0 else 2  # for the weights and, except in the first layer, for the layer before
        macs = products * slope.numel() * layers[name].weight[0].numel()
        work, skipped = work + macs, skipped + macs * _zeros(slope)
    return Sparsity(found, {name: _zeros(s) for name, s in zip(layers, of_weights, strict=True)}, skipped / work)


def _zeros(values: Tensor) -> float:
    return float((values == 0).double().mean())
