"""Converted networks as ordinary modules, and `convert`, which makes one."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from snnexp.conversion.flow import Flow
from snnexp.conversion.measure import Account, LayerError, examine_trains
from snnexp.conversion.placed import Placed
from snnexp.conversion.rewrite import rewrite
from snnexp.conversion.slots import coefficients, examine_slots
from snnexp.conversion.walk import Correction, Keep, LayerRecord, Method, ShowLayer, walk
from snnexp.errors import integer, require
from snnexp.timefold import unfold

INFERENCE_ROWS = defaultdict(lambda: 8192, cpu=128)  # images x steps at a time; on a CPU, as many as the caches hold


class Simulation(NamedTuple):
    """The value of every node (`env`; trains are folded, [T*N, ...]) and the state of every site after T steps.

    `before`: values of nodes during rehearsals, which add to the cost but not to the output.
    """

    env: dict[fx.Node, Any]
    state: dict[fx.Node, Any]
    before: list[dict[fx.Node, Any]]


class Converted(nn.Module):
    """A spiking network made from an ANN: `snn(x)`, or `snn(x, T)`, is the mean of its output over T steps, in the
    ANN's units and shape; the default T is the one for which it was made.

    Layers before the first site do not vary in time and are computed once per input; layers after the last site are
    linear and are computed from the mean. `rows`: images x steps computed at a time, which bounds memory to about rows
    x the network's largest activations (None: 128 on a CPU, 8192 on a GPU). Raises InvalidValue for T or rows < 1.
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
        """The network's nodes in order of execution; built again after loading or copying."""
        if self._flow is None or self._flow.graph is not self.network:
            self._flow = Flow(self.network)
        return self._flow

    def _apply(self, *arguments: Any, **keywords: Any) -> Any:
        self._flow = None
        return super()._apply(*arguments, **keywords)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, T: int | None = None) -> Any:
        """Return the mean output over T steps for inputs [N, ...]."""
        return self.at(x, [self.T if T is None else T])[0]

    def at(self, x: Tensor, steps: Sequence[int]) -> list[Any]:
        """Return the mean outputs after each of `steps`, from one simulation of the longest."""
        require(len(steps) > 0, "steps", list(steps), "at least one number of steps")
        ends = sorted({integer("T", t, at_least=1) for t in steps})
        block, images = self._parts(ends[-1])
        found: list[list[Any]] = []
        for part in torch.split(x, images):
            after = {t: y for t, y in self._running(part, _blocks(ends, block)) if t in ends}
            found.append([after[t] for t in steps])
        return [joined(parts) for parts in zip(*found, strict=True)]

    def stream(self, x: Tensor) -> Iterator[Any]:
        """Yield the mean output so far, `snn(x, t)`, after each step t, without end. All of `x` is computed at once."""
        return (y for _, y in self._running(x, iter(lambda: 1, 0)))

    def latency(self, T: int) -> int:
        """Return the number of steps until the mean over T steps is known."""
        return T

    def examine(self, source: fx.GraphModule, x: Tensor, T: int) -> tuple[list[LayerError], Account]:
        """Return the errors by layer against `source` and the cost of an inference of T steps, for inputs [N, ...]."""
        return examine_trains(source, self, x, T)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return tables that describe the network, as lists of rows by name."""
        return {}

    @property
    def integrates(self) -> bool:
        """Whether all neurons are plain integrate-and-fire neurons."""
        return all(self.flow.neuron(site).integrates for site in self.flow.sites)

    @torch.no_grad()
    def simulated(self, x: Tensor, T: int) -> Simulation:
        """Run T steps for inputs [N, ...], all at once."""
        flow, state = self.flow, dict[fx.Node, Any]()
        env = flow.values(x, flow.head)
        flow.run(flow.body + flow.tail, env, T, state)
        return Simulation(env, state, [])

    def _parts(self, T: int) -> tuple[int, int]:
        """Return the (steps, images) to compute at a time."""
        device = next((t.device.type for t in (*self.parameters(), *self.buffers())), "cpu")
        rows = self.rows or INFERENCE_ROWS[device]
        block = min(T, rows)
        return block, max(1, rows // block)

    @torch.no_grad()
    def _running(self, x: Tensor, blocks: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """Yield (t, mean output over the first t steps) after each of `blocks` of steps."""
        flow, t = self.flow, 0
        still, state, sums = flow.values(x, flow.head), dict[fx.Node, Any](), dict[fx.Node, Tensor]()
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
    """A network of few-spike neurons, in which each layer has a slot of K = T steps; K cannot be changed.

    A layer needs all spikes of the layers below before its first own spike. So layers pass on the numbers that K spikes
    encode, and batches are computed with these numbers. `stream` runs all layers at the same time, slot by slot.
    """

    def at(self, x: Tensor, steps: Sequence[int]) -> list[Any]:
        """Return the answer for each of `steps`. Raises InvalidValue for a number of steps other than K."""
        for t in steps:
            self._check(t)
        _, images = self._parts(1)
        with torch.no_grad():
            answer = joined([self.network(part) for part in torch.split(x, images)])
        return [answer] * len(steps)

    @torch.no_grad()
    def stream(self, x: Tensor) -> Iterator[Any]:
        """Yield the answers [1, ...] to x [N, ...] in order, from a pipeline; the first comes after `depth` slots.

        One input enters per slot of K steps; while it is in a layer, the inputs before it are in the layers above.
        """
        flow, levels = self.flow, self.flow.levels
        stages = [[n for n in flow.nodes[1:-1] if max(levels[n], 1) == k + 1] for k in range(self.depth)]
        inside: list[tuple[int, dict[fx.Node, Any]]] = []  # (layers passed, values), the earliest input first
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
        """The number of sites on the longest path to the output: an answer takes `depth` slots."""
        return self.flow.levels[self.flow.output]

    def examine(self, source: fx.GraphModule, x: Tensor, T: int) -> tuple[list[LayerError], Account]:
        self._check(T)
        return examine_slots(source, self, x)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        return {"coefficients": coefficients(self)}

    def _check(self, T: int) -> None:
        require(T == self.T, "T", T, f"{self.T}, the steps of the neurons placed (another K is another network)")


def convert(
    ann: nn.Module,
    images: Tensor,
    method: Method,
    T: int,
    corrections: Sequence[Correction] = (),
    report: ShowLayer | None = None,
    keep: Keep = "better",
) -> tuple[Converted, list[LayerRecord]]:
    """Return the spiking network of `ann` by `method` for T steps, calibrated on `images` [N, ...], and a record of
    each layer. `keep`: see `snnexp.conversion.walk.walk`.

    The caller's network is not changed and shares nothing with the result. Raises UserError (see `rewrite`) for what
    cannot be converted faithfully, InvalidValue for T < 1 and for no or non-finite images, and errors of the method.
    """
    integer("T", T, at_least=1)
    require(len(images) > 0 and bool(images.isfinite().all()), "images", list(images.shape), "at least one, and finite")
    source, network = rewrite(ann, images[:2], method.maxpool, method.neuron.vocabulary)
    records = walk(source, network, images, T, method, corrections, report, keep)
    return converted(network, T), records


def converted(network: fx.GraphModule, T: int) -> Converted:
    """Return the module that runs `network`, in which the walk has placed neurons, for T steps."""
    placed = next(module for module in network.modules() if isinstance(module, Placed))
    return placed.network(network, T)


def _blocks(ends: Sequence[int], block: int) -> Iterator[int]:
    """Yield lengths of at most `block` steps that stop at each of `ends`."""
    t = 0
    for end in ends:
        while t < end:
            steps = min(block, end - t)
            t += steps
            yield steps


def joined(parts: Sequence[Any]) -> Any:
    """Concatenate batches, or (nested) tuples, lists and dicts of batches."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, dict):
        return {key: joined([p[key] for p in parts]) for key in first}
    if isinstance(first, list | tuple):
        return type(first)([joined(values) for values in zip(*parts, strict=True)])
    return first
