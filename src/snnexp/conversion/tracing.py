"""The tracing of anybody's network into a `torch.fx` graph: copying it, taking off what computes weights or watches
layers, and sizes that decide about control flow."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Proxy, TraceError
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from snnexp.conversion.flow import before, sizes
from snnexp.conversion.vocabulary import function_name, is_shape
from snnexp.errors import UserError
from snnexp.neuron.clip import Bounded
from snnexp.timefold import Dropout, Normalize, TimeMean

OURS: tuple[type[nn.Module], ...] = (Bounded, Dropout, Normalize, TimeMean)
HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
)
GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")
COMPUTING = (BasePruningMethod, SpectralNorm, WeightNorm)  # pre-hooks that compute a weight from other tensors
PARTS = ("_orig", "_mask", "_g", "_v", "_u")  # endings of the names of those tensors
BATCHES = (2, 1, 64)  # sizes on which the control flow of a network must agree


def traced(net: nn.Module, example: Tensor) -> fx.GraphModule:
    """Return the graph of `net`, whose hooks are ignored, for inputs like `example` [N, ...].

    Arguments of `forward` that have defaults keep these. Control flow may depend on sizes, but not on data nor on the
    batch size; the graph then refuses inputs of another shape. Raises UserError, naming the layer.
    """
    tracer = Tracer(example)
    try:
        with no_global_hooks():
            graph = fx.GraphModule(net, tracer.trace(net))
    except Exception as error:  # the network may be anybody's
        layer = f"layer {tracer.place}" if tracer.place else "the network's forward"
        raise UserError(
            f"{layer} cannot be traced by torch.fx, and so not converted: {error}. Its control flow must not depend on "
            "the data or the batch size, nor may it assign to parts of a tensor or take its len(); write it with "
            "torch operations"
        ) from error
    if tracer.fixed:
        _fix_shape(graph, example)
    return graph


class FixedShape(nn.Module):
    """Passes on inputs [N, *shape], and refuses others with a UserError: the graph behind it is made for this shape."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.shape:
            made, got = (str(list(shape)).strip("[]") for shape in (self.shape, x.shape[1:]))
            raise UserError(
                f"inputs of shape [N, {got}] do not fit: sizes decide about this network's control flow, so it was "
                f"converted for [N, {made}] alone; convert it with images of the other shape"
            )
        return x


def _fix_shape(graph: fx.GraphModule, example: Tensor) -> None:
    start = next(n for n in graph.graph.nodes if n.op == "placeholder")
    graph.add_submodule("fixed_shape", FixedShape(example.shape[1:]))
    with graph.graph.inserting_after(start):
        checked = graph.graph.call_module("fixed_shape", (start,))
    start.replace_all_uses_with(checked, delete_user_cb=lambda user: user is not checked)
    graph.recompile()


def _shapes_alone() -> Any:
    """Return a context in which tensors have shapes and no values."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # imported late: only some networks need it

    class Shapes(FakeTensorMode):  # type: ignore[no-untyped-call]
        # If true, it registers an absent GPU, for which autograd starts threads: no fork could train after that.
        avoid_device_init = False

    return Shapes(allow_non_fake_inputs=True)


class Tracer(fx.Tracer):
    """A tracer that notes the innermost module in which tracing fails (`place`), and tells Python's control flow the
    sizes of `example` (without one: no sizes). `fixed`: whether it has done so."""

    def __init__(self, example: Tensor | None = None) -> None:
        super().__init__()
        self.place, self.fixed, self._computing = "", False, False
        self._example = example

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if "forward" in vars(m):  # replaced for this module alone
            return False
        own = next((kind for kind in OURS if isinstance(m, kind)), None)
        if own is not None:
            return type(m).forward is own.forward
        return super().is_leaf_module(m, module_qualified_name)  # subclasses of torch's modules are traced through

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._computing:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.place = self.place or path  # the innermost
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        if target is torch._assert and isinstance(args[0], Proxy) and args[0].node in sizes(list(self.graph.nodes)):
            if not self.told(args[0].node, bool):
                raise AssertionError(*args[1:], *kwargs.values())
            return None
        return super().create_proxy(kind, target, args, kwargs, *rest, **more)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Return `root_fn` and its arguments: the first, and others without a default (which are refused later)."""
        if not is_module or concrete_args is not None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)  # type: ignore[no-any-return, no-untyped-call]
        _, *given = inspect.signature(root_fn).parameters.values()
        if any(p.default is p.empty and p.kind is p.KEYWORD_ONLY for p in given):
            return super().create_args_for_root(root_fn, is_module)  # type: ignore[no-any-return, no-untyped-call]
        positional = [p for p in given if p.kind is not p.KEYWORD_ONLY and p.kind is not p.VAR_KEYWORD]
        wanted = [p for k, p in enumerate(positional) if not k or (p.default is p.empty and p.kind != p.VAR_POSITIONAL)]
        return root_fn, [self.root, *(self.create_proxy("placeholder", p.name, (), {}) for p in wanted)]

    def proxy(self, node: fx.Node) -> Proxy:
        return Sized(node, self)

    def to_bool(self, obj: Proxy) -> bool:
        return bool(self.told(obj.node, bool))

    def iter(self, obj: Proxy) -> Iterator[Any]:
        try:
            return super().iter(obj)
        except TraceError:
            return iter([cast(Any, obj)[k] for k in range(self.told(obj.node, len))])

    def told(self, node: fx.Node, ask: Callable[[Any], Any]) -> Any:
        """Return `ask(value)` of a size, or the length of a tuple. Raises TraceError for other values, and where the
        answer depends on the batch size."""
        size = node in sizes(list(self.graph.nodes))
        if not size and not (ask is len and self._runs and isinstance(self._known(node)[0], tuple | list)):
            raise TraceError(f"it asks in Python for the value of {function_name(node)}, which depends on the data")
        answers = [ask(value) for value in self._known(node)]
        if not answers or any(answer != answers[0] for answer in answers):
            raise TraceError(f"it asks in Python for {function_name(node)}, which depends on the batch size")
        rank = size and ask is len
        self.fixed |= not rank and any(
            is_shape(n) or n.target == "size" for n in before(list(self.graph.nodes), [node])
        )
        return answers[0]

    @cached_property
    def _fake(self) -> Any:
        return _shapes_alone()

    @cached_property
    def _runs(self) -> list[dict[fx.Node | None, Any]]:
        """The values of nodes by batch size; None: the input."""
        if (like := self._example) is None:
            return []
        with self._fake:
            shapes = [(n, *like.shape[1:]) for n in BATCHES]
            return [{None: torch.empty(shape, dtype=like.dtype, device=like.device)} for shape in shapes]

    @torch.no_grad()
    def _known(self, node: fx.Node) -> list[Any]:
        """Return the value of a node for each of `BATCHES`: sizes are numbers, and tensors have a shape alone."""
        self._computing = True
        try:
            for env in self._runs:
                for each in list(self.graph.nodes):
                    if each not in env:
                        with self._fake:
                            env[each] = self._computed(each, env)
                    if each is node:
                        break
        finally:
            self._computing = False
        return [env[node] for env in self._runs]

    def _computed(self, node: fx.Node, env: dict[fx.Node | None, Any]) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
        if node.op == "placeholder":
            return env[None]
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        value: Any = self.root
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value(*args, **kwargs) if node.op == "call_module" else value


