"""What a converted network is worth: accuracy at several T from one simulation, spikes and energy, errors by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, fx, nn

from snnexp.conversion.frames import PerFrame
from snnexp.conversion.graph import CONVS, Flow
from snnexp.conversion.network import Converted
from snnexp.conversion.neuron import ScaledIF
from snnexp.conversion.walk import ROWS
from snnexp.dataset.base import Split
from snnexp.timefold import unfold

MAC, AC = 4.6e-3, 0.9e-3  # nJ of a multiply-accumulate and of an accumulate, 45 nm: Horowitz, ISSCC 2014


def accuracies(
    snn: Converted | PerFrame,
    split: Split,
    steps: Sequence[int],
    batch_size: int,
    device: torch.device,
    images: int | None = None,
) -> dict[int, float]:
    """Accuracy after each of `steps`, from one simulation of the longest; on `images` spread over the split."""
    correct, order = dict.fromkeys(steps, 0), spread(split, images)
    for x, y in split.batches(batch_size, order):
        for t, answer in zip(steps, snn.at(x.to(device), steps), strict=True):
            correct[t] += int((answer.argmax(1).cpu() == y).sum())
    return {t: right / len(order) for t, right in correct.items()}


@torch.no_grad()
def ann_accuracy(
    ann: nn.Module, split: Split, batch_size: int, device: torch.device, images: int | None = None
) -> float:
    """Accuracy of a network that answers [N, K], on the same images as `accuracies`."""
    order = spread(split, images)
    right = sum(int((ann(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in split.batches(batch_size, order))
    return right / len(order)


def spread(split: Split, images: int | None) -> Tensor:
    """Positions of `images` samples (None: all) at equal distances: splits may be sorted by class."""
    n = min(len(split), images or len(split))
    return torch.arange(n) * len(split) // n


@dataclass
class LayerError:
    """One site over some images: means over images and neurons, and mean squares of the parts of its error.

    phi - a = unevenness + quantisation + clipping + propagated, exactly and for each neuron and image (Bu et al.,
    ICLR 2022), where CF* is the output that evenly arriving input would have had, c the mean input, z the ANN's:

        unevenness = phi - CF*;  quantisation = CF* - clip(c, 0, theta);  clipping = clip(c, 0, theta) - f(c);
        propagated = f(c) - f(z)

    (clipped and QCFS sources: quantisation = CF* - f(c), clipping = 0). `over`: share of neurons that fired too often
    (v(T) < 0 after a spike), `under`: too seldom (v(T) >= theta, with a step to spare); `over_spikes` and
    `under_spikes`: by how many spikes, a mean over all neurons. `zeros` and `saturated`: shares outside [0, theta)
    without an error (v(T) < 0 and no spike; v(T) >= theta and a spike at each step).
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
    """What one inference costs, on average: `spikes` in all, per neuron, synaptic operations (a spike times the layers
    it reaches), and energy in nJ, with what is computed once per input counted as multiply-accumulates. Rehearsals are
    counted in all of them; `latency`: steps until the answer."""

    neurons: int
    spikes: float
    spikes_per_neuron: float
    synaptic_operations: float
    energy_nj: float
    latency: int
    ann_macs: float
    ann_energy_nj: float
    more: dict[str, float] = field(default_factory=dict)  # what a kind of network has to tell besides


