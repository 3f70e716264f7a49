"""The source network as a `torch.fx` graph in which every non-linearity is a module call of its own.

Two graphs of the same nodes come out of here: the ANN as it was, and the network to be converted, in which max pooling
is already replaced. `Flow` runs such a graph on folded time (`snnexp.timefold`) and knows which of its nodes vary in
time: those after a site. Nothing here knows a conversion method.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from snnexp.conversion.neuron import Frames, MaxGate, Stateful
from snnexp.errors import UserError, choice
from snnexp.neuron.clip import Bounded
from snnexp.timefold import Dropout, Normalize, TimeMean, fold, unfold

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, Dropout)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)


MAX_POOL_FUNCTIONS = {
    "max_pool1d": nn.MaxPool1d,
    "max_pool2d": nn.MaxPool2d,
    "max_pool3d": nn.MaxPool3d,
    "adaptive_max_pool1d": nn.AdaptiveMaxPool1d,
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d,
    "adaptive_max_pool3d": nn.AdaptiveMaxPool3d,
}


class Curve(nn.Sequential):
    """Any other elementwise activation, for which few-spike neurons can stand."""


CURVES = (
    nn.SiLU,
    nn.Sigmoid,
    nn.GELU,
    nn.Tanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.ELU,
    nn.LeakyReLU,
    nn.Mish,
    nn.Softplus,
    nn.SELU,
    nn.CELU,
    nn.Softsign,
    nn.Tanhshrink,
    nn.LogSigmoid,
    nn.Hardtanh,
)
CURVE_FUNCTIONS = {
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
}
# Layers that commute with the time mean: linear, or affine with a constant that each step adds once.
AFFINE = (
    nn.Linear,
    *CONVS,
    *NORMS,
    Normalize,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
    nn.ReflectionPad1d,
    nn.ReflectionPad2d,
    nn.ReflectionPad3d,
    nn.ReplicationPad1d,
    nn.ReplicationPad2d,
    nn.ReplicationPad3d,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
)
# Functions and methods of the same kind, by name; those of the second set in one argument.
LINEAR = {
    "add",
    "sub",
    "rsub",
    "neg",
    "pos",
    "cat",
    "concat",
    "concatenate",
    "stack",
    "chunk",
    "split",
    "unbind",
    "flatten",
    "reshape",
    "view",
    "permute",
    "transpose",
    "swapaxes",
    "movedim",
    "squeeze",
    "unsqueeze",
    "unflatten",
    "contiguous",
    "clone",
    "detach",
    "to",
    "float",
    "double",
    "expand",
    "repeat",
    "flip",
    "roll",
    "narrow",
    "select",
    "getitem",
    "getattr",
    "size",
    "dim",
    "mean",
    "sum",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "pad",
    "interpolate",
    "upsample",
}
CONSTANT = {"ones_like", "zeros_like", "full_like"}  # what they make of a value depends on its shape alone
LINEAR_IN_ONE = {
    "mul",
    "multiply",
    "truediv",
    "div",
    "matmul",
    "bmm",
    "conv1d",
    "conv2d",
    "conv3d",
    "linear",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
}
PRODUCTS = {"mul", "multiply", "matmul", "bmm"}  # of two signals: of numbers only, not of trains
COMMUTING = {"mul", "multiply", "matmul"}  # of these, those that are linear in the other argument as well
READOUTS = {"sigmoid", "softmax", "log_softmax", "tanh"}  # at the very end they are applied to the time mean
MAXPOOL = ("average", "gate")
SHOWN_WAYS_OUT = (
    "conversion.maxpool=gate (spikes pass that raise the window's largest count) or "
    "conversion.maxpool=average (another network: check its accuracy)"
)


def prepare(
    ann: nn.Module, example: Tensor, maxpool: str | None = None, decoded: bool = False
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """(source, network to convert) of `ann`: copies in evaluation mode whose sites are module calls, each its own.

    `example` [N, ...] is shown to both `ann` and the source, which must agree. Activations called as functions, in
    place, or several times through one module become modules; dropout goes; BatchNorm is folded into the layer before
    where that has no other use. `maxpool` after a site: `average`, `gate`, or None, which refuses it. With `decoded`
    layers hand on numbers, not trains: any elementwise activation is a site, max pooling and products stay what they
    are. The caller's network is not touched. Raises UserError, naming the layer, for what cannot be converted
    faithfully.
    """
    if maxpool is not None:
        choice("maxpool", maxpool, MAXPOOL)
    original = _plain(ann)
    source = _traced(copy.deepcopy(original))
    _single_input(source)
    _keywords_as_arguments(source)
    _out_of_place(source)
    _place_sites(source, decoded)
    drop_dropout(source)
    _pools_as_modules(source)
    source.eval().recompile()
    _same_answers(original, source, example)  # before weights change, whose rounding moves steps of a quantised network
    fold_norms(source, example)
    finish(source)
    network = copy.deepcopy(source)
    for name, module in source.named_modules():
        if isinstance(module, TimeMean):
            network.set_submodule(name, Frames())
    flow = Flow(network)
    if not flow.sites:
        raise UserError("there is nothing to convert: the network has no ReLU, clipped or QCFS activation")
    _check_linear(flow, maxpool, decoded)
    _check_rows(flow, example)
    if not decoded:
        _replace_pools(network, flow, maxpool)
    return source, network


class Flow:
    """A graph in execution order, and what of it varies in time.

    `sites`: calls of an activation or a neuron; `timed`: all nodes after a site, or after a recording's frames; `head`:
    those before; `body`: timed nodes that lead to a site, and the sites; `tail`: the rest up to `output`, linear in
    what the body emits.
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
        leading = _before(self.nodes, self.sites)
        self.head = [n for n in self.nodes if n not in self.timed and n is not self.output]
        self.body = [n for n in self.nodes if n in self.timed and n in leading]
        self.tail = [n for n in self.nodes if n in self.timed and n not in leading and n is not self.output]
        self.emitting = [n for n in self.body if any(u not in leading for u in n.users)]  # what the tail hears
        self.spent = {n for n in self.body if self._is_spent(n)}
        self._last: dict[fx.Node, list[fx.Node]] = {}  # what nobody in the body needs after a node
        for node in self.body:
            if node not in self.emitting:
                self._last.setdefault(max(node.users, key=self.nodes.index), []).append(node)

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    @property
    def levels(self) -> dict[fx.Node, int]:
        """How many sites each value has passed on its longest way; that of `output` is the network's depth."""
        found: dict[fx.Node, int] = {}
        for node in self.nodes:
            found[node] = max((found[n] for n in node.all_input_nodes), default=0) + (node in self.sites)
        return found

    def replace(self, node: fx.Node, module: nn.Module) -> None:
        self.graph.set_submodule(str(node.target), module)
        self.modules = dict(self.graph.named_modules())

    def _is_site(self, node: fx.Node) -> bool:
        module = self.module(node)
        if isinstance(module, nn.Hardtanh):  # others are no rectifiers
            return module.min_val == 0
        return isinstance(module, (nn.ReLU, Bounded, Curve)) or (isinstance(module, Stateful) and module.site)

    def _is_spent(self, node: fx.Node) -> bool:
        """Whether the first input of a site or an addition is new memory that nobody else reads: it may be reused."""
        first = node.args[0] if node.args else None
        if not (isinstance(first, fx.Node) and first in self.timed and len(first.users) == 1):
            return False
        made = isinstance(self.module(first), (nn.Linear, *CONVS)) or is_addition(first)
        return made and (node in self.sites or (is_addition(node) and node.args[1] is not first))

    def segment(self, wanted: Iterable[fx.Node], known: Iterable[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
        """(nodes to run, in order, to have `wanted`; those of `known` that this starts from)."""
        stop, inside, start, todo = set(known), set(), set(), list(wanted)
        while todo:
            node = todo.pop()
            if node in stop:
                start.add(node)
            elif node not in inside:
                inside.add(node)
                todo += node.all_input_nodes
        return [n for n in self.nodes if n in inside], [n for n in self.nodes if n in start]

    def run(
        self,
        nodes: Sequence[fx.Node],
        env: dict[fx.Node, Any],
        steps: int | None = None,
        state: dict[fx.Node, Any] | None = None,
        free: bool = False,
    ) -> None:
        """Run `nodes`, adding their values to `env`; with `free`, those of the body leave it after their last use, and
        their memory is reused.

        Without `steps` everything is a mean over time (or an ANN's value), [N, ...]; with it, timed values are folded
        trains [steps*N, ...], what does not vary is shown at each step, and stateful modules go on from `state`.
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
                reused = {"out": x} if free and node in self.spent else {}
                out, after = module.scan(x, None if state is None else state.get(node), **reused)
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
        """The value of `n` for `user`: what does not vary in time, repeated for a user that does (kept in `lifted`).

        A method, since a nested function that calls itself would keep `env` alive until the garbage is collected.
        """
        if steps is None or user not in self.timed or n in self.timed or n not in self.data:
            return env[n]
        if n not in lifted:
            value = env[n]
            if isinstance(value, Tensor):
                lifted[n] = value.repeat(steps, *[1] * (value.dim() - 1)) if steps > 1 else value
            else:  # a size: that of the folded batch
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


def where(node: fx.Node) -> str:
    """The layer of `node`, for the user: a module's name, or what is called in which module."""
    if node.op == "call_module":
        return str(node.target)
    owner = _owner(node)
    return f"{function_name(node)} in {owner}" if owner else f"{function_name(node)} in the network's forward"


def _owner(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""


def function_name(node: fx.Node) -> str:
    """Name of the function or method that `node` calls, without the underscore of an in-place one."""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
    return name if name.startswith("_") else name.rstrip("_")


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.place = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = (Bounded, Dropout, Normalize, TimeMean)  # a subclass of torch's own may do something else: go inside
        return isinstance(m, ours) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.place = self.place or path  # the innermost
            raise


def _traced(net: nn.Module) -> fx.GraphModule:
    tracer = _Tracer()
    try:
        return fx.GraphModule(net, tracer.trace(net))
    except Exception as error:  # the network may be anybody's
        layer = f"layer {tracer.place}" if tracer.place else "the network's forward"
        raise UserError(
            f"{layer} cannot be traced by torch.fx, and so not converted: {error}. Its control flow must "
            "not depend on the data, nor may it assign to parts of a tensor or take its len(); write it "
            "with torch operations"
        ) from error


def _plain(ann: nn.Module) -> nn.Module:
    """A copy in evaluation mode, without what wraps a network or computes its weights."""
    while isinstance(
        inner := getattr(ann, "_orig_mod", ann.module if isinstance(ann, nn.DataParallel) else None), nn.Module
    ):  # torch.compile, DataParallel
        ann = inner
    try:
        network = copy.deepcopy(ann).eval()
    except RuntimeError as error:
        raise UserError(
            f"the network cannot be copied: {error}. After torch.nn.utils.weight_norm, call remove_weight_norm first"
        ) from error
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            values = {name: getattr(module, name).detach() for name in module.parametrizations}  # type: ignore[union-attr]
            module.__class__ = type(module).__bases__[0]  # torch's own removal would change the caller's class
            del module.parametrizations
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value))
    return network


def _keywords_as_arguments(graph: fx.GraphModule) -> None:
    """f(input=x) as f(x)."""
    for node in graph.graph.nodes:
        if not node.args and "input" in node.kwargs:
            node.args = (node.kwargs["input"],)
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "input"}


