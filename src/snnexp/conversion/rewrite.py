"""The rewriting of a network into a `torch.fx` graph in which every activation is a module call of its own.

Two graphs with the same nodes result: the ANN as it was, and the network to convert, in which max pooling is replaced.
Networks that cannot be converted faithfully are refused here.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from snnexp.activations import as_module
from snnexp.conversion import vocabulary as words
from snnexp.conversion.flow import Flow, before, sizes
from snnexp.conversion.stateful import Frames, MaxGate
from snnexp.conversion.vocabulary import TRAINS, Vocabulary, function_name, owner_name, where
from snnexp.errors import UserError, choice
from snnexp.finite import nonfinite
from snnexp.neuron.clip import Bounded
from snnexp.timefold import Dropout, Normalize, TimeMean


def rewrite(
    ann: nn.Module, example: Tensor, maxpool: str | None = None, vocabulary: Vocabulary = TRAINS
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return (source, network to convert) of `ann`: copies in evaluation mode whose sites are modules of their own.

    `example` [N, ...] is shown to `ann` and to the source, whose answers must agree. Activations that are called as
    functions, in place, or several times through one module become modules of their own; dropout is removed; BatchNorm
    is folded into the layer before it where only the norm uses that layer. `maxpool`, the treatment of max pooling
    after a site: `average`, `gate`, or None. `vocabulary`: that of the neurons to be placed. The caller's network is
    not changed. Raises UserError, naming the layer, for what cannot be converted faithfully.
    """
    if maxpool is not None:
        choice("maxpool", maxpool, words.MAXPOOL)
    original = _plain(ann)
    if bad := nonfinite(dict(original.named_parameters())):
        raise UserError(f"the weights {bad[0]} of the network are NaN or infinite: nothing sensible can be converted")
    source = _traced(copy.deepcopy(original))
    _single_input(source)
    _keywords_as_arguments(source)
    _out_of_place(source)
    _place_sites(source, vocabulary)
    drop_dropout(source)
    _pools_as_modules(source)
    source.eval().recompile()
    _same_answers(original, source, example)  # before folding, whose rounding moves the steps of a quantised network
    fold_norms(source, example)
    finish(source)
    network = copy.deepcopy(source)
    for name, module in source.named_modules():
        if isinstance(module, TimeMean):
            network.set_submodule(name, Frames())
    flow = Flow(network)
    if not flow.sites:
        raise UserError("there is nothing to convert: the network has no ReLU, clipped or QCFS activation")
    _check_linear(flow, maxpool, vocabulary)
    _check_rows(flow, example)
    return source, network


class Tracer(fx.Tracer):
    """A tracer that notes the innermost module in which tracing fails (`place`)."""

    def __init__(self) -> None:
        super().__init__()
        self.place = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = (Bounded, Dropout, Normalize, TimeMean)  # subclasses of torch's modules are traced through
        return isinstance(m, ours) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.place = self.place or path  # the innermost
            raise


def _traced(net: nn.Module) -> fx.GraphModule:
    tracer = Tracer()
    try:
        return fx.GraphModule(net, tracer.trace(net))
    except Exception as error:  # the network may be anybody's
        layer = f"layer {tracer.place}" if tracer.place else "the network's forward"
        raise UserError(
            f"{layer} cannot be traced by torch.fx, and so not converted: {error}. Its control flow must not depend on "
            "the data, nor may it assign to parts of a tensor or take its len(); write it with torch operations"
        ) from error