@torch.no_grad()
def examine(source: fx.GraphModule, snn: Converted, x: Tensor, T: int) -> tuple[list[LayerError], Account]:
    """Errors by layer and the cost of an inference, both over the inputs x [N, ...], after T steps."""
    ann, flow = Flow(source), snn.flow
    layers = {site: LayerError(str(site.target), T) for site in flow.sites}
    neurons = spikes = operations = macs = analog = 0.0
    device = next(snn.buffers()).device
    for part in torch.split(x, max(1, ROWS[device.type] // T)):
        share = len(part) / len(x)
        values: dict[fx.Node, Any] = {ann.placeholder: part.to(device)}
        ann.run(ann.nodes[1:-1], values)
        env, state, before = snn.simulated(part.to(device), T)
        neurons = 0.0
        for site, twin in zip(flow.sites, ann.sites, strict=True):
            seen = _parts(flow, site, ann, twin, env, values, state, T)
            neurons += seen.count[0].numel()
            spikes += sum(float((train[site] != 0).sum()) for train in (env, *before)) / len(x)
            _add(layers[site], seen, share)
        for node in flow.nodes:
            module = flow.module(node)
            if isinstance(module, (nn.Linear, *CONVS)):
                cost = macs_of_row(module, env[node], len(part) * (T if node in flow.timed else 1))
                macs += cost * share
                if node in flow.timed:
                    heard = [train[node.args[0]] for train in (env, *(before if node in flow.body else ()))]
                    operations += cost * sum(len(h) * float((h != 0).float().mean()) for h in heard) / len(x)
                else:
                    analog += cost * share
    account = Account(
        int(neurons),
        spikes,
        spikes / neurons,
        operations,
        analog * MAC + operations * AC,
        snn.latency(T),
        macs,
        macs * MAC,
    )
    return list(layers.values()), account


def split_error(
    c: Tensor, z: Tensor, v: Tensor, count: Tensor, theta: Tensor, T: int, f: nn.Module
) -> dict[str, Tensor]:
    """The parts of phi - a (see `LayerError`) by neuron: from mean input c [N, ...], the ANN's input z, the potential v
    after the last reset, the spike count, and the source's activation f."""
    even = theta / T * even_count(count, v, theta, T)
    phi, reached = theta / T * count, f(c)
    clipped = c.clamp(min=0).minimum(theta) if type(f) is nn.ReLU else reached
    return {
        "error": phi - f(z),
        "unevenness": phi - even,
        "quantisation": even - clipped,
        "clipping": clipped - reached,
        "propagated": reached - f(z),
    }


def even_count(count: Tensor, v: Tensor, theta: Tensor, T: int) -> Tensor:
    """Spikes for the same input arriving evenly, from the count and the potential that is left: T/theta CF*."""
    return (count + torch.floor(v / theta)).clamp(0, T)


@dataclass
class _Seen:
    a: Tensor
    phi: Tensor
    count: Tensor
    v: Tensor
    theta: Tensor
    parts: dict[str, Tensor]


def _parts(
    flow: Flow,
    site: fx.Node,
    ann: Flow,
    twin: fx.Node,
    env: dict[fx.Node, Any],
    values: dict[fx.Node, Any],
    state: dict[fx.Node, Any],
    T: int,
) -> _Seen:
    neuron, f = flow.module(site), ann.module(twin)
    assert isinstance(neuron, ScaledIF)
    assert f is not None
    before: fx.Node = site.args[0]  # type: ignore[assignment]
    current = unfold(env[before], T).mean(0) if before in flow.timed else env[before]
    phi = unfold(env[site], T).mean(0)
    count = (phi * T / neuron.theta).round()
    v = neuron.residual(state[site])
    parts = split_error(current + neuron.bias, values[twin.args[0]], v, count, neuron.theta, T, f)  # type: ignore[index]
    return _Seen(values[twin], phi, count, v, neuron.theta, parts)


def _add(layer: LayerError, seen: _Seen, share: float) -> None:
    """Add the means over one batch, `share` of all images."""
    v, count, theta = seen.v, seen.count, seen.theta
    over, under = (v < 0) & (count > 0), (v >= theta) & (count < layer.T)
    spikes = seen.parts["unevenness"] * layer.T / theta
    means = {
        "ann_mean": seen.a,
        "snn_mean": seen.phi,
        "threshold": theta,
        "firing_rate": count / layer.T,
        "silent": count == 0,
        "over": over,
        "under": under,
        "over_spikes": spikes.clamp(min=0),
        "under_spikes": -spikes.clamp(max=0),
        "zeros": (v < 0) & ~over,
        "saturated": (v >= theta) & ~under,
    }
    for name, value in means.items():
        setattr(layer, name, getattr(layer, name) + share * float(value.float().mean()))
    for name, value in seen.parts.items():
        setattr(layer, name, getattr(layer, name) + share * float(value.square().mean()))


def macs_of_row(module: nn.Module, output: Tensor, rows: int) -> float:
    """Multiply-accumulates of one row: each output of a convolution or linear layer has a fan-in of its own."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    fan_in = weight[:, 0].numel() if transposed else weight[0].numel()
    return output.numel() / rows * fan_in


def columns() -> list[str]:
    """Names of the columns of the table by layer."""
    return [f.name for f in fields(LayerError)]
