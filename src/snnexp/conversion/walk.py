"""Every conversion is one walk: sites in graph order, each placed and corrected on what the network below it emits.

The walk carries, for every site that a later one still needs, the ANN's activation and the spike train of the same
calibration images in lock step: activations as float32, trains with one bit per step. What lies between two sites is
computed anew, a few images at a time; the input of the site at work is kept as far as 2 GiB go. Arrays above a quarter
of a gigabyte are files that are mapped (in the system's folder for temporary files), so memory is bounded whatever the
number of images and steps.
"""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from snnexp.conversion.graph import CONVS, NORMS, Flow, is_addition
from snnexp.conversion.neuron import FewSpike, Readout, ScaledIF
from snnexp.timefold import unfold

IN_MEMORY = 2**28  # bytes of one array; larger ones are mapped files
KEPT = 2**31  # bytes of the input of one site that are kept from one correction to the next
ROWS = defaultdict(lambda: 8192, cpu=256)  # images x steps computed at a time, by device
Mode = Literal["ann", "mean", "train"]
Report = Callable[[int, int, str], None]  # (layers done, layers in all, the layer begun)


@dataclass
class Stats:
    """How far a site's mean output phi is from the ANN's activation a on the calibration images, e = a - phi.

    `error` [1, C, ...]: mean of e over images; `square` [C]: mean of e^2 over images and space.
    """

    error: Tensor
    square: Tensor

    @property
    def channel(self) -> Tensor:
        """Mean of e over images and space, [C]."""
        return per_channel(self.error)


@dataclass
class Proposal:
    """What a correction would change: the neuron, or the weights before it; kept where `score` [C] becomes lower."""

    score: Callable[[Stats], Tensor]
    neuron: ScaledIF | FewSpike | Readout | None = None
    weight: Tensor | None = None


@dataclass
class Kept:
    """One correction at one layer: the mean of its objective over channels before and after, and the share kept."""

    correction: str
    before: float
    after: float
    share: float


@dataclass
class Record:
    """What was placed at a site, and what became of each correction."""

    name: str
    theta: float | None
    corrections: list[Kept] = field(default_factory=list)


class Method(Protocol):
    """A conversion: which neuron stands for a site. `per_T`: what it places depends on T; `decoded`: its neurons are
    few-spike ones, whose T steps are their own, so that layers hand on numbers."""

    maxpool: str | None
    decoded: bool

    @property
    def per_T(self) -> bool: ...

    def place(self, layer: Layer) -> ScaledIF | FewSpike: ...


class Correction(Protocol):
    """One step of a calibration; `name` is shown. None: nothing to propose for this layer."""

    name: str

    def propose(self, layer: Layer) -> Proposal | None: ...


def walk(
    source: fx.GraphModule,
    network: fx.GraphModule,
    images: Tensor,
    T: int,
    method: Method,
    corrections: Sequence[Correction] = (),
    report: Report | None = None,
) -> list[Record]:
    """Turn `network` (see `prepare`) into the spiking network of `method` for T steps, in place.

    `images` [N, ...] calibrate. Each of `corrections`, in order, is proposed at each site and at the output, and kept
    per channel where its objective on `images` becomes lower. Raises what `method.place` refuses.
    """
    with torch.no_grad():
        state = _Walk(Flow(source), Flow(network), images, T)
        sites = state.snn.sites
        records = []
        for done, site in enumerate(sites):
            if report:
                report(done, len(sites) + 1, str(site.target))
            layer = Layer(state, site.args[0], site)
            layer.neuron = method.place(layer)
            records.append(_finished(layer, corrections))
        if report:
            report(len(sites), len(sites) + 1, "output")
        out = state.snn.output.args[0]
        if corrections and isinstance(out, fx.Node) and out in state.snn.timed and carrier(state.snn, out):
            layer = Layer(state, out, None)
            layer.neuron = Readout(torch.zeros(1))
            records.append(_finished(layer, corrections))
        fold_biases(state.snn)
    return records


def _finished(layer: Layer, corrections: Sequence[Correction]) -> Record:
    layer.simulate()
    kept = [k for correction in corrections if (k := layer.correct(correction))]
    layer.settle()
    theta = float(layer.neuron.theta.mean()) if isinstance(layer.neuron, ScaledIF) else None
    return Record(layer.name, theta, kept)