def _single_input(graph: fx.GraphModule) -> None:
    inputs = [n for n in graph.graph.nodes if n.op == "placeholder"]
    if any(not n.args for n in inputs[1:]):
        raise UserError(
            f"the network takes {len(inputs)} inputs ({', '.join(n.name for n in inputs)}); conversion "
            "knows networks of one input"
        )


def _out_of_place(graph: fx.GraphModule) -> None:
    """In-place calls as ordinary ones: who reads their input later reads their result."""
    order = {n: i for i, n in enumerate(graph.graph.nodes)}
    for node in list(graph.graph.nodes):
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
        inplace = bool(getattr(module, "inplace", False) or node.kwargs.get("inplace"))
        if node.op in ("call_method", "call_function") and name.endswith("_") and not name.endswith("__"):
            inplace = True
            if node.op == "call_method":
                node.target = name[:-1]
            else:
                node.target = getattr(torch, name[:-1], None) or getattr(F, name[:-1])
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        if inplace and isinstance(source := node.args[0], fx.Node):
            later = {user for user in source.users if order[user] > order[node]}
            source.replace_all_uses_with(node, delete_user_cb=later.__contains__)
    for module in graph.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]


def _place_sites(graph: fx.GraphModule, decoded: bool) -> None:
    """Every call of an activation becomes the call of a module of its own, named after what it was."""
    called: set[str] = set()
    for node in list(graph.graph.nodes):
        activation = _activation(graph, node) or (_curve(graph, node) if decoded else None)
        if activation is None:
            continue
        name = str(node.target) if node.op == "call_module" else f"{_owner(node)}.{function_name(node)}".lstrip(".")
        free = name if node.op == "call_module" and name not in called else _free(graph, name)
        called.add(free)
        graph.add_submodule(free, activation)
        with graph.graph.inserting_before(node):
            site = graph.graph.call_module(free, (node.args[0],))
            site.meta = dict(node.meta)
        node.replace_all_uses_with(site)
        graph.graph.erase_node(node)


