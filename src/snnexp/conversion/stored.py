"""Converted networks in files that cannot run code: tensors, and a description of the graph in plain values.

The description names classes of torch.nn and snnexp, functions and methods of torch that compute on tensors, and
arithmetic operators; a file that names anything else is refused. A network that is loaded gives bit-identical answers.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import EllipsisType, ModuleType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import magic_methods
from torch.overrides import get_overridable_functions, resolve_name

from snnexp.conversion.network import Converted
from snnexp.conversion.vocabulary import where
from snnexp.errors import UserError
from snnexp.files import replace_by
from snnexp.trust import allowed

FORMAT = 1
PACKAGES = ("snnexp", "torch.nn.modules")
PATH = re.compile(r"[\w\- ]+(\.[\w\- ]+)*")  # of a module; torch.fx writes it into code
ATTRIBUTES = ("shape", "ndim", "dtype", "device", "layout", "T", "mT", "H", "mH", "real", "imag")  # of a tensor
PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.Size)
OWN = set(vars(nn.Module())) - {"training"}  # what torch keeps in every module
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class Settings:
    """The base class of plain objects, such as mitigations, whose attributes are stored with a network."""


def save_network(snn: Converted, path: str | Path) -> None:
    """Write a converted network to `path`, for `load_network`. Raises UserError, naming the layer, for functions and
    modules that are not torch's or ours, and for attributes that are not plain values.
    """
    described = {
        "format": FORMAT,
        "network": _described(snn, "the network", {"_flow"}),
        "modules": [
            (name, _described(module, f"layer {name}"))
            for name, module in snn.network.named_modules(remove_duplicate=False)
            if name
        ],
        "root": _tensors(snn.network),
        "nodes": [_node(node) for node in snn.network.graph.nodes],
    }
    replace_by(Path(path), partial(torch.save, described))


def load_network(path: str | Path) -> Converted:
    """Return the network that `save_network` wrote to `path`, on the CPU, in evaluation mode.

    No code of the file is run. Raises UserError for any other file, and if the file names a module that is not of
    torch.nn, snnexp or code that the user trusts (see `snnexp.trust`).
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        if found["format"] != FORMAT:
            raise ValueError(f"it has format {found['format']}, and this version reads {FORMAT}")
        return _Loader(str(path)).network(found)
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:  # anything may be in the file
        raise UserError(f"{path} cannot be read as a network that snnexp stored: {error}") from error


def _described(made: nn.Module | Settings, place: str, without: set[str] | None = None) -> dict[str, Any]:
    """Return the class of an object, its attributes, and the tensors of a module."""
    kind, module = type(made), isinstance(made, nn.Module)
    if module and any(getattr(made, hooks) for hooks in HOOKS):
        raise UserError(f"{place} has hooks, which cannot be stored")
    ignored = (OWN if module else set()) | (without or set())
    attributes = {key: _encoded(value, place) for key, value in vars(made).items() if key not in ignored}
    described = {"class": f"{kind.__module__}.{kind.__qualname__}", "attributes": attributes}
    return described | (_tensors(made) if isinstance(made, nn.Module) else {})


def _tensors(module: nn.Module) -> dict[str, Any]:
    return {
        "parameters": {key: None if value is None else value.detach() for key, value in module._parameters.items()},
        "buffers": dict(module._buffers),
    }


def _node(node: fx.Node) -> tuple[str, str, str, Any, Any]:
    place = f"layer {where(node)}"
    target = _function_name(node) if node.op == "call_function" else str(node.target)
    if node.op == "call_method" and target not in _methods():
        raise UserError(f"{place} calls {target}, which is no method of torch's tensors and cannot be stored")
    return node.op, node.name, target, _encoded(node.args, place), _encoded(dict(node.kwargs), place)


def _function_name(node: fx.Node) -> str:
    for name, function in _functions().items():
        if function is node.target:
            return name
    raise UserError(f"layer {where(node)} calls {node.target}, which is no function of torch and cannot be stored")