class Layer:
    """A site, or the network's output, as methods and corrections see it.

    `name`, `T` steps, the number of `images`, the ANN's `activation`, the `neuron` placed so far (at the output: a
    `Readout`), its `stats`, and the `synapse`: the convolution or linear layer whose weights and bias act on this site
    alone, or None.
    """

    neuron: ScaledIF | FewSpike | Readout
    stats: Stats

    def __init__(self, state: _Walk, current: fx.Node, site: fx.Node | None) -> None:
        self._walk, self._current, self._site, self.T = state, current, site, state.T
        self._synapse = carrier(state.snn, current)
        self.images = state.n
        self.name = "output" if site is None else str(site.target)
        self._train: Tensor | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []
        self.activation = nn.Identity() if site is None else state.ann.modules[str(site.target)]

    @property
    def synapse(self) -> nn.Module | None:
        module = self._walk.snn.module(self._synapse) if self._synapse else None
        return module if isinstance(module, (nn.Linear, *CONVS)) else None

    def activations(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(z, a) [n, ...] a batch at a time: the ANN's input and output at this site."""
        for rows in self._walk.batches(1):
            (z,) = self._walk.values("ann", [self._current], rows)
            yield z, self.activation(z)

    def means(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(a, c) [n, ...] a batch at a time: the ANN's output, and the mean input that the spiking network gives, the
        neuron's bias not included."""
        for rows in self._walk.batches(1):
            (z,) = self._walk.values("ann", [self._current], rows)
            (c,) = self._walk.values("mean", [self._current], rows)
            yield self.activation(z), c

    def answers(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(x, a, phi) [n, ...] a few images at a time: the mean input of the synapse, the ANN's activation, and the
        simulated mean output."""
        assert self._synapse is not None
        before: fx.Node = self._synapse.args[0]  # type: ignore[assignment]
        batches = self._walk.batches(self.T if isinstance(self.neuron, ScaledIF) else 1)
        for rows, (a, phi, _) in zip(batches, self._responses(self.neuron), strict=True):
            (x,) = self._walk.values("mean", [before], rows)
            yield x, a, phi

    def trains(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(a [n, ...], current [T, n, ...]) a few images at a time, not to be written to; the neuron's bias not
        included."""
        for done, rows in enumerate(self._walk.batches(self.T)):
            if done < len(self._kept):
                yield self._kept[done]
                continue
            (z,) = self._walk.values("ann", [self._current], rows)
            (c,) = self._walk.values("train", [self._current], rows)
            pair = self.activation(z), c
            if done == len(self._kept) and (done + 1) * c.nbytes <= KEPT:
                self._kept.append(pair)
            yield pair

    def simulate(self) -> None:
        """Run the layer as it is: `stats`, and its train for the layers above."""
        self.stats, self._train = self._simulated(self.neuron)

    def correct(self, correction: Correction) -> Kept | None:
        """Propose, simulate, and keep per channel what lowers the correction's objective."""
        if (proposal := correction.propose(self)) is None:
            return None
        before, neuron = proposal.score(self.stats), proposal.neuron or self.neuron
        weight, old = proposal.weight, None
        if weight is not None and self.synapse is not None:
            old = cast(Tensor, self.synapse.weight).data
            self._weigh(weight)
        stats, train = self._simulated(neuron)
        after = proposal.score(stats)
        better = after < before
        if old is not None and weight is not None and self.synapse is not None:
            self._weigh(torch.where(along(better, old.dim(), 0), weight, old))
        self.neuron = self.neuron.mixed(better, neuron)
        at = along(better, stats.error.dim())
        self.stats = Stats(
            torch.where(at, stats.error, self.stats.error), torch.where(better, stats.square, self.stats.square)
        )
        if train is not None and self._train is not None:
            _take_over(better, train, self._train)
        return Kept(
            correction.name,
            float(before.mean()),
            float(torch.where(better, after, before).mean()),
            float(better.float().mean()),
        )

    def settle(self) -> None:
        """Put what was found into the network, and make the layer's output available to the layers above."""
        if not isinstance(self.neuron, Readout):
            assert self._site is not None
            assert self._train is not None
            self._walk.store(self._site, self._current, self.activation, self.neuron, self._train)
        else:
            assert self._synapse is not None
            add_bias(self._walk.snn.module(self._synapse), self.neuron.bias)  # type: ignore[arg-type]

    def _weigh(self, weight: Tensor) -> None:
        assert self.synapse is not None
        self.synapse.weight = nn.Parameter(weight, requires_grad=False)
        self._kept = []

    def _simulated(self, neuron: ScaledIF | FewSpike | Readout) -> tuple[Stats, Tensor | None]:
        error: Tensor | None = None
        square, train, start, n = torch.zeros(()), None, 0, self._walk.n
        for a, phi, bits in self._responses(neuron):
            e = a - phi
            if error is None:
                error, square = torch.zeros_like(e[:1]), e.new_zeros(e.shape[1])
                train = _room((len(bits), n, *bits.shape[2:]), bits.dtype) if bits is not None else None
            error += e.sum(0, keepdim=True)
            square += per_channel(e.square()) * len(e)
            if train is not None and bits is not None:
                train[:, start : start + len(a)] = bits.cpu()
            start += len(a)
        assert error is not None
        return Stats(error / n, square / n), train

    def _responses(self, neuron: ScaledIF | FewSpike | Readout) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """(a, phi, bits) a few images at a time; the output's phi is its mean current, a few-spike layer hands on phi
        itself, [1, n, ...]."""
        if isinstance(neuron, Readout):
            for a, c in self.means():
                yield a, c + neuron.bias, None
        elif isinstance(neuron, FewSpike):
            for a, c in self.means():
                yield a, (phi := neuron(c)), phi.unsqueeze(0)
        else:
            for a, current in self.trains():
                out, _ = neuron.scan(current, None)
                yield a, mean_over_time(out), _packed(out)


class _Walk:
    """The values of the calibration images on their way through both networks."""

    def __init__(self, ann: Flow, snn: Flow, images: Tensor, T: int) -> None:
        self.ann, self.snn, self.images, self.T, self.n = ann, snn, images, T, len(images)
        self.twin = dict(zip(snn.nodes, ann.nodes, strict=True))
        parameter = next(snn.graph.parameters(), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device
        self.activations: dict[fx.Node, Tensor] = {}
        self.trains: dict[fx.Node, Tensor] = {}

    def batches(self, steps: int) -> Iterator[slice]:
        size = max(1, ROWS[self.device.type] // steps)
        return (slice(i, min(i + size, self.n)) for i in range(0, self.n, size))

    def values(self, mode: Mode, wanted: Sequence[fx.Node], rows: slice) -> list[Tensor]:
        """Values of `wanted` (nodes of the spiking network) for the images `rows`.

        `ann`: the ANN's; `mean`: time means of the spiking network, both [n, ...]; `train`: [T, n, ...].
        """
        inside, known = self.snn.segment(wanted, [*self.trains, self.snn.placeholder])
        flow, steps = (self.ann, None) if mode == "ann" else (self.snn, self.T if mode == "train" else None)
        env = {self._of(mode, n): self._stored(mode, n, rows) for n in known}
        flow.run([self._of(mode, n) for n in inside], env, steps)
        found = [env[self._of(mode, n)] for n in wanted]
        if steps is None:
            return found
        return [
            unfold(v, steps) if n in flow.timed else v.expand(steps, *v.shape)
            for n, v in zip(wanted, found, strict=True)
        ]

    def _of(self, mode: Mode, node: fx.Node) -> fx.Node:
        return self.twin[node] if mode == "ann" else node

    def _stored(self, mode: Mode, node: fx.Node, rows: slice) -> Tensor:
        if node is self.snn.placeholder:
            return self.images[rows].to(self.device)
        if mode == "ann":
            return self.activations[node][rows].to(self.device)
        if isinstance(self.snn.module(node), FewSpike):
            return self.trains[node][0, rows].to(self.device)
        theta = self.snn.module(node).theta  # type: ignore[union-attr]
        train = _unpacked(self.trains[node][:, rows].to(self.device), self.T, theta.dtype)  # type: ignore[arg-type]
        return mean_over_time(train).mul_(theta) if mode == "mean" else train.mul_(theta).flatten(0, 1)  # type: ignore[arg-type]

    def store(
        self, site: fx.Node, current: fx.Node, activation: nn.Module, neuron: ScaledIF | FewSpike, train: Tensor
    ) -> None:
        """Place `neuron` at `site` with what it and the ANN emit there, and forget what nobody needs any more."""
        activations = _room((1, *train.shape[1:]), neuron.theta.dtype)[0]
        for rows in self.batches(1):
            (z,) = self.values("ann", [current], rows)
            activations[rows] = activation(z).cpu()
        self.snn.replace(site, neuron)
        self.activations[site], self.trains[site] = activations, train
        to_come = [n for n in self.snn.sites if n not in self.trains]
        ends = [n.args[0] for n in to_come] + self.snn.output.all_input_nodes
        _, needed = self.snn.segment(ends, [*self.trains, self.snn.placeholder])
        for gone in [n for n in self.trains if n not in needed]:
            del self.trains[gone], self.activations[gone]


def fold_biases(flow: Flow) -> None:
    """What corrections added to a site's input, into the layer before it, where that layer serves this site alone."""
    for site in flow.sites:
        neuron, node = flow.module(site), carrier(flow, site.args[0])
        if isinstance(neuron, ScaledIF | FewSpike) and bool(neuron.bias.any()) and node is not None:
            add_bias(flow.module(node), neuron.bias)  # type: ignore[arg-type]
            neuron.bias = torch.zeros_like(neuron.bias)


def add_bias(module: nn.Module, bias: Tensor) -> None:
    """Add `bias` [1, C, ...] to that of a convolution, linear layer or BatchNorm."""
    module.bias = nn.Parameter(module.bias.data + bias.flatten(), requires_grad=False)  # type: ignore[operator]


def per_channel(x: Tensor) -> Tensor:
    """Mean over everything but dimension 1: [N, C, ...] -> [C]."""
    return x.mean(dim=[d for d in range(x.dim()) if d != 1])


def mean_over_time(train: Tensor) -> Tensor:
    """[T, ...] -> [...]; step by step: a reduction over the first axis is slow where channels come last."""
    total = train[0].clone()
    for step in train[1:]:
        total += step
    return total / len(train)


def along(values: Tensor, dims: int, at: int = 1) -> Tensor:
    """[C] as a tensor of `dims` dimensions that varies along dimension `at`."""
    return values.view([-1 if d == at else 1 for d in range(dims)])


def carrier(flow: Flow, current: fx.Node) -> fx.Node | None:
    """The layer whose weights and bias act on `current` alone, directly or through additions, and whose outputs are its
    channels; None if there is none."""
    if len(current.users) != 1:
        return None
    module = flow.module(current)
    if isinstance(module, nn.Linear) and len(current.meta["shape"]) > 1:  # [N, L, D]: axis 1 are not the outputs
        return None
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *NORMS)):
        once = sum(n.op == "call_module" and n.target == current.target for n in flow.nodes) == 1
        return current if once and module.weight is not None else None
    if is_addition(current) and current.args[0] is not current.args[1]:
        found = [c for n in reversed(current.args) if isinstance(n, fx.Node) and (c := carrier(flow, n)) is not None]
        found = [c for c in found if c.meta["shape"] == current.meta["shape"]]  # others are broadcast
        return found[0] if found else None
    return None


def _room(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty CPU tensor [bytes, N, C, ...], channels last; in memory or, if large, in a file that goes with it."""
    if math.prod(shape) * dtype.itemsize <= IN_MEMORY:
        return _channels_last(shape, dtype)
    kind = torch.empty(0, dtype=dtype).numpy().dtype
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, kind, "w+", shape=(*shape[:2], *shape[3:], shape[2]))).movedim(-1, 2)


def _channels_last(shape: Sequence[int], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Empty, [T, N, C, ...], in the layout that convolutions work in."""
    return torch.empty(*shape[:2], *shape[3:], shape[2], dtype=dtype, device=device).movedim(-1, 2)


def _packed(out: Tensor) -> Tensor:
    """[T, n, ...] of 0 or theta -> bits uint8 [ceil(T/8), n, ...], step t in bit t % 8 of byte t // 8."""
    bits = torch.empty_like(out[: -(-len(out) // 8)], dtype=torch.uint8)
    spike = torch.empty_like(out[0])
    for byte, steps in zip(bits, torch.split(out, 8), strict=True):
        value = torch.zeros_like(spike)
        for emitted in reversed(steps.unbind()):
            torch.gt(emitted, 0, out=spike)  # as floats, which is far faster than a comparison to bool
            torch.add(spike, value, alpha=2, out=value)
        byte.copy_(value)
    return bits


def _unpacked(bits: Tensor, T: int, dtype: torch.dtype) -> Tensor:
    """The inverse: [T, n, ...] of 0 or 1."""
    train = _channels_last((T, *bits.shape[1:]), dtype, bits.device)
    for t in range(T):
        train[t] = (bits[t // 8] >> t % 8) & 1
    return train


def _take_over(better: Tensor, new: Tensor, old: Tensor) -> None:
    """Take the better channels of `new` over into `old`, both [bytes, N, C, ...]."""
    channels = better.nonzero().flatten().cpu()
    for start in range(0, old.shape[1], 256):
        rows = slice(start, start + 256)
        old[:, rows].index_copy_(2, channels, new[:, rows].index_select(2, channels))