def _free(graph: fx.GraphModule, name: str) -> str:
    """`name`, or with a number, so that no module has it yet."""
    taken = {name for name, _ in graph.named_modules()}
    return next(c for c in (name, *(f"{name}_{k}" for k in range(2, len(taken) + 3))) if c not in taken)


def _activation(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """What `node` applies, if that is something a spiking neuron can stand for."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        if isinstance(module, nn.Hardtanh):  # ReLU6 among them
            return _bounded(module.min_val, module.max_val)
        return copy.deepcopy(module) if isinstance(module, (nn.ReLU, Bounded)) else None
    if node.op not in ("call_function", "call_method"):
        return None
    name, args, kwargs = function_name(node), list(node.args[1:]), node.kwargs
    if name == "relu":
        return nn.ReLU()
    if name == "relu6":
        return nn.Hardtanh(0.0, 6.0)
    if name in ("hardtanh", "clamp", "clip"):
        low = args[0] if args else kwargs.get("min_val", kwargs.get("min"))
        high = args[1] if len(args) > 1 else kwargs.get("max_val", kwargs.get("max"))
        return _bounded(low, high)
    if name == "clamp_min":
        return _bounded(args[0] if args else kwargs["min"], None)
    return None


def _curve(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """What `node` applies, if that is another elementwise activation."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        return Curve(copy.deepcopy(module)) if isinstance(module, CURVES) else None
    if node.op == "get_attr" or (kind := CURVE_FUNCTIONS.get(function_name(node))) is None:
        return None
    settings = {key: value for key, value in node.kwargs.items() if key not in ("inplace", "input")}
    return Curve(kind(*node.args[1:], **settings))


def _bounded(low: Any, high: Any) -> nn.Module | None:
    if low != 0 or not (high is None or (isinstance(high, int | float) and high > 0)):
        return None
    return nn.ReLU() if high is None else nn.Hardtanh(0.0, float(high))


def drop_dropout(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        function = function_name(node) if node.op in ("call_function", "call_method") else ""
        if isinstance(module, (*DROPOUTS, nn.Identity)) or "dropout" in function or function == "stochastic_depth":
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _pools_as_modules(graph: fx.GraphModule) -> None:
    """F.max_pool2d and its like as modules, so that one rule serves both."""
    for node in list(graph.graph.nodes):
        name = function_name(node) if node.op == "call_function" else ""
        if name not in MAX_POOL_FUNCTIONS:
            continue
        keys = (
            ("output_size",)
            if name.startswith("adaptive")
            else ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        )
        settings = dict(zip(keys, node.args[1:], strict=False)) | {k: v for k, v in node.kwargs.items() if k in keys}
        target = _free(graph, f"{_owner(node)}.{name}".lstrip("."))
        graph.add_submodule(target, MAX_POOL_FUNCTIONS[name](**settings))
        with graph.graph.inserting_before(node):
            pool = graph.graph.call_module(target, (node.args[0],))
            pool.meta = dict(node.meta)
        node.replace_all_uses_with(pool)
        graph.graph.erase_node(node)


@torch.no_grad()
def fold_norms(graph: fx.GraphModule, example: Tensor | None = None) -> None:
    """BatchNorm into the convolution or linear layer before it, where both are called once and nobody else listens.

    Elsewhere it stays: in evaluation it is affine, so its constant enters once per step as any bias does. `example`
    tells a linear layer of tokens, whose axis 1, which a norm acts on, is not that of the layer's outputs.
    """
    if example is not None:
        ShapeProp(graph).propagate(example)  # type: ignore[no-untyped-call]
    calls: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    for node in list(graph.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        norm, layer = graph.get_submodule(str(node.target)), graph.get_submodule(str(before.target))
        once = len(before.users) == 1 and calls[str(before.target)] == calls[str(node.target)] == 1
        if not isinstance(norm, NORMS) or norm.running_mean is None or not once:
            continue
        grouped = isinstance(layer, CONVS) and layer.transposed and layer.groups > 1  # torch cannot fold these
        if isinstance(layer, CONVS) and not grouped:
            fused: nn.Module = fuse_conv_bn_eval(layer, norm, transpose=layer.transposed)
        elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d) and _axes(before) in (2, None):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        graph.set_submodule(str(before.target), fused)
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)


def _axes(node: fx.Node) -> int | None:
    """Of the node's value, as ShapeProp has noted it."""
    noted = node.meta.get("tensor_meta")
    return len(noted.shape) if isinstance(noted, TensorMetadata) else None


def finish(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        node.type = None  # annotations that are text cannot be pickled
        if node.op == "call_method" and node.target == "view" and not isinstance(node.args[1], torch.dtype):
            node.target = "reshape"  # of any memory layout
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.graph.lint()  # type: ignore[no-untyped-call]
    graph.recompile()
    graph.eval().requires_grad_(False)
    for module in graph.modules():
        if isinstance(module, nn.Conv2d):  # the layout in which they are fast, on CPU and GPU; what follows keeps it
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        if isinstance(module, (nn.Linear, *CONVS)) and module.bias is None:  # the same keys, whatever is corrected
            outputs = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            module.bias = nn.Parameter(module.weight.new_zeros(outputs), requires_grad=False)


@torch.no_grad()
def _same_answers(original: nn.Module, source: fx.GraphModule, example: Tensor) -> None:
    """The guard for what tracing cannot see: a trace that computes something else is not converted."""
    for x in (example, example[:1]):  # another batch size: a size that was frozen shows
        try:
            expected = _leaves(original(x.clone()))
            found = _leaves(source(x.clone()))
        except Exception as error:  # the network may be anybody's
            raise UserError(
                f"the network does not run on {len(x)} samples of shape {list(x.shape[1:])}, {x.dtype}: {error}"
            ) from error
        for a, b in zip(expected, found, strict=True):
            close = a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max() + 1e-9))
            if not close:
                raise UserError(
                    "the traced network answers otherwise than the network itself: its control flow "
                    "depends on the data, or it changes a tensor in place that has another name"
                )


