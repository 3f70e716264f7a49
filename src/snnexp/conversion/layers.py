"""Layers that a network calls as functions, or as a relative of a known module, as modules of their own: so one rule
serves convolutions, linear layers and norms in every form (accounts, corrections, folding, memory layout)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import TensorMetadata
from torch.nn.utils import skip_init

from snnexp.conversion import vocabulary as words
from snnexp.conversion.flow import Flow
from snnexp.conversion.vocabulary import function_name, owner_name

CONV = ("weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED = ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
BATCH_NORM = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
INSTANCE_NORM = ("running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
NORM_OF = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}  # by the number of axes
Settings = Mapping[str, Any]


def replace_call(graph: fx.GraphModule, node: fx.Node, name: str, module: nn.Module, given: Any = None) -> None:
    """Replace the call of `node` by that of `module`, under `name`, with input `given` (default: its first)."""
    graph.add_submodule(name, module)
    with graph.graph.inserting_before(node):
        made = graph.graph.call_module(name, (node.args[0] if given is None else given,))
        made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    graph.graph.erase_node(node)


def name_in_owner(node: fx.Node) -> str:
    """Return a name for the function that `node` calls: that of the module that calls it, and its own."""
    return f"{owner_name(node)}.{function_name(node)}".lstrip(".")


def free(graph: fx.GraphModule, name: str) -> str:
    """Return `name`, with a number if a module already has it."""
    taken = {name for name, _ in graph.named_modules()}
    return next(c for c in (name, *(f"{name}_{k}" for k in range(2, len(taken) + 3))) if c not in taken)


def axes(node: fx.Node) -> int | None:
    """Return the number of axes of the node's value, as noted by ShapeProp; None if it is no tensor."""
    noted = node.meta.get("tensor_meta")
    return len(noted.shape) if isinstance(noted, TensorMetadata) else None


def constant(flow: Flow, value: Any) -> Any:
    """Return the value of a node that does not depend on the input, detached, and other values as they are.

    Raises KeyError for a node that depends on the input.
    """
    if not isinstance(value, fx.Node):
        return value
    inside, start = flow.segment([value], [flow.placeholder])
    if start:
        raise KeyError(value)
    env = dict[fx.Node, Any]()
    flow.run(inside, env)
    return env[value].detach() if isinstance(env[value], Tensor) else env[value]


@torch.no_grad()
def layers_as_modules(graph: fx.GraphModule) -> None:
    """Turn functional convolutions, linear layers, products with a constant matrix, and norms of constant statistics
    into modules; and SyncBatchNorm and InstanceNorm with running statistics into BatchNorm."""
    flow = Flow(graph)
    for node in list(graph.graph.nodes):
        module, name, given = flow.module(node), function_name(node), None
        if module is not None:
            made = _relative(module, node)
            name = free(graph, f"{node.target}.norm")
        elif node.op in ("call_function", "call_method") and name in MAKERS and node in flow.data:
            keys, make = MAKERS[name]
            try:
                found, given = _settings(flow, node, keys, name)
                made = make(name, found, node)
            except KeyError:  # computed from the input
                continue
            name = free(graph, name_in_owner(node))
        else:
            continue
        if made is not None:
            replace_call(graph, node, name, made, given)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _settings(flow: Flow, node: fx.Node, keys: tuple[str, ...], name: str) -> tuple[dict[str, Any], Any]:
    """Return the arguments after the input by name, as values, and the input. Raises KeyError."""
    args = list(node.args)
    if name == "addmm":
        if node.kwargs:
            raise KeyError(name)
        bias, given, weight = args
        args = [given, weight, bias]
    found = {key: constant(flow, value) for key, value in zip(keys, args[1:], strict=False)}
    found |= {key: constant(flow, value) for key, value in node.kwargs.items() if key in keys}
    nodes = list[fx.Node]()
    fx.map_arg((found, list(node.kwargs.keys() - set(keys))), nodes.append)
    if nodes or not isinstance(args[0], fx.Node):
        raise KeyError(name)
    return found, args[0]


