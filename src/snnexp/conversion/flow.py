"""The executor: runs a `torch.fx` graph on folded time (`snnexp.timefold`), and knows which nodes vary in time.

Nothing here depends on a conversion method or a code.
"""

import operator
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, fx, nn

from snnexp.conversion.placed import Placed
from snnexp.conversion.stateful import Frames, Stateful
from snnexp.conversion.vocabulary import CONSTANT, CONVS, Curve, function_name, is_addition, rectifier
from snnexp.timefold import fold, unfold

SIZES = (
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "is_floating_point",
    "is_complex",
)  # methods that ask for one
ATTRIBUTES = ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad")


class Flow:
    """A graph in execution order, divided into parts that vary in time and parts that do not.

    `sites`: calls of an activation or a neuron. `timed`: all nodes after a site or after the frames of a recording.
    `head`: the nodes that are not timed. `body`: the sites and the timed nodes that lead to one. `tail`: the other
    timed nodes up to `output`, which are linear in what the body emits.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.modules: dict[str, nn.Module] = dict(graph.named_modules())
        self.nodes = list(graph.graph.nodes)
        self.output = self.nodes[-1]
        self.placeholder = self.nodes[0]
        self.sites = [n for n in self.nodes if self._is_site(n)]
        self.data = _batched(self.nodes)
        self.timed = _after(self.nodes, [*self.sites, *(n for n in self.nodes if isinstance(self.module(n), Frames))])
        leading = before(self.nodes, self.sites)
        self.head = [n for n in self.nodes if n not in self.timed and n is not self.output]
        self.body = [n for n in self.nodes if n in self.timed and n in leading]
        self.tail = [n for n in self.nodes if n in self.timed and n not in leading and n is not self.output]
        self.emitting = [n for n in self.body if any(u not in leading for u in n.users)]  # inputs of the tail
        self.spent = {n for n in self.body if self._is_spent(n)}
        self._last: dict[fx.Node, list[fx.Node]] = {}  # nodes that the body does not need after a node
        for node in self.body:
            if node not in self.emitting:
                self._last.setdefault(max(node.users, key=self.nodes.index), []).append(node)

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that `node` calls; None if it calls none."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def neuron(self, site: fx.Node) -> Placed:
        """Return the neuron placed at `site`."""
        return cast(Placed, self.module(site))

    @property
    def levels(self) -> dict[fx.Node, int]:
        """The number of sites on the longest path to each node; that of `output` is the network's depth."""
        found: dict[fx.Node, int] = {}
        for node in self.nodes:
            found[node] = max((found[n] for n in node.all_input_nodes), default=0) + (node in self.sites)
        return found

    def replace(self, node: fx.Node, module: nn.Module) -> None:
        """Replace the module that `node` calls by `module`."""
        self.graph.set_submodule(str(node.target), module)
        self.modules = dict(self.graph.named_modules())

    def _is_site(self, node: fx.Node) -> bool:
        module = self.module(node)
        return module is not None and (isinstance(module, Placed | Curve) or rectifier(module) is not None)

    def _is_spent(self, node: fx.Node) -> bool:
        """Return whether a site or an addition may overwrite its first input: new memory that no other node reads."""
        first = node.args[0] if node.args else None
        if not (isinstance(first, fx.Node) and first in self.timed and len(first.users) == 1):
            return False
        made = isinstance(self.module(first), (nn.Linear, *CONVS)) or is_addition(first)
        return made and (node in self.sites or (is_addition(node) and node.args[1] is not first))

    def segment(self, wanted: Iterable[fx.Node], known: Iterable[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
        """Return (the nodes to run, in order, to get `wanted`; the nodes of `known` that they start from)."""
        stop, inside, start, todo = set(known), set(), set(), list(wanted)
        while todo:
            node = todo.pop()
            if node in stop:
                start.add(node)
            elif node not in inside:
                inside.add(node)
                todo += node.all_input_nodes
        return [n for n in self.nodes if n in inside], [n for n in self.nodes if n in start]

    def values(self, x: Tensor, nodes: Sequence[fx.Node] | None = None) -> dict[fx.Node, Any]:
        """Return the values of `nodes` (None: all) for the input x, as `run` without `steps` gives them."""
        env: dict[fx.Node, Any] = {self.placeholder: x}
        self.run(self.nodes[1:-1] if nodes is None else nodes, env)
        return env

    def run(
        self,
        nodes: Sequence[fx.Node],
        env: dict[fx.Node, Any],
        steps: int | None = None,
        state: dict[fx.Node, Any] | None = None,
        free: bool = False,
    ) -> None:
        """Run `nodes` and add their values to `env`.

        Without `steps`, all values are means over time (or values of an ANN), [N, ...]. With it, timed values are
        folded trains [steps*N, ...], other values are repeated at each step, and stateful modules continue from
        `state`, which is updated. With `free`, values of the body are removed after their last use, and their memory is
        reused.
        """
        lifted: dict[fx.Node, Any] = {}
        for node in nodes:
            if node.op == "placeholder":
                env.setdefault(node, node.args[0] if node.args else None)
                continue
            module = self.module(node)
            if isinstance(module, Stateful) and steps is not None:
                current = env[node.args[0]]  # type: ignore[index]
                x = unfold(current, steps) if node.args[0] in self.timed else current.expand(steps, *current.shape)
                scan = module.consume if free and node in self.spent else module.scan
                out, after = scan(x, None if state is None else state.get(node))
                env[node] = fold(out)
                if state is not None:
                    state[node] = after
            else:
                load = partial(self._load, env, lifted, steps, node)
                args, kwargs = cast(tuple[Any, Any], fx.map_arg((node.args, node.kwargs), load))
                if free and node in self.spent and args[0].shape == args[1].shape:
                    env[node] = args[0].add_(args[1])
                else:
                    env[node] = self._call(node, args, kwargs)
            if free:
                for done in self._last.get(node, ()):
                    del env[done]

    def _load(
        self, env: dict[fx.Node, Any], lifted: dict[fx.Node, Any], steps: int | None, user: fx.Node, n: fx.Node
    ) -> Any:
        """Return the value of `n` for `user`, repeated at each step (kept in `lifted`) where only `user` is timed.

        This is a method because a nested function that calls itself would keep `env` alive until garbage collection.
        """
        if steps is None or user not in self.timed or n in self.timed or n not in self.data:
            return env[n]
        if n not in lifted:
            value = env[n]
            if isinstance(value, Tensor):
                lifted[n] = value.repeat(steps, *[1] * (value.dim() - 1)) if steps > 1 else value
            else:  # a size: computed again for the folded batch
                load = partial(self._load, env, lifted, steps, user)
                lifted[n] = self._call(n, *fx.map_arg((n.args, n.kwargs), load))
        return lifted[n]

    def _call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "call_module":
            return self.modules[str(node.target)](*args, **kwargs)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        value: Any = self.graph  # get_attr
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value


def sizes(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the nodes whose values are shapes, sizes, dtypes or devices, not data."""
    found: set[fx.Node] = set()
    for node in nodes:
        asked = node.op == "call_method" and node.target in SIZES
        asked |= node.op == "call_function" and function_name(node) in CONSTANT
        asked |= node.target is getattr and node.args[1] in ATTRIBUTES
        if asked or (node.all_input_nodes and all(n in found for n in node.all_input_nodes)):
            found.add(node)
    return found


def _batched(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the nodes whose values depend on the batch: data with a batch axis, and sizes that contain its length."""
    found, asked = {nodes[0]}, sizes(nodes)
    for node in nodes[1:]:
        known = [n for n in node.all_input_nodes if n in found]
        if node in asked and not any(n in asked for n in known):  # asks data for its size
            known = known if _tells_length(node) else []
        elif node.target is operator.getitem and known and known[0] in asked:
            picked = node.args[1]  # the batch axis, or a slice that begins with it
            known = known if picked == 0 or (isinstance(picked, slice) and not picked.start) else []
        if known:
            found.add(node)
    return found


def _tells_length(node: fx.Node) -> bool:
    """Return whether the size that `node` asks for contains the length of the batch axis."""
    if node.op == "call_method" and node.target in ("numel", "nelement"):
        return True
    if node.op == "call_method":
        return node.target == "size" and node.args[1:] in ((), (0,))
    return node.target is not getattr or node.args[1] == "shape"


def _after(nodes: Sequence[fx.Node], start: Iterable[fx.Node]) -> set[fx.Node]:
    """Return `start` and all nodes that depend on it."""
    found = set(start)
    for node in nodes:
        if any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def before(nodes: Sequence[fx.Node], ends: Iterable[fx.Node]) -> set[fx.Node]:
    """Return `ends` and all nodes on which they depend."""
    found = set(ends)
    for node in reversed(nodes):
        if any(user in found for user in node.users):
            found.add(node)
    return found