def _encoded(value: Any, place: str) -> Any:
    """Return a value in types that torch.load reads as weights. Raises UserError, naming `place`, for others."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, list | tuple):
        made = [_encoded(item, place) for item in value]
        return made if isinstance(value, list) else tuple(made)
    if isinstance(value, dict):
        return {"is": "dict", "items": [(key, _encoded(item, place)) for key, item in value.items()]}
    if isinstance(value, slice):
        return {"is": "slice", "items": [_encoded(item, place) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, EllipsisType):
        return {"is": "ellipsis"}
    if isinstance(value, torch.memory_format):
        return {"is": "memory_format", "name": str(value).removeprefix("torch.")}
    if isinstance(value, fx.Node):
        return {"is": "node", "name": value.name}
    if isinstance(value, Settings):
        return {"is": "settings", **_described(value, place)}
    raise UserError(f"{place} has a {type(value).__name__}, which cannot be stored")


class _Loader:
    """The way back from a description: every name in it is checked before it is used."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.nodes: dict[str, fx.Node] = {}

    def network(self, found: Mapping[str, Any]) -> Converted:
        root = nn.Module()
        self.tensors(root, found["root"])
        for name, described in found["modules"]:
            parent, _, last = self.checked(name, PATH.fullmatch(name)).rpartition(".")
            root.get_submodule(parent).add_module(last, cast(nn.Module, self.made(described, nn.Module)))
        snn = cast(Converted, self.made(found["network"], Converted))
        snn.network, snn._flow = fx.GraphModule(root, self.graph(root, found["nodes"])), None
        return snn.requires_grad_(False).eval()

    def made(self, described: Mapping[str, Any], kind: type) -> Any:
        """Return the object that is described, made without calling its constructor."""
        named: Any = allowed(described["class"], kind, self.path, PACKAGES)
        made = named.__new__(named)
        if isinstance(made, nn.Module):
            nn.Module.__init__(made)
            self.tensors(made, described)
        for key, value in described["attributes"].items():
            vars(made)[self.checked(key, key not in OWN and not key.startswith("__"))] = self.decoded(value)
        return made

    def tensors(self, module: nn.Module, described: Mapping[str, Any]) -> None:
        for key, value in described["parameters"].items():
            module.register_parameter(key, None if value is None else nn.Parameter(value, requires_grad=False))
        for key, value in described["buffers"].items():
            module.register_buffer(key, value)

    def graph(self, root: nn.Module, nodes: Sequence[tuple[str, str, str, Any, Any]]) -> fx.Graph:
        graph = fx.Graph()
        tensors = {name for name, _ in (*root.named_parameters(), *root.named_buffers())}
        for op, name, target, args, kwargs in nodes:
            self.checked(name, name.isidentifier())
            known = {
                "placeholder": target.isidentifier(),
                "get_attr": target in tensors,
                "call_module": PATH.fullmatch(target),
                "call_method": target in _methods(),
                "call_function": target in _functions(),
                "output": target == "output",
            }
            self.checked(f"{op} {target}", known[op])
            keywords = self.decoded(kwargs)
            self.checked(str(list(keywords)), all(key.isidentifier() for key in keywords))
            function: Any = _functions()[target] if op == "call_function" else target
            values = self.decoded(args)
            if function is getattr:
                self.checked(f"attribute {values[1:]}", len(values) == 2 and values[1] in ATTRIBUTES)
            self.nodes[name] = graph.create_node(op, function, values, keywords, name)
        graph.lint()  # type: ignore[no-untyped-call]
        return graph

    def decoded(self, value: Any) -> Any:
        """Return what `_encoded` was given."""
        if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
            made = [self.decoded(item) for item in value]
            return made if isinstance(value, list) else tuple(made)
        if not isinstance(value, dict):
            self.checked(type(value).__name__, isinstance(value, PLAIN))
            return value
        kinds: dict[str, Callable[[], Any]] = {
            "dict": lambda: {key: self.decoded(item) for key, item in value["items"]},
            "slice": lambda: slice(*self.decoded(value["items"])),
            "ellipsis": lambda: ...,
            "memory_format": lambda: _memory_formats()[value["name"]],
            "node": lambda: self.nodes[value["name"]],
            "settings": lambda: self.made(value, Settings),
        }
        return kinds[value["is"]]()

    def checked(self, name: str, good: object) -> str:
        if not good:
            raise UserError(f"{self.path} names {name}, which a stored network may not name")
        return name


@lru_cache
def _functions() -> dict[str, Callable[..., Any]]:
    """Return the functions that a graph may call, by name: of torch, of operators, and of math (sizes)."""
    found = {
        resolve_name(function): function
        for space, functions in get_overridable_functions().items()
        if isinstance(space, ModuleType)
        for function in functions
    }
    operators = {f"operator.{name}": getattr(operator, name) for name in magic_methods if hasattr(operator, name)}
    of_sizes = {f"math.{f.__name__}": f for f in (math.ceil, math.floor, math.trunc, math.sqrt, math.log2, math.prod)}
    return {**found, **operators, **of_sizes, "getattr": getattr}


@lru_cache
def _methods() -> set[str]:
    """Return the methods of tensors that a graph may call."""
    names = (function.__name__ for function in get_overridable_functions()[Tensor])
    return {name for name in names if not name.startswith("_")}


def _memory_formats() -> dict[str, torch.memory_format]:
    return {name: value for name, value in vars(torch).items() if isinstance(value, torch.memory_format)}