def _plain(ann: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, without wrappers and with parametrized weights as plain parameters."""
    wrapped = ann.module if isinstance(ann, nn.DataParallel) else getattr(ann, "_orig_mod", None)  # torch.compile
    if isinstance(wrapped, nn.Module):
        return _plain(wrapped)
    try:
        network = copy.deepcopy(ann).eval()
    except RuntimeError as error:
        advice = "After torch.nn.utils.weight_norm, call remove_weight_norm first"
        raise UserError(f"the network cannot be copied: {error}. {advice}") from error
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            values = {name: getattr(module, name).detach() for name in module.parametrizations}  # type: ignore[union-attr]
            module.__class__ = type(module).__bases__[0]  # torch's own removal would change the caller's class
            del module.parametrizations
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value))
    return network


def _keywords_as_arguments(graph: fx.GraphModule) -> None:
    """Turn f(input=x) into f(x)."""
    for node in graph.graph.nodes:
        if not node.args and "input" in node.kwargs:
            node.args = (node.kwargs["input"],)
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "input"}


def _single_input(graph: fx.GraphModule) -> None:
    """Raise UserError for a network of several inputs."""
    inputs = [n for n in graph.graph.nodes if n.op == "placeholder"]
    if any(not n.args for n in inputs[1:]):
        named = f"{len(inputs)} inputs ({', '.join(n.name for n in inputs)})"
        raise UserError(f"the network takes {named}; conversion takes networks with one input")


def _out_of_place(graph: fx.GraphModule) -> None:
    """Turn in-place calls into ordinary ones, whose result replaces their input in all later uses."""
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


def _place_sites(graph: fx.GraphModule, vocabulary: Vocabulary) -> None:
    """Turn every call of an activation into the call of a module of its own, named after the original."""
    called: set[str] = set()
    for node in list(graph.graph.nodes):
        if node.op == "call_module":
            module: nn.Module | None = graph.get_submodule(str(node.target))
        elif node.op in ("call_function", "call_method"):
            module = as_module(function_name(node), node.args[1:], node.kwargs)
        else:
            continue
        if module is None or (activation := vocabulary.site(module)) is None:
            continue
        name = str(node.target) if node.op == "call_module" else _name_in_owner(node)
        free = name if node.op == "call_module" and name not in called else _free(graph, name)
        called.add(free)
        _replace_call(graph, node, free, copy.deepcopy(activation))


def _replace_call(graph: fx.GraphModule, node: fx.Node, name: str, module: nn.Module) -> None:
    """Replace the call of `node` by that of `module`, under `name`."""
    graph.add_submodule(name, module)
    with graph.graph.inserting_before(node):
        made = graph.graph.call_module(name, (node.args[0],))
        made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    graph.graph.erase_node(node)


def _name_in_owner(node: fx.Node) -> str:
    return f"{owner_name(node)}.{function_name(node)}".lstrip(".")


def _free(graph: fx.GraphModule, name: str) -> str:
    """Return `name`, with a number if a module already has it."""
    taken = {name for name, _ in graph.named_modules()}
    return next(c for c in (name, *(f"{name}_{k}" for k in range(2, len(taken) + 3))) if c not in taken)


def drop_dropout(graph: fx.GraphModule) -> None:
    """Remove dropout and identity layers."""
    for node in list(graph.graph.nodes):
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        function = function_name(node) if node.op in ("call_function", "call_method") else ""
        dropping = "dropout" in function or function == "stochastic_depth"
        if dropping or isinstance(module, (*words.DROPOUTS, nn.Identity)):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _pools_as_modules(graph: fx.GraphModule) -> None:
    """Turn F.max_pool2d and similar calls into modules, so that one rule serves both."""
    for node in list(graph.graph.nodes):
        name = function_name(node) if node.op == "call_function" else ""
        if name in words.MAX_POOL_FUNCTIONS:
            adaptive = name.startswith("adaptive")
            keys = ("output_size",) if adaptive else ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
            settings = dict(zip(keys, node.args[1:], strict=False))
            settings |= {key: value for key, value in node.kwargs.items() if key in keys}
            target = _free(graph, _name_in_owner(node))
            _replace_call(graph, node, target, words.MAX_POOL_FUNCTIONS[name](**settings))


@torch.no_grad()
def fold_norms(graph: fx.GraphModule, example: Tensor | None = None) -> None:
    """Fold BatchNorm into the convolution or linear layer before it, where both are called once and the layer has no
    other user.

    Other norms stay: in evaluation mode they are affine, and their constant is added once per step like a bias.
    `example` reveals linear layers of tokens, which keep their norm because it acts on axis 1, not on their output
    axis.
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
        if not isinstance(norm, words.NORMS) or norm.running_mean is None or not once:
            continue
        grouped = isinstance(layer, words.CONVS) and layer.transposed and layer.groups > 1  # torch cannot fold these
        if isinstance(layer, words.CONVS) and not grouped:
            fused: nn.Module = fuse_conv_bn_eval(layer, norm, transpose=layer.transposed)
        elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d) and _axes(before) in (2, None):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        graph.set_submodule(str(before.target), fused)
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)


def _axes(node: fx.Node) -> int | None:
    """Return the number of axes of the node's value, as noted by ShapeProp; None if it is no tensor."""
    noted = node.meta.get("tensor_meta")
    return len(noted.shape) if isinstance(noted, TensorMetadata) else None