def _conv(name: str, settings: Settings, node: fx.Node) -> nn.Module:
    transposed, d = "transpose" in name, name[-2]
    weight, bias = settings["weight"], settings.get("bias")
    rest = {key: value for key, value in settings.items() if key not in ("weight", "bias")}
    rest = {key: tuple(value) if isinstance(value, list) else value for key, value in rest.items()}
    ins, outs = (0, 1) if transposed else (1, 0)
    channels = [weight.shape[ins], weight.shape[outs]]
    channels[1 if transposed else 0] *= rest.get("groups", 1)
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{d}d")
    rest |= {"kernel_size": tuple(weight.shape[2:]), "bias": bias is not None}
    return _weighted(skip_init(kind, *channels, **rest), weight, bias)  # type: ignore[no-untyped-call]


def _linear(name: str, settings: Settings, node: fx.Node) -> nn.Module | None:
    weight, bias = settings["weight"], settings.get("bias")
    if name != "linear":
        weight = weight.T if isinstance(weight, Tensor) and weight.dim() == 2 else None
    if weight is None or weight.dim() != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    made = skip_init(nn.Linear, *reversed(weight.shape), bias=bias is not None)  # type: ignore[no-untyped-call]
    return _weighted(made, weight, bias)


def _weighted(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer.eval()


def _norm(name: str, settings: Settings, node: fx.Node) -> nn.Module | None:
    own = settings.get("training", settings.get("use_input_stats", name == "instance_norm"))
    mean, var, weight = (settings.get(key) for key in ("running_mean", "running_var", "weight"))
    if name == "instance_norm" and (own or mean is None):
        return None
    if own or mean is None:  # by the batch: refused where it matters
        mean = var = None
    noted = node.meta.get("tensor_meta")
    if not isinstance(noted, TensorMetadata):
        return None
    return _batch_norm(noted.shape, mean, var, weight, settings.get("bias"), settings.get("eps", 1e-5))


def _relative(module: nn.Module, node: fx.Node) -> nn.Module | None:
    """Return the BatchNorm that computes the same as a relative of it in evaluation; None for other modules."""
    instance = isinstance(module, (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d))
    noted = node.meta.get("tensor_meta")
    if not (isinstance(module, nn.SyncBatchNorm) or (instance and module.running_mean is not None)):
        return None
    if not isinstance(noted, TensorMetadata):
        return None
    parts = module.running_mean, module.running_var, module.weight, module.bias
    return _batch_norm(noted.shape, *parts, module.eps)  # type: ignore[arg-type]


def _batch_norm(
    shape: torch.Size, mean: Tensor | None, var: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> nn.Module:
    affine = weight is not None or bias is not None
    norm = NORM_OF[len(shape)](shape[1], eps, affine=affine, track_running_stats=mean is not None)
    for name, value in (("running_mean", mean), ("running_var", var)):
        if value is not None:
            norm.register_buffer(name, value.detach().clone())
    if affine:
        given = weight if weight is not None else bias
        assert given is not None
        norm.weight = nn.Parameter(torch.ones_like(given) if weight is None else weight.detach().clone())
        norm.bias = nn.Parameter(torch.zeros_like(given) if bias is None else bias.detach().clone())
    return norm.eval()


Make = Callable[[str, Settings, fx.Node], nn.Module | None]
MAKERS: dict[str, tuple[tuple[str, ...], Make]] = {
    **{f"conv{d}d": (CONV, _conv) for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": (TRANSPOSED, _conv) for d in (1, 2, 3)},
    **dict.fromkeys(("linear", "matmul", "mm", "addmm"), (("weight", "bias"), _linear)),
    "batch_norm": (BATCH_NORM, _norm),
    "instance_norm": (INSTANCE_NORM, _norm),
}


def sizes_from_the_front(graph: fx.GraphModule) -> None:
    """Turn x.shape[-4] and x.size(-4) into the same with an axis counted from the front, as `Flow` needs it."""
    for node in graph.graph.nodes:
        if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
            asked: Any = node.args[0]
        elif function_name(node) == "getitem" and isinstance(node.args[0], fx.Node) and words.is_shape(node.args[0]):
            asked = node.args[0].args[0]
        else:
            continue
        axis, count = node.args[1], axes(asked)
        if isinstance(axis, int) and axis < 0 and count is not None:
            node.args = (node.args[0], axis + count)
        if isinstance(axis, slice) and isinstance(axis.start, int) and axis.start < 0 and count is not None:
            node.args = (node.args[0], slice(max(0, axis.start + count), axis.stop, axis.step))
