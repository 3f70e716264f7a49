"""Measurements on converted networks: accuracy at several T from one simulation, spikes, energy, errors by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from snnexp.conversion.cost import multiply_accumulates
from snnexp.conversion.flow import Flow
from snnexp.conversion.frames import PerFrame
from snnexp.conversion.walk import CALIBRATION_ROWS
from snnexp.dataset.base import Split
from snnexp.timefold import unfold

if TYPE_CHECKING:
    from snnexp.conversion.network import Converted

MAC, AC = 4.6e-3, 0.9e-3  # nJ of a multiply-accumulate and of an accumulate, 45 nm: Horowitz, ISSCC 2014


def accuracies(
    snn: Converted | PerFrame,
    split: Split,
    steps: Sequence[int],
    batch_size: int,
    device: torch.device,
    images: int | None = None,
) -> dict[int, float]:
    """Return the accuracy after each of `steps`, from one simulation, on `images` samples spread over the split."""
    correct, order = dict.fromkeys(steps, 0), spread(split, images)
    for x, y in split.batches(batch_size, order):
        for t, answer in zip(steps, snn.at(x.to(device), steps), strict=True):
            correct[t] += int((answer.argmax(1).cpu() == y).sum())
    return {t: right / len(order) for t, right in correct.items()}


@torch.no_grad()
def ann_accuracy(
    ann: nn.Module, split: Split, batch_size: int, device: torch.device, images: int | None = None
) -> float:
    """Return the accuracy of a network with outputs [N, K], on the same images as `accuracies`."""
    order = spread(split, images)
    right = sum(int((ann(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in split.batches(batch_size, order))
    return right / len(order)


def spread(split: Split, images: int | None) -> Tensor:
    """Return the positions of `images` samples (None: all) at equal distances, since splits may be sorted by class."""
    n = min(len(split), images or len(split))
    return torch.arange(n) * len(split) // n


class Averages:
    """A row of a table whose numbers are means over all inputs, added up batch by batch."""

    def add(self, traits: Mapping[str, Tensor], share: float) -> None:
        """Add the means of `traits` over one batch, which is the `share` of all inputs."""
        for name, value in traits.items():
            setattr(self, name, getattr(self, name) + share * float(value.mean()))


@dataclass
class LayerError(Averages):
    """The errors of one site: means over images and neurons, and mean squares of the parts of the error.

    phi - a = unevenness + quantisation + clipping + propagated, exactly and for each neuron and image (Bu et al.,
    ICLR 2022), where CF* is the output for evenly arriving input, c the mean input, and z the ANN's input:

        unevenness = phi - CF*;  quantisation = CF* - clip(c, 0, theta);  clipping = clip(c, 0, theta) - f(c);
        propagated = f(c) - f(z)

    (clipped and QCFS sources: quantisation = CF* - f(c), clipping = 0). `over`: share of neurons that fired too often
    (v(T) < 0 after a spike), `under`: too seldom (v(T) >= theta, and a step without a spike); `over_spikes` and
    `under_spikes`: by how many spikes, as means over all neurons. `zeros` and `saturated`: shares of neurons outside
    [0, theta) without an error (v(T) < 0 and no spike; v(T) >= theta and a spike at each step). Columns that a code
    does not have are 0 (see `Placed.traits`).
    """

    layer: str
    T: int
    ann_mean: float = 0.0
    snn_mean: float = 0.0
    threshold: float = 0.0
    firing_rate: float = 0.0
    silent: float = 0.0
    error: float = 0.0
    unevenness: float = 0.0
    quantisation: float = 0.0
    clipping: float = 0.0
    propagated: float = 0.0
    over: float = 0.0
    under: float = 0.0
    over_spikes: float = 0.0
    under_spikes: float = 0.0
    zeros: float = 0.0
    saturated: float = 0.0


@dataclass
class Account:
    """The mean cost of one inference: `spikes` in total and per neuron, synaptic operations (one for each synapse that
    a spike reaches), and energy in nJ, where layers computed once per input count as multiply-accumulates. Rehearsals
    count in all of them. `latency`: steps until the answer. `more`: further numbers that only some kinds of network
    have."""

    neurons: int
    spikes: float
    synaptic_operations: float
    macs: float  # multiply-accumulates of the layers that are computed once per input
    latency: int
    ann_macs: float
    more: dict[str, float] = field(default_factory=dict)

    @property
    def spikes_per_neuron(self) -> float:
        return self.spikes / self.neurons

    @property
    def energy_nj(self) -> float:
        return self.macs * MAC + self.synaptic_operations * AC

    @property
    def ann_energy_nj(self) -> float:
        return self.ann_macs * MAC


@torch.no_grad()
def examine_trains(source: fx.GraphModule, snn: Converted, x: Tensor, T: int) -> tuple[list[LayerError], Account]:
    """Return the errors by layer and the cost of an inference of T steps, for inputs x [N, ...] to a network of spike
    trains."""
    ann, flow = Flow(source), snn.flow
    layers = {site: LayerError(str(site.target), T) for site in flow.sites}
    neurons, spikes, operations = 0, 0.0, 0.0
    device = next(snn.buffers()).device
    costs = costs_of(ann, flow, x[:1].to(device))
    macs, analog = sum(costs.values()), sum(cost for node, cost in costs.items() if node not in flow.timed)
    for part in torch.split(x, max(1, CALIBRATION_ROWS[device.type] // T)):
        share = len(part) / len(x)
        values = ann.values(part.to(device))
        env, state, before = snn.simulated(part.to(device), T)
        neurons = 0
        for site, twin in zip(flow.sites, ann.sites, strict=True):
            neuron, heard, phi = flow.neuron(site), site.args[0], unfold(env[site], T).mean(0)
            current = unfold(env[heard], T).mean(0) if heard in flow.timed else env[heard]
            c, z, f = current + neuron.bias, values[twin.args[0]], ann.modules[str(twin.target)]
            layers[site].add(neuron.traits(c, z, phi, state[site], T, f), share)
            neurons += phi[0].numel()
            spikes += sum(float((train[site] != 0).sum()) for train in (env, *before)) / len(x)
        for node, cost in costs.items():
            if node in flow.timed:
                heard = [n for n in node.all_input_nodes if n in flow.timed]
                trains = [train[n] for train in (env, *(before if node in flow.body else ())) for n in heard]
                operations += cost * sum(len(h) * float((h != 0).float().mean()) for h in trains) / len(x)
    return list(layers.values()), Account(neurons, spikes, operations, analog, snn.latency(T), macs)


def split_error(
    c: Tensor, z: Tensor, v: Tensor, count: Tensor, theta: Tensor, T: int, f: nn.Module
) -> dict[str, Tensor]:
    """Return the parts of phi - a (see `LayerError`) by neuron, from the mean input c [N, ...], the ANN's input z, the
    potential v after the last reset, the spike count, and the ANN's activation f."""
    even = theta / T * even_count(count, v, theta, T)
    phi, reached = theta / T * count, f(c)
    clipped = c.clamp(min=0).minimum(theta) if type(f) is nn.ReLU else reached
    parts = {"quantisation": even - clipped, "clipping": clipped - reached, "propagated": reached - f(z)}
    return {"error": phi - f(z), "unevenness": phi - even, **parts}


def even_count(count: Tensor, v: Tensor, theta: Tensor, T: int) -> Tensor:
    """Return the spike count for the same input arriving evenly, T/theta CF*, from the actual count and v(T)."""
    return (count + torch.floor(v / theta)).clamp(0, T)


def costs_of(ann: Flow, flow: Flow, x: Tensor) -> dict[fx.Node, float]:
    """Return the nodes of a converted network that multiply, with their multiply-accumulates for one sample x [1, ...]
    (and one step), which are those of the ANN `ann`."""
    found = multiply_accumulates(ann, x)
    twins = zip(flow.nodes, ann.nodes, strict=True)
    return {node: found[twin] for node, twin in twins if found.get(twin, 0) != 0}
