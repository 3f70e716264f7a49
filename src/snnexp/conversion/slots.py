"""What a few-spike network costs, and how far its layers are from the ANN's: `examine` for `conversion=few_spike`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from snnexp.conversion.graph import CONVS, MAX_POOLS, PRODUCTS, Flow, function_name
from snnexp.conversion.measure import AC, MAC, Account, LayerError, macs_of_row, spread
from snnexp.conversion.network import Decoded
from snnexp.conversion.neuron import FewSpike
from snnexp.dataset.base import Split

FEW = 2  # spikes


@torch.no_grad()
def examine(source: fx.GraphModule, snn: Decoded, x: Tensor) -> tuple[list[LayerError], Account]:
    """Errors by layer and the cost of an inference, both over the inputs x [N, ...].

    A layer's error is phi - a = [phi - f(c)] quantisation, what is out of the neuron's range with it, + [f(c) - f(z)]
    propagated. Each spike costs an operation in every synapse it reaches: a layer's multiply-accumulates per input,
    times the spikes of the sites that lead to it. What a layer, product or maximum has made of numbers arrives as one
    number, which costs a multiply-accumulate.
    In steps, the latency is that of an answer, L K, and `interval`, 2K, lies between two (gather for K steps, fire for
    K), as the paper has them. `more`: parameters, layers L, `at_most_two` (share of neurons with at most two spikes).
    """
    ann, flow, K = Flow(source), snn.flow, snn.T
    layers = {site: LayerError(str(site.target), K) for site in flow.sites}
    neurons, spikes, few, macs, analog, operations = 0, 0.0, 0.0, 0.0, 0.0, 0.0
    for part in torch.split(x, snn.rows or 128):
        share = len(part) / len(x)
        values: dict[fx.Node, Any] = {ann.placeholder: part}
        env: dict[fx.Node, Any] = {flow.placeholder: part}
        ann.run(ann.nodes[1:-1], values)
        flow.run(flow.nodes[1:-1], env)
        fired: dict[fx.Node, Tensor] = {}
        for site, twin in zip(flow.sites, ann.sites, strict=True):
            neuron, f = flow.module(site), ann.module(twin)
            assert isinstance(neuron, FewSpike)
            assert f is not None
            c = env[site.args[0]] + neuron.bias
            fired[site] = neuron.spikes(env[site.args[0]]).sum(0)
            _add(layers[site], neuron, fired[site], env[site], f(c), values[twin], share)
        neurons = sum(count[0].numel() for count in fired.values())
        spikes += sum(float(count.sum()) for count in fired.values()) / len(x)
        few += sum(float((count <= FEW).sum()) for count in fired.values()) / len(x)
        for node in flow.nodes:
            module = flow.module(node)
            if isinstance(module, (nn.Linear, *CONVS)):
                cost = macs_of_row(module, env[node], len(part)) * share
                macs += cost
                before: fx.Node = node.args[0]
                if node in flow.timed:
                    each = cost / env[before][0].numel()
                    heard, told = _arriving(flow, before, env, fired)
                    operations, analog = operations + each * heard, analog + each * told
                else:
                    analog += cost
    parameters = sum(p.numel() for p in snn.parameters())
    length = snn.depth + 1
    more = {"at_most_two": few / neurons, "parameters": parameters, "layers": length, "interval": 2 * K}
    return list(layers.values()), Account(
        neurons,
        spikes,
        spikes / neurons,
        operations,
        analog * MAC + operations * AC,
        length * K,
        macs,
        macs * MAC,
        more,
    )


@torch.no_grad()
def counts(snn: Decoded, x: Tensor) -> Tensor:
    """Share of neurons that fire 0, 1, .. K times for inputs x [N, ...]: [K + 1]."""
    flow, found = snn.flow, torch.zeros(snn.T + 1, dtype=torch.float64)
    for part in torch.split(x, snn.rows or 128):
        env: dict[fx.Node, Any] = {flow.placeholder: part}
        flow.run(flow.nodes[1:-1], env)
        for site in flow.sites:
            neuron = flow.module(site)
            assert isinstance(neuron, FewSpike)
            count = neuron.spikes(env[site.args[0]]).sum(0)
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
    """Share of samples whose class is among the `ranks` highest answers, on `images` spread over the split."""
    order, hits = spread(split, images), dict.fromkeys(ranks, 0)
    for x, y in split.batches(batch_size, order):
        best = network(x.to(device)).topk(max(ranks)).indices.cpu()
        for rank in ranks:
            hits[rank] += int((best[:, :rank] == y.unsqueeze(1)).sum())
    return {rank: right / len(order) for rank, right in hits.items()}


def export(snn: Decoded, path: Path) -> None:
    """Write what the neurons of each layer need to know as CSV: a line for each step, and channel where they differ."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["layer", "channel", "step", "T", "h", "d"])
        for site in snn.flow.sites:
            neuron = snn.flow.module(site)
            assert isinstance(neuron, FewSpike)
            shifted = neuron.T - neuron.bias if bool(neuron.bias.any()) else neuron.T  # a bias that no layer could take
            C = shifted[0].numel()
            T, h, d = (part.flatten(1).expand(-1, C).tolist() for part in (shifted, neuron.h, neuron.d))
            for t, c in product(range(len(T)), range(len(T[0]))):
                out.writerow([site.target, "all" if len(T[0]) == 1 else c, t + 1, T[t][c], h[t][c], d[t][c]])


def _add(
    layer: LayerError, neuron: FewSpike, count: Tensor, phi: Tensor, reached: Tensor, a: Tensor, share: float
) -> None:
    """Add the means over one batch, `share` of all inputs."""
    means = {
        "ann_mean": a,
        "snn_mean": phi,
        "threshold": neuron.T.amax(0),
        "firing_rate": count / layer.T,
        "silent": (count == 0).float(),
        "error": (phi - a).square(),
        "quantisation": (phi - reached).square(),
        "propagated": (reached - a).square(),
    }
    for name, value in means.items():
        setattr(layer, name, getattr(layer, name) + share * float(value.mean()))


def _arriving(flow: Flow, node: fx.Node, env: dict[fx.Node, Any], fired: dict[fx.Node, Tensor]) -> tuple[float, float]:
    """Per input, the spikes that reach `node`, of the sites that lead there, and the numbers other than 0: those that
    layers, products and maxima have made on the way, or that no spikes lead to. Of a part of a signal they are taken to
    be in proportion to its size."""
    if node in fired:
        return float(fired[node].sum()) / len(fired[node]), 0.0
    timed = [n for n in node.all_input_nodes if n in flow.timed and not isinstance(env[n], int | torch.Size)]
    multiplied = len(timed) > 1 and node.op != "call_module" and function_name(node) in PRODUCTS
    if not timed or multiplied or isinstance(flow.module(node), (nn.Linear, *CONVS, *MAX_POOLS)):
        return 0.0, float((env[node] != 0).sum()) / len(env[node])
    part = env[node].numel() / _size(env[timed[0]]) if function_name(node) == "getitem" else 1.0
    heard, told = zip(*(_arriving(flow, n, env, fired) for n in timed), strict=True)
    return part * sum(heard), part * sum(told)


def _size(value: Tensor | Sequence[Tensor]) -> int:
    return value.numel() if isinstance(value, Tensor) else sum(part.numel() for part in value)
