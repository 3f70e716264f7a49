"""Quantised activations that are written out in torch operations, as published QCFS networks do:

    y = thresh * floor(clamp(x / thresh, 0, 1) * L + 0.5) / L

They are recognised by their values, whatever the order of their operations, and become `snnexp.neuron.qcfs.QCFS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor, fx

from snnexp.activations import of_module
from snnexp.conversion.flow import Flow
from snnexp.conversion.layers import free, replace_call
from snnexp.conversion.vocabulary import function_name, names, owner_name
from snnexp.neuron.qcfs import QCFS

ELEMENTWISE = names(
    "add sub mul multiply truediv div clamp clip clamp_min clamp_max hardtanh relu relu6 minimum maximum"
)
ROUNDING = names("floor round")
LEVELS = 4096  # at most
POINTS = 2**16


class Quantised(NamedTuple):
    """A written-out activation: its first node, the `nodes` up to its last, the input is the first's only data."""

    nodes: tuple[fx.Node, ...]
    module: QCFS


@torch.no_grad()
def quantised(graph: fx.GraphModule) -> list[Quantised]:
    """Return the written-out QCFS activations in `graph`."""
    flow = Flow(graph)
    roundings = [n for n in flow.nodes if n.op in ("call_function", "call_method") and function_name(n) in ROUNDING]
    return [found for node in roundings if (found := _around(flow, node)) is not None]


def replace_quantised(graph: fx.GraphModule, found: list[Quantised]) -> None:
    """Put modules in the place of written-out activations, named after the modules that call them."""
    for nodes, module in found:
        given = next(n for n in nodes[0].all_input_nodes if n in Flow(graph).data)
        replace_call(graph, nodes[-1], free(graph, f"{owner_name(nodes[-1])}.qcfs".lstrip(".")), module, given)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _around(flow: Flow, node: fx.Node) -> Quantised | None:
    above = [node, *takewhile(lambda n: len(n.users) == 1, _chain(flow, node, lambda n: _data(flow, n)))]
    below = [node, *_chain(flow, node, lambda n: list(n.users))] if len(node.users) == 1 else [node]
    for up in range(len(above), 0, -1):
        (given,) = _data(flow, above[up - 1])
        for down in range(len(below), 0, -1):
            chain = (*reversed(above[1:up]), *below[:down])
            inside, _ = flow.segment([chain[-1]], [given])
            if not any(n.op == "get_attr" for n in inside):  # no bound of its own: rounding of an image, say
                continue
            if (module := _identified(_function(flow, inside, given, chain[-1]))) is not None:
                return Quantised(chain, module)
    return None


def _chain(flow: Flow, node: fx.Node, following: Callable[[fx.Node], list[fx.Node]]) -> Iterator[fx.Node]:
    """Yield elementwise operations of one signal and constants, one after the other."""
    while len(nodes := following(node)) == 1:
        node = nodes[0]
        module = flow.module(node)
        known = of_module(module) is not None if module is not None else function_name(node) in ELEMENTWISE
        if not known or node.op in ("placeholder", "output") or len(_data(flow, node)) != 1:
            return
        yield node


def _data(flow: Flow, node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if n in flow.data]


def _function(flow: Flow, inside: list[fx.Node], given: fx.Node, end: fx.Node) -> Callable[[Tensor], Tensor | None]:
    def values(x: Tensor) -> Tensor | None:
        env = {given: x}
        try:
            flow.run(inside, env)
        except Exception:  # it needs more than one number
            return None
        return env[end] if env[end].shape == x.shape else None

    return values


def _identified(f: Callable[[Tensor], Tensor | None]) -> QCFS | None:
    """Return the QCFS activation with the values of f; None if there is none."""
    if (ends := f(torch.tensor([-1e9, 1e9, 1e12]))) is None:
        return None
    low, top, beyond = ends.tolist()
    if low != 0 or not 1e-3 <= top == beyond < 1e6:
        return None
    grid = torch.linspace(0, top, POINTS)
    steps = f(grid)
    assert steps is not None
    levels = len((steps / top * LEVELS * 8).round().unique()) - 1
    if not 1 <= levels <= LEVELS:
        return None
    made = QCFS(levels, top)
    x = torch.linspace(-0.53 * top, 1.51 * top, POINTS)
    values = f(x)
    assert values is not None
    alike = ((made(x) - values).abs() < 1e-4 * top).float().mean()
    return made if alike > 1 - 1e-3 - levels / POINTS else None
