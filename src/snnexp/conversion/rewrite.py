"""The rewriting of a network into a `torch.fx` graph in which every activation is a module call of its own.

Two graphs with the same nodes result: the ANN as it was, and the network to convert, in which max pooling is replaced.
Networks that cannot be converted faithfully are refused here.
"""

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from snnexp.activations import as_module, of_module
from snnexp.conversion import vocabulary as words
from snnexp.conversion.flow import Flow, before, sizes
from snnexp.conversion.layers import axes, free, layers_as_modules, name_in_owner, replace_call, sizes_from_the_front
from snnexp.conversion.quantised import quantised, replace_quantised
from snnexp.conversion.stateful import Frames, MaxGate
from snnexp.conversion.tracing import (
    FixedShape,
    Tracer,
    changed_by_hooks,
    no_global_hooks,
    plain,
    traced,
    without_hooks,
)
from snnexp.conversion.vocabulary import NUMBERS, TRAINS, WAYS, Refusal, Vocabulary, function_name, where
from snnexp.errors import UserError, choice
from snnexp.finite import nonfinite
from snnexp.timefold import TimeMean

__all__ = ["Tracer", "drop_dropout", "finish", "fold_norms", "rewrite"]  # saved networks name Tracer here


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
    try:
        return _rewritten(ann, example, maxpool, vocabulary)
    except Refusal as refusal:
        raise UserError(f"{refusal}. Ways out: {_ways_out(ann, example, vocabulary, refusal)}") from None


