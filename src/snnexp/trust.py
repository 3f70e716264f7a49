"""Check the names in files of other people: only classes of known packages are allowed, never functions.

A config's `_target_` runs whatever it names. So a config that comes with a run, and a stored network, may only name
classes of the expected kind, from PACKAGES and from packages that the user adds.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from snnexp.errors import UserError

PACKAGES = ("snnexp", "torch", "torchvision", "spikingjelly", "optuna")


def check_targets(config: Any, kind: type, source: str, packages: Sequence[str], key: str) -> None:
    """Raise UserError unless `config` (plain containers) of the file `source` may be instantiated.

    Each `_target_` in it must be allowed (see `allowed`), and no text may be an interpolation, which could resolve to
    one.
    """
    for name, value in _entries(config):
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{source}: {name}={value} is not allowed: configs of runs have plain values only")
        if name == "_target_":
            allowed(value, kind, source, packages, key)


def allowed(target: object, kind: type, source: str, packages: Sequence[str], key: str) -> type:
    """Return the class that `target`, a dotted name in the file `source`, names.

    Raises UserError unless it is a subclass of `kind` in one of `packages`; the config key `key` adds packages.
    """
    *path, name = str(target).split(".")
    module = ".".join(path)
    known = any(f"{module}.".startswith(f"{package}.") for package in packages)
    made = _attribute(module, name) if known and not any(part.startswith("_") for part in path) else None
    if not (inspect.isclass(made) and issubclass(made, kind)):
        raise UserError(
            f"{source} names {target}, which is not allowed: it must be a {kind.__name__} class of "
            f"{', '.join(packages)}. If you trust another package with your account, add it to {key} "
            "(docs/security.md)"
        )
    return made


def _entries(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) for all values in nested mappings and lists."""
    pairs = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for key, value in pairs:
        yield str(key), value
        yield from _entries(value)


def _attribute(module: str, name: str) -> Any:
    """Return attribute `name` of `module`; None if there is none."""
    try:
        return getattr(import_module(module), name, None)
    except Exception:  # an import may raise anything
        return None
