"""Measurements on networks of few-spike neurons: errors by layer, the cost of an inference, and the coefficients."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn

from snnexp.conversion.flow import Flow
from snnexp.conversion.measure import Account, LayerError, costs_of, spread
from snnexp.conversion.vocabulary import MAX_POOLS, PRODUCTS, function_name
from snnexp.dataset.base import Split

if TYPE_CHECKING:
    from snnexp.conversion.network import Decoded
    from snnexp.conversion.neuron import FewSpike

FEW = 2  # spikes


@torch.no_grad()
def examine_slots(source: fx.GraphModule, snn: Decoded, x: Tensor) -> tuple[list[LayerError], Account]:
    """Return the errors by layer and the cost of an inference over the inputs x [N, ...].

    A layer's error phi - a is the sum of quantisation, phi - f(c), which includes inputs outside of the neuron's range,
    and propagated, f(c) - f(z). Each spike costs an operation in every synapse that it reaches: a layer's
    multiply-accumulates per input, times the spikes of the sites that lead to it. Inputs that are numbers instead of
    spikes (outputs of another layer, a product or a maximum) cost multiply-accumulates. The latency of an answer is L K
    steps, and `interval`, 2K, is the time between two answers (K steps to gather, K to fire), as in the paper. `more`:
    parameters, layers L, `at_most_two` (share of neurons with at most two spikes).
    """
    ann, flow, K = Flow(source), snn.flow, snn.T
    layers = {site: LayerError(str(site.target), K) for site in flow.sites}
    neurons, spikes, few, analog, operations = 0, 0.0, 0.0, 0.0, 0.0
    costs = costs_of(ann, flow, x[:1])
    for part in torch.split(x, snn.rows or 128):
        share = len(part) / len(x)
        values, env = ann.values(part), flow.values(part)
        fired: dict[fx.Node, Tensor] = {}
        for site, twin in zip(flow.sites, ann.sites, strict=True):
            neuron, f = _neuron(snn, site), ann.modules[str(twin.target)]
            current, z = env[site.args[0]], values[twin.args[0]]
            fired[site] = neuron.spikes(current).sum(0)
            traits = neuron.traits(current + neuron.bias, z, env[site], fired[site], K, f)
            layers[site].add(traits, share)
        neurons = sum(count[0].numel() for count in fired.values())
        spikes += sum(float(count.sum()) for count in fired.values()) / len(x)
        few += sum(float((count <= FEW).sum()) for count in fired.values()) / len(x)
        for node, cost in costs.items():
            heard = [n for n in node.all_input_nodes if n in flow.timed]
            if len(heard) == 1:
                each = cost * share / env[heard[0]][0].numel()
                arrived, told = _arriving(flow, heard[0], env, fired, costs)
                operations, analog = operations + each * arrived, analog + each * told
            else:  # the input, or a product of two signals
                analog += cost * share
    parameters, length = sum(p.numel() for p in snn.parameters()), snn.depth + 1
    more = {"at_most_two": few / neurons, "parameters": parameters, "layers": length, "interval": 2 * K}
    return list(layers.values()), Account(neurons, spikes, operations, analog, length * K, sum(costs.values()), more)


@torch.no_grad()
def counts(snn: Decoded, x: Tensor) -> Tensor:
    """Return the shares of neurons that fire 0, 1, .. K times for inputs x [N, ...]: [K + 1]."""
    flow, found = snn.flow, torch.zeros(snn.T + 1, dtype=torch.float64)
    for part in torch.split(x, snn.rows or 128):
        env = flow.values(part)
        for site in flow.sites:
            count = _neuron(snn, site).spikes(env[site.args[0]]).sum(0)
            found += torch.bincount(count.flatten().long().cpu(), minlength=len(found))
    return found / found.sum()


@torch.no_grad()
def top(
    network: nn.Module,
    split: Split,
    ranks: Sequence[int],
    batch_size: int,
    device: torch.device,
    images: int | None = None,
) -> dict[int, float]:
    """Return for each r in `ranks` the share of samples whose class is among the r highest outputs.

    Measured on `images` samples spread over the split (None: all).
    """
    order, hits = spread(split, images), dict.fromkeys(ranks, 0)
    for x, y in split.batches(batch_size, order):
        best = network(x.to(device)).topk(max(ranks)).indices.cpu()
        for rank in ranks:
            hits[rank] += int((best[:, :rank] == y.unsqueeze(1)).sum())
    return {rank: right / len(order) for rank, right in hits.items()}


def coefficients(snn: Decoded) -> list[dict[str, Any]]:
    """Return the coefficients of each layer, a row for each step, and for each channel where channels differ."""
    rows = []
    for site in snn.flow.sites:
        neuron = _neuron(snn, site)
        shifted = neuron.T - neuron.bias if bool(neuron.bias.any()) else neuron.T  # a bias that no layer could take
        C = shifted[0].numel()
        T, h, d = (part.flatten(1).expand(-1, C).tolist() for part in (shifted, neuron.h, neuron.d))
        for t, c in product(range(len(T)), range(C)):
            channel = "all" if C == 1 else c
            at = {"layer": site.target, "channel": channel, "step": t + 1}
            rows.append(at | {"T": T[t][c], "h": h[t][c], "d": d[t][c]})
    return rows


def _neuron(snn: Decoded, site: fx.Node) -> FewSpike:
    return cast("FewSpike", snn.flow.module(site))


def _arriving(
    flow: Flow, node: fx.Node, env: dict[fx.Node, Any], fired: dict[fx.Node, Tensor], costs: Collection[fx.Node]
) -> tuple[float, float]:
    """Return (spikes, numbers other than 0) per input that reach `node`.

    Spikes come from the sites that lead to it; numbers are computed on the way by layers, products and maxima, or do
    not come from spikes at all. A part of a signal gets a share in proportion to its size.
    """
    if node in fired:
        return float(fired[node].sum()) / len(fired[node]), 0.0
    timed = [n for n in node.all_input_nodes if n in flow.timed and not isinstance(env[n], int | torch.Size)]
    multiplied = len(timed) > 1 and node.op != "call_module" and function_name(node) in PRODUCTS
    if not timed or multiplied or node in costs or isinstance(flow.module(node), MAX_POOLS):
        return 0.0, float((env[node] != 0).sum()) / len(env[node])
    part = env[node].numel() / _size(env[timed[0]]) if function_name(node) == "getitem" else 1.0
    heard, told = zip(*(_arriving(flow, n, env, fired, costs) for n in timed), strict=True)
    return part * sum(heard), part * sum(told)


def _size(value: Tensor | Sequence[Tensor]) -> int:
    return value.numel() if isinstance(value, Tensor) else sum(part.numel() for part in value)