def _rewritten(
    ann: nn.Module, example: Tensor, maxpool: str | None, vocabulary: Vocabulary
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return what `rewrite` returns. Raises Refusal as well."""
    original = plain(ann)
    if bad := nonfinite(dict(original.named_parameters())):
        raise UserError(f"the weights {bad[0]} of the network are NaN or infinite: nothing sensible can be converted")
    source = traced(without_hooks(original), example)
    _single_input(source)
    expected = _answers(original, example)
    with no_global_hooks():
        alike = _in_modules(source, expected, example, vocabulary)
    if not alike:
        raise _other_answers(original, source, expected, example)
    network = copy.deepcopy(source)
    for name, module in source.named_modules():
        if isinstance(module, TimeMean):
            network.set_submodule(name, Frames())
    flow = Flow(network)
    if not flow.sites:
        raise _nothing(flow, vocabulary)
    _check_linear(flow, maxpool, vocabulary)
    _check_rows(flow, example)
    return source, network


def _nothing(flow: Flow, vocabulary: Vocabulary) -> Refusal:
    """Return the error for a network without sites, which names its first activation, or else non-linear operation."""
    others = [n for n in flow.nodes[1:-1] if n not in sizes(flow.nodes) and not _commutes(flow, n, flow.data)]
    curves = [n for n in others if of_module(flow.module(n) or as_module(function_name(n), (), {}) or flow.graph)]
    for node in (*curves, *others):
        kind = _kind(flow, node)
        lack = f"the network has no {vocabulary.replaces}; instead it has layer {where(node)} ({kind})"
        return Refusal(f"there is nothing to convert: {lack}", kind)
    raise UserError("there is nothing to convert: the network is linear, so it needs no neurons; use it as it is")


def _ways_out(ann: nn.Module, example: Tensor, vocabulary: Vocabulary, refusal: Refusal) -> str:
    """Return ways out of a refusal that work."""
    own, trained = WAYS.get(refusal.kind), "a network trained with one of these (neuron=relu, clip or qcfs)"
    if vocabulary is NUMBERS:
        return own or "compute it before the first activation or after the last, or train the network without it"
    try:
        _rewritten(ann, example, None, NUMBERS)
    except UserError as error:
        other = f"; conversion=few_spike cannot convert it either ({error})"
        return (own or trained) + (other if isinstance(error, Refusal) and error.kind != refusal.kind else "")
    return f"conversion=few_spike, which can convert this network, or {trained}"


def _in_modules(source: fx.GraphModule, expected: list[list[Tensor]], example: Tensor, vocabulary: Vocabulary) -> bool:
    """Turn a trace into the source of a conversion; return whether it gives the expected answers, else stop there."""
    _keywords_as_arguments(source)
    _out_of_place(source)
    written_out = quantised(source)
    _place_sites(source, vocabulary, {n for found in written_out for n in found.nodes})
    drop_dropout(source)
    _pools_as_modules(source)
    source.eval().recompile()
    if not _same(source, expected, example):  # before folding, whose rounding moves steps of a quantised network
        return False
    replace_quantised(source, written_out)
    ShapeProp(source).propagate(example)  # type: ignore[no-untyped-call]
    layers_as_modules(source)
    sizes_from_the_front(source)
    fold_norms(source)
    finish(source)
    return True


def _keywords_as_arguments(graph: fx.GraphModule) -> None:
    """Turn f(input=x) into f(x)."""
    for node in graph.graph.nodes:
        if not node.args and "input" in node.kwargs:
            node.args = (node.kwargs["input"],)
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "input"}


def _single_input(graph: fx.GraphModule) -> None:
    """Raise UserError for a network of several inputs."""
    inputs = [n for n in graph.graph.nodes if n.op == "placeholder"]
    if len(inputs) != 1:
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


def _place_sites(graph: fx.GraphModule, vocabulary: Vocabulary, without: Collection[fx.Node]) -> None:
    """Turn every call of an activation, except `without`, into the call of a module of its own, named after the
    original."""
    called: set[str] = set()
    for node in list(graph.graph.nodes):
        if node in without:
            continue
        if node.op == "call_module":
            module: nn.Module | None = graph.get_submodule(str(node.target))
        elif node.op in ("call_function", "call_method"):
            module = as_module(function_name(node), node.args[1:], node.kwargs)
        else:
            continue
        if module is None or (activation := vocabulary.site(module)) is None:
            continue
        name = str(node.target) if node.op == "call_module" else name_in_owner(node)
        own = name if node.op == "call_module" and name not in called else free(graph, name)
        called.add(own)
        replace_call(graph, node, own, copy.deepcopy(activation))


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
            target = free(graph, name_in_owner(node))
            replace_call(graph, node, target, words.MAX_POOL_FUNCTIONS[name](**settings))


@torch.no_grad()
def fold_norms(graph: fx.GraphModule) -> None:
    """Fold BatchNorm into the convolution or linear layer before it, where both are called once and the layer has no
    other user.

    Other norms stay: in evaluation mode they are affine, and their constant is added once per step like a bias. Linear
    layers of tokens, which ShapeProp reveals, keep their norm, because it acts on axis 1, not on their output axis.
    """
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
        elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d) and axes(before) in (2, None):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        graph.set_submodule(str(before.target), fused)
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)


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
def _answers(network: nn.Module, example: Tensor) -> list[list[Tensor]]:
    """Return the answers to two batch sizes, which reveal a size that a trace froze. Raises UserError."""
    found = []
    for x in (example, example[:1]):
        try:
            found.append(_leaves(network(x.clone())))
        except Exception as error:  # the network may be anybody's
            shown = f"{len(x)} samples of shape {list(x.shape[1:])}, {x.dtype}"
            raise UserError(f"the network does not run on {shown}: {error}") from error
        if nonfinite({str(k): answer for k, answer in enumerate(found[-1])}):
            raise UserError("the network's answers are NaN or infinite: its weights, or its inputs, are too large")
    return found


def _same(network: nn.Module, expected: list[list[Tensor]], example: Tensor) -> bool:
    """Return whether a network gives the expected answers."""
    found = _answers(network, example)
    return all(_close(b, a) for two in zip(found, expected, strict=True) for b, a in zip(*two, strict=True))


def _other_answers(
    original: nn.Module, source: fx.GraphModule, expected: list[list[Tensor]], example: Tensor
) -> UserError:
    """Return the error for a trace that gives other answers, which names a hook or a random layer that changes them."""
    if not _same(original, expected, example):
        flow = Flow(source)
        one, two = flow.values(example.clone()), flow.values(example.clone())
        pairs = ((n, zip(_leaves(one[n]), _leaves(two[n]), strict=True)) for n in flow.nodes[1:-1])
        drawn = next((where(n) for n, leaves in pairs if not all(_close(b, a) for a, b in leaves)), "somewhere")
        return UserError(
            f"the network gives other answers each time: layer {drawn} draws at random also in evaluation. Replace it "
            "by a layer that does not (for FractionalMaxPool2d: MaxPool2d, or give it _random_samples)"
        )
    hook = changed_by_hooks(original, lambda network: _same(network, expected, example))
    if hook is not None:
        return UserError(
            f"{hook} changes values, which a converted network would lose: remove the hook before converting "
            "(handle.remove()) and compute the change in the layer's forward"
        )
    return UserError(
        "the traced network answers otherwise than the network itself: its control flow depends on the data, or it "
        "changes a tensor in place through another name"
    )


def _close(found: Tensor, expected: Tensor) -> bool:
    """Return whether two results of the same computation are equal but for rounding."""
    atol = 1e-4 * float(expected.detach().abs().max() + 1e-9)
    return found.shape == expected.shape and torch.allclose(expected, found, rtol=1e-3, atol=atol)


@torch.no_grad()
def _check_rows(flow: Flow, example: Tensor) -> None:
    """Raise UserError where values depend on other samples of the batch, into which time is folded, or are integers.

    Notes the shape of each node's value, without the batch axis, as its `meta["shape"]`.
    """
    pair = example if len(example) > 1 else torch.cat([example, example])
    together, alone = flow.values(pair[:2]), flow.values(pair[:1])
    not_data, given = sizes(flow.nodes), flow.output.all_input_nodes
    for node in given:
        if node in not_data and node in flow.data and not _is_length(together[node], alone[node]):
            raise UserError(
                f"the network returns a value that its batch size changes ({where(node)}): return x.shape[0]"
            )
    for node in flow.nodes[1:-1]:
        node.meta["shape"] = together[node].shape[1:] if isinstance(together[node], Tensor) else None
        if node not in flow.data or node in not_data or not (node in flow.timed or node in given):
            continue
        for both, one in zip(_leaves(together[node]), _leaves(alone[node]), strict=True):
            if one.dim() < both.dim():
                raise UserError(
                    f"layer {where(node)} removes the axis of samples from a batch of one: name the axes that it shall "
                    "remove, as in squeeze((2, 3)), or write flatten(1)"
                )
            if not (both.dim() and len(both) == 2 and _close(one, both[:1])):
                raise UserError(
                    f"layer {where(node)} joins or mixes the samples of a batch, which no network over time can: its "
                    "steps are computed as a batch. Keep the first axis for samples, and compute each sample on its own"
                )
        if node not in flow.timed:
            continue
        if not all(leaf.is_floating_point() for leaf in _leaves(together[node])):
            why = "rounding does not commute with the mean over time"
            raise UserError(f"layer {where(node)} gives whole numbers: {why}")
        if node in flow.sites and together[node].dim() < 2:
            what = "an activation of one number a sample, [N]"
            raise UserError(f"layer {where(node)} is {what}: keep an axis of features, [N, 1]")


def _is_length(two: Any, one: Any) -> bool:
    """Return whether sizes for two samples and for one are batch sizes, or multiples of them."""
    if isinstance(two, torch.Size) and isinstance(one, torch.Size):
        return bool(two) and two[0] == 2 * one[0] and two[1:] == one[1:]
    return isinstance(two, int) and isinstance(one, int) and two == 2 * one


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
        module, kind = flow.module(node), _kind(flow, node)
        if isinstance(module, words.NORMS) and module.running_mean is None:
            why = "by its own batch (track_running_stats=False), which no spiking network can"
            raise UserError(f"layer {where(node)} normalises {why}: train it with running statistics")
        if isinstance(module, words.MAX_POOLS):
            flow.replace(node, vocabulary.max_pool(module, where(node), maxpool))
            continue
        known = node in flow.sites or node in not_data or isinstance(module, MaxGate)
        known |= module is None and kind in vocabulary.products
        known |= _commutes(flow, node, flow.timed)
        if not (known or (kind in words.READOUTS and node in flow.tail and node not in weighty)):
            raise vocabulary.refusal(where(node), kind)


def _kind(flow: Flow, node: fx.Node) -> str:
    """Return the name of a node's class or function."""
    module = flow.module(node)
    return type(module).__name__ if module is not None else function_name(node)


def _commutes(flow: Flow, node: fx.Node, signals: Collection[fx.Node]) -> bool:
    """Return whether an operation on `signals` is linear or affine, or none at all."""
    heard = [n for n in node.all_input_nodes if n in signals]
    affine = isinstance(flow.module(node), (*words.AFFINE, Frames, FixedShape))
    return affine or words.is_linear(node, heard) or (not heard and node.op != "call_module")