@torch.no_grad()
def _check_rows(flow: Flow, example: Tensor) -> None:
    """Raise UserError where a sample's value depends on others of its batch, since time is folded into the batch.

    So too where it is whole numbers. Notes the shape of each value, of one sample, as its node's `meta["shape"]`.
    """
    pair = example if len(example) > 1 else torch.cat([example, example])
    together: dict[fx.Node, Any] = {flow.placeholder: pair[:2]}
    alone: dict[fx.Node, Any] = {flow.placeholder: pair[:1]}
    for env in (together, alone):
        flow.run(flow.nodes[1:-1], env)
    sizes = _sizes(flow.nodes)
    for node in flow.nodes[1:-1]:
        node.meta["shape"] = together[node].shape[1:] if isinstance(together[node], Tensor) else None
        if node not in flow.timed or node in sizes:
            continue
        for both, one in zip(_leaves(together[node]), _leaves(alone[node]), strict=True):
            apart = (
                both.dim()
                and len(both) == 2
                and one.shape == both[:1].shape
                and torch.allclose(both[:1], one, rtol=1e-3, atol=1e-4 * float(one.abs().max() + 1e-9))
            )
            if not apart:
                raise UserError(
                    f"layer {where(node)} joins or mixes the samples of a batch, which no network over "
                    "time can: its steps are worked off as a batch. Keep the first axis for samples, and "
                    "every sample to itself"
                )
        if not all(leaf.is_floating_point() for leaf in _leaves(together[node])):
            raise UserError(
                f"layer {where(node)} gives whole numbers: rounding does not commute with the mean over time"
            )
        if node in flow.sites and together[node].dim() < 2:
            raise UserError(
                f"layer {where(node)} is an activation of one number a sample, [N]: keep an axis of features, [N, 1]"
            )


