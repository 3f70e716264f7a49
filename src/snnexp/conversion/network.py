"""The converted network as an ordinary module, and `convert`, which makes one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from snnexp.conversion.graph import Flow, prepare
from snnexp.conversion.neuron import FewSpike
from snnexp.conversion.walk import Correction, Method, Record, Report, walk
from snnexp.errors import integer, require
from snnexp.timefold import unfold

ROWS = defaultdict(lambda: 8192, cpu=128)  # images x steps in flight: on a CPU what the caches hold is fastest


class Simulation(NamedTuple):
    """Every node's value (`env`; trains are folded, [T*N, ...]) and every site's state after T steps; `before`: what
    the nodes up to the sites carried in rehearsals, which costs and does not count."""

    env: dict[fx.Node, Any]
    state: dict[fx.Node, Any]
    before: list[dict[fx.Node, Any]]


class Converted(nn.Module):
    """A spiking network made from an ANN: `snn(x)`, or `snn(x, T)`, is the mean of its output over T steps, in the
    ANN's units and shape; `T` is by default that for which it was made.

    What does not vary in time (everything before the first site) is computed once per input; what follows the last
    site is linear, and computed from the mean. `rows`: images x steps computed at a time, which bounds memory: about
    rows x the network's largest activations (None: 128 on a CPU, 8192 on a GPU). Raises InvalidValue for T or rows < 1.
    """

    def __init__(self, network: fx.GraphModule, T: int, rows: int | None = None) -> None:
        super().__init__()
        self.network, self.T = network, integer("T", T, at_least=1)
        self.rows = None if rows is None else integer("rows", rows, at_least=1)
        self._flow: Flow | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_flow": None}

    @property
    def flow(self) -> Flow:
        """The network's nodes in order of execution; made anew after loading or copying."""
        if self._flow is None or self._flow.graph is not self.network:
            self._flow = Flow(self.network)
        return self._flow

    def _apply(self, *arguments: Any, **keywords: Any) -> Any:
        self._flow = None
        return super()._apply(*arguments, **keywords)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, T: int | None = None) -> Any:
        """Inputs [N, ...] to the mean output over T steps."""
        return self.at(x, [self.T if T is None else T])[0]

    def at(self, x: Tensor, steps: Sequence[int]) -> list[Any]:
        """Mean outputs after each of `steps`, from one simulation of the longest."""
        require(len(steps) > 0, "steps", list(steps), "at least one number of steps")
        ends = sorted({integer("T", t, at_least=1) for t in steps})
        block, images = self._parts(ends[-1])
        found: list[list[Any]] = []
        for part in torch.split(x, images):
            after = {t: y for t, y in self._running(part, _blocks(ends, block)) if t in ends}
            found.append([after[t] for t in steps])
        return [joined(parts) for parts in zip(*found, strict=True)]

    def stream(self, x: Tensor) -> Iterator[Any]:
        """Step by step without end: after the t-th step the mean output so far, `snn(x, t)`. All of `x` at a time."""
        return (y for _, y in self._running(x, iter(lambda: 1, 0)))

    def latency(self, T: int) -> int:
        """Steps until the mean over T steps is there."""
        return T

    @torch.no_grad()
    def simulated(self, x: Tensor, T: int) -> Simulation:
        """T steps for inputs [N, ...], in one piece."""
        flow = self.flow
        state: dict[fx.Node, Any] = {}
        env: dict[fx.Node, Any] = {flow.placeholder: x}
        flow.run(flow.head, env)
        flow.run(flow.body + flow.tail, env, T, state)
        return Simulation(env, state, [])

    def _parts(self, T: int) -> tuple[int, int]:
        """(steps, images) computed at a time."""
        device = next((t.device.type for t in (*self.parameters(), *self.buffers())), "cpu")
        rows = self.rows or ROWS[device]
        block = min(T, rows)
        return block, max(1, rows // block)

    @torch.no_grad()
    def _running(self, x: Tensor, blocks: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """(t, mean output over the first t steps) after each of `blocks` of steps."""
        flow, t = self.flow, 0
        still: dict[fx.Node, Any] = {flow.placeholder: x}
        flow.run(flow.head, still)
        state: dict[fx.Node, Any] = {}
        sums: dict[fx.Node, Tensor] = {}
        for steps in blocks:
            env = dict(still)
            flow.run(flow.body, env, steps, state, free=True)
            for node in flow.emitting:
                emitted = unfold(env[node], steps).sum(0)
                sums[node] = sums[node] + emitted if node in sums else emitted
            t += steps
            env = still | {node: total / t for node, total in sums.items()}
            flow.run(flow.tail, env)
            yield t, fx.map_arg(flow.output.args[0], env.__getitem__)


class Decoded(Converted):
    """A network of few-spike neurons, one slot of K = T steps a layer: `snn(x)` is its answer, and K is part of it.

    A layer needs all spikes of those below before it fires its first, so layers hand on what K spikes mean, and this
    is what is computed for a batch. `stream` runs the layers side by side, step by step.
    """

    def at(self, x: Tensor, steps: Sequence[int]) -> list[Any]:
        """The answer, for each of `steps`; InvalidValue for another than K."""
        for t in steps:
            require(t == self.T, "T", t, f"{self.T}, the steps of the neurons placed (another K is another network)")
        _, images = self._parts(1)
        with torch.no_grad():
            answer = joined([self.network(part) for part in torch.split(x, images)])
        return [answer] * len(steps)

    @torch.no_grad()
    def stream(self, x: Tensor) -> Iterator[Any]:
        """A pipeline: the inputs x [N, ...] enter one a slot of K steps, and while one is in a layer, those before it
        are in the layers above. The answers [1, ...] in the same order, the first after `depth` slots."""
        flow, levels = self.flow, self.flow.levels
        stages = [[n for n in flow.nodes[1:-1] if max(levels[n], 1) == k + 1] for k in range(self.depth)]
        inside: list[tuple[int, dict[fx.Node, Any]]] = []  # (layers passed, values), those that came first at the front
        for new in chain(torch.split(x, 1), repeat(None)):
            if new is not None:
                inside.append((0, {flow.placeholder: new}))
            for layer, values in inside:
                flow.run(stages[layer], values)
            inside = [(layer + 1, values) for layer, values in inside]
            if inside[0][0] == self.depth:
                yield fx.map_arg(flow.output.args[0], inside.pop(0)[1].__getitem__)
            if not inside:
                return

    @property
    def depth(self) -> int:
        """Sites on the longest way to the output: an answer takes `depth` slots."""
        return self.flow.levels[self.flow.output]


def convert(
    ann: nn.Module,
    images: Tensor,
    method: Method,
    T: int,
    corrections: Sequence[Correction] = (),
    report: Report | None = None,
) -> tuple[Converted, list[Record]]:
    """The spiking network of `ann` by `method` for T steps, calibrated on `images` [N, ...], and what was done where.

    The caller's network is not touched, and shares nothing with the result. Raises UserError (`graph.prepare`) for
    what cannot be converted faithfully, InvalidValue for T < 1 and images that are none or not finite, and what the
    method refuses.
    """
    integer("T", T, at_least=1)
    require(len(images) > 0 and bool(images.isfinite().all()), "images", list(images.shape), "at least one, and finite")
    source, network = prepare(ann, images[:2], method.maxpool, method.decoded)
    records = walk(source, network, images, T, method, corrections, report)
    return converted(network, T), records


def converted(network: fx.GraphModule, T: int) -> Converted:
    """The network that the walk has made as a module that runs it."""
    few_spike = any(isinstance(module, FewSpike) for module in network.modules())
    return Decoded(network, T) if few_spike else Converted(network, T)


def _blocks(ends: Sequence[int], block: int) -> Iterator[int]:
    """Lengths of at most `block` that stop at each of `ends`."""
    t = 0
    for end in ends:
        while t < end:
            steps = min(block, end - t)
            t += steps
            yield steps


def joined(parts: Sequence[Any]) -> Any:
    """Batches, or (nested) tuples, lists and dicts of batches, one after the other."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, dict):
        return {key: joined([p[key] for p in parts]) for key in first}
    if isinstance(first, list | tuple):
        return type(first)([joined(values) for values in zip(*parts, strict=True)])
    return first