def finish(graph: fx.GraphModule) -> None:
    """Remove what is unused, check and recompile the graph; freeze it, and give its layers a bias and a fast layout."""
    for node in graph.graph.nodes:
        node.type = None  # annotations given as strings cannot be pickled
        if node.op == "call_method" and node.target == "view" and not isinstance(node.args[1], torch.dtype):
            node.target = "reshape"  # which accepts any memory layout
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.graph.lint()  # type: ignore[no-untyped-call]
    graph.recompile()
    graph.eval().requires_grad_(False)
    for module in graph.modules():
        if isinstance(module, nn.Conv2d):  # fast on CPU and GPU; later layers keep it
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        # the same keys whether a bias is corrected or not
        if isinstance(module, (nn.Linear, *words.CONVS)) and module.bias is None:
            outputs = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            module.bias = nn.Parameter(module.weight.new_zeros(outputs), requires_grad=False)


@torch.no_grad()
def _same_answers(original: nn.Module, source: fx.GraphModule, example: Tensor) -> None:
    """Raise UserError if the traced network gives other answers, as with control flow that depends on data."""
    for x in (example, example[:1]):  # another batch size reveals a size that the trace froze
        try:
            expected = _leaves(original(x.clone()))
            found = _leaves(source(x.clone()))
        except Exception as error:  # the network may be anybody's
            shown = f"{len(x)} samples of shape {list(x.shape[1:])}, {x.dtype}"
            raise UserError(f"the network does not run on {shown}: {error}") from error
        if nonfinite({str(k): answer for k, answer in enumerate(expected)}):
            raise UserError("the network's answers are NaN or infinite: its weights, or its inputs, are too large")
        for a, b in zip(expected, found, strict=True):
            if not _close(b, a):
                raise UserError(
                    "the traced network answers otherwise than the network itself: its control flow "
                    "depends on the data, or it changes a tensor in place through another name"
                )


def _close(found: Tensor, expected: Tensor) -> bool:
    """Return whether two results of the same computation are equal but for rounding."""
    atol = 1e-4 * float(expected.abs().max() + 1e-9)
    return found.shape == expected.shape and torch.allclose(expected, found, rtol=1e-3, atol=atol)


@torch.no_grad()
def _check_rows(flow: Flow, example: Tensor) -> None:
    """Raise UserError where values depend on other samples of the batch, into which time is folded, or are integers.

    Notes the shape of each node's value, without the batch axis, as its `meta["shape"]`.
    """
    pair = example if len(example) > 1 else torch.cat([example, example])
    together, alone = flow.values(pair[:2]), flow.values(pair[:1])
    not_data = sizes(flow.nodes)
    for node in flow.nodes[1:-1]:
        node.meta["shape"] = together[node].shape[1:] if isinstance(together[node], Tensor) else None
        if node not in flow.timed or node in not_data:
            continue
        for both, one in zip(_leaves(together[node]), _leaves(alone[node]), strict=True):
            if not (both.dim() and len(both) == 2 and _close(one, both[:1])):
                raise UserError(
                    f"layer {where(node)} joins or mixes the samples of a batch, which no network over time can: its "
                    "steps are computed as a batch. Keep the first axis for samples, and compute each sample on its own"
                )
        if not all(leaf.is_floating_point() for leaf in _leaves(together[node])):
            why = "rounding does not commute with the mean over time"
            raise UserError(f"layer {where(node)} gives whole numbers: {why}")
        if node in flow.sites and together[node].dim() < 2:
            what = "an activation of one number a sample, [N]"
            raise UserError(f"layer {where(node)} is {what}: keep an axis of features, [N, 1]")


def _leaves(value: Any) -> list[Tensor]:
    """Return the tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [leaf for v in values for leaf in _leaves(v)]


def _check_linear(flow: Flow, maxpool: str | None, vocabulary: Vocabulary) -> None:
    """Replace max pooling after a site; raise UserError for other nodes there that are not part of the vocabulary."""
    weighty = before(flow.nodes, [n for n in flow.nodes if isinstance(flow.module(n), (nn.Linear, *words.CONVS))])
    not_data = sizes(flow.nodes)
    for node in flow.body + flow.tail:
        module = flow.module(node)
        kind = type(module).__name__ if module is not None else function_name(node)
        if isinstance(module, words.NORMS) and module.running_mean is None:
            why = "by its own batch (track_running_stats=False), which no spiking network can"
            raise UserError(f"layer {where(node)} normalises {why}: train it with running statistics")
        if isinstance(module, words.MAX_POOLS):
            flow.replace(node, vocabulary.max_pool(module, where(node), maxpool))
            continue
        known = node in flow.sites or node in not_data or isinstance(module, (*words.AFFINE, Frames, MaxGate))
        known |= module is None and kind in vocabulary.products
        known |= words.is_linear(node, [n for n in node.all_input_nodes if n in flow.timed])
        if not (known or (kind in words.READOUTS and node in flow.tail and node not in weighty)):
            raise vocabulary.refusal(where(node), kind)