def _leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [leaf for v in values for leaf in _leaves(v)]


def _check_linear(flow: Flow, maxpool: str | None, decoded: bool) -> None:
    """Raise UserError for a node after a site that does not commute with the time mean, or, of numbers (`decoded`), is
    nothing that spikes can bring about."""
    weighty = _before(flow.nodes, [n for n in flow.nodes if isinstance(flow.module(n), (nn.Linear, *CONVS))])
    sizes = _sizes(flow.nodes)
    for node in flow.body + flow.tail:
        module, name = flow.module(node), "" if node.op == "call_module" else function_name(node)
        if node in flow.sites or node in sizes or isinstance(module, (*AFFINE, Frames)):
            if isinstance(module, NORMS) and module.running_mean is None:
                raise UserError(
                    f"layer {where(node)} normalises by its own batch (track_running_stats=False), which "
                    "no spiking network can: train it with running statistics"
                )
            continue
        if decoded and (isinstance(module, MAX_POOLS) or name in PRODUCTS):
            continue
        if isinstance(module, MAX_POOLS):
            if maxpool is None:
                raise UserError(
                    f"layer {where(node)} is max pooling, which does not commute with the mean over time; "
                    f"choose {SHOWN_WAYS_OUT}"
                )
            continue
        timed = [n for n in node.all_input_nodes if n in flow.timed]
        scaled = name in LINEAR_IN_ONE and len(timed) == 1 and (name in COMMUTING or node.args[0] in timed)
        if (name in LINEAR or scaled) and not node.kwargs.get("rounding_mode"):
            continue
        kind = type(module).__name__ if module is not None else name
        if kind.lower().replace("logs", "log_s") in READOUTS and node in flow.tail and node not in weighty:
            continue
        if decoded:
            raise UserError(
                f"layer {where(node)} ({kind}) cannot be converted: few-spike neurons serve elementwise "
                "activations, and between them linear layers, pooling and products"
            )
        raise UserError(
            f"layer {where(node)} ({kind}) cannot be converted: it is neither linear nor a ReLU, clipped or QCFS "
            "activation, so it does not commute with the mean over time. Ways out: train the network with one of "
            "these (neuron=relu, clip or qcfs for networks that take a neuron), or another conversion"
        )