class Sized(Proxy):
    """A proxy whose sizes become numbers where Python needs them: in conditions, int(), range(), len()."""

    tracer: Tracer

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "ndim", "dtype", "device"):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def __int__(self) -> int:
        return self.tracer.told(self.node, int)  # type: ignore[no-any-return]

    def __float__(self) -> float:
        return self.tracer.told(self.node, float)  # type: ignore[no-any-return]

    def __index__(self) -> int:
        return self.tracer.told(self.node, int)  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return self.tracer.told(self.node, len)  # type: ignore[no-any-return]

    def __round__(self, digits: int | None = None) -> Any:
        return round(float(self), digits)

    def __trunc__(self) -> int:
        return int(self)

    def __hash__(self) -> int:
        return id(self)


def plain(ann: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, without wrappers, with computed weights (parametrizations, pruning, weight and
    spectral norms) as plain parameters. Raises UserError for TorchScript."""
    for name, module in ann.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(
                f"{_layer(name)} is a TorchScript module (torch.jit), whose operations cannot be replaced: convert the "
                "network that it was made from, and load its weights from the script's state_dict()"
            )
    wrapped = ann.module if isinstance(ann, nn.DataParallel) else getattr(ann, "_orig_mod", None)  # torch.compile
    if isinstance(wrapped, nn.Module):
        network = plain(wrapped)
        for hooks in HOOKS:
            getattr(network, hooks).update(getattr(ann, hooks))
        return network
    computed = [t for m in ann.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    network = copy.deepcopy(ann, {id(t): t.detach().clone() for t in computed}).eval()
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            kinds = {name: bool(each._parameters) for name, each in module.parametrizations.items()}  # type: ignore[union-attr, operator]
            values = {name: getattr(module, name).detach() for name in kinds}
            module.__class__ = type(module).__bases__[0]  # torch's own removal would change the caller's class
            del module.parametrizations
            for name, value in values.items():
                _settle(module, name, value, kinds[name])
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, COMPUTING):
                hook(module, ())
                del module._forward_pre_hooks[key]
                name = hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name
                value = vars(module).pop(name).detach()
                for part in PARTS:
                    module._parameters.pop(name + part, None)
                    module._buffers.pop(name + part, None)
                _settle(module, name, value, True)
    return network


def _settle(module: nn.Module, name: str, value: Tensor, trained: bool) -> None:
    if trained:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


def without_hooks(network: nn.Module) -> nn.Module:
    """Return a copy without hooks."""
    bare = copy.deepcopy(network)
    for module in bare.modules():
        _clear_hooks(module)
    return bare


def _clear_hooks(module: nn.Module) -> None:
    for hooks in HOOKS:
        getattr(module, hooks).clear()


@contextmanager
def no_global_hooks() -> Iterator[None]:
    """Take off, inside the block, the hooks that were registered for all modules."""
    kept = {hooks: dict(getattr(torch_module, hooks)) for hooks in GLOBAL_HOOKS}
    try:
        for hooks in GLOBAL_HOOKS:
            getattr(torch_module, hooks).clear()
        yield
    finally:
        for hooks, own in kept.items():
            getattr(torch_module, hooks).update(own)


def changed_by_hooks(network: nn.Module, same: Callable[[nn.Module], bool]) -> str | None:
    """Return which hook changes the answers of `network`, in words; None if none does.

    `same(other)`: whether another network gives the same answers as `network`.
    """
    with no_global_hooks():
        if not same(network):
            return "a hook of all modules (register_module_forward_hook or register_module_forward_pre_hook)"
    for name, module in network.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            tried = copy.deepcopy(network)
            _clear_hooks(tried.get_submodule(name))
            if not same(tried):
                return f"a forward hook of {_layer(name)} ({type(module).__name__})"
    return None


def _layer(name: str) -> str:
    return f"layer {name}" if name else "the network itself"