def is_addition(node: fx.Node) -> bool:
    """x + y of two nodes."""
    return (
        node.op in ("call_function", "call_method")
        and function_name(node) == "add"
        and not node.kwargs
        and len(node.args) == 2
        and all(isinstance(n, fx.Node) for n in node.args)
    )


def _sizes(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Nodes whose values are sizes and the like, not data."""
    found: set[fx.Node] = set()
    for node in nodes:
        asked = node.op == "call_method" and node.target in ("size", "dim")
        asked |= node.op == "call_function" and function_name(node) in CONSTANT
        asked |= node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")
        if asked or (node.all_input_nodes and all(n in found for n in node.all_input_nodes)):
            found.add(node)
    return found


def _batched(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Nodes with a batch axis, and sizes that tell how long it is: those after the input, but for what is made from
    other sizes alone."""
    found, sizes = {nodes[0]}, _sizes(nodes)
    for node in nodes[1:]:
        known = [n for n in node.all_input_nodes if n in found]
        if node in sizes and not any(n in sizes for n in known):  # asks a value for its sizes
            known = known if _tells_length(node) else []
        elif node.target is operator.getitem and known and known[0] in sizes:
            picked = node.args[1]  # the batch's axis, or axes from it on
            known = known if picked == 0 or (isinstance(picked, slice) and not picked.start) else []
        if known:
            found.add(node)
    return found


def _tells_length(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target == "size" and node.args[1:] in ((), (0,))
    return node.target is not getattr or node.args[1] == "shape"


def _replace_pools(network: fx.GraphModule, flow: Flow, maxpool: str | None) -> None:
    for node in flow.body + flow.tail:
        pool = flow.module(node)
        if isinstance(pool, MAX_POOLS):
            with_target = MaxGate(pool) if maxpool == "gate" else _average(pool, where(node))
            flow.replace(node, with_target)


def _average(pool: nn.Module, layer: str) -> nn.Module:
    dimensions = type(pool).__name__[-2]
    if type(pool).__name__.startswith("Adaptive"):
        kind = {"1": nn.AdaptiveAvgPool1d, "2": nn.AdaptiveAvgPool2d, "3": nn.AdaptiveAvgPool3d}[dimensions]
        return kind(pool.output_size)  # type: ignore[arg-type]
    if pool.dilation not in (1, (1,), (1, 1), (1, 1, 1)):
        raise UserError(
            f"layer {layer} is max pooling with dilation, for which there is no average pooling: choose "
            "conversion.maxpool=gate"
        )
    average: Any = {"1": nn.AvgPool1d, "2": nn.AvgPool2d, "3": nn.AvgPool3d}[dimensions]
    made: nn.Module = average(
        pool.kernel_size, pool.stride, pool.padding, ceil_mode=pool.ceil_mode, count_include_pad=False
    )
    return made


def _after(nodes: Sequence[fx.Node], start: Iterable[fx.Node]) -> set[fx.Node]:
    found = set(start)
    for node in nodes:
        if any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def _before(nodes: Sequence[fx.Node], ends: Iterable[fx.Node]) -> set[fx.Node]:
    found = set(ends)
    for node in reversed(nodes):
        if any(user in found for user in node.users):
            found.add(node)
    return found
