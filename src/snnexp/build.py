"""From plain configs to objects: Hydra's `_target_` is the registry, and a refusal names the full key."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from snnexp.errors import InvalidValue, UserError


def build(group: str, config: Mapping[str, Any], **extra: Any) -> Any:
    """Instantiate `config[group]`, with `extra` keyword arguments that are passed as they are.

    Raises UserError, naming the key, if the constructor refuses a value or does not take a key. Errors inside a
    constructor pass through.
    """
    # hydra would copy `extra` into the config, which takes plain values only: bind the config first, then call
    node = {**config[group], "_partial_": True} if extra else config[group]
    made = _instantiated(group, config, node)
    if not extra:
        return made
    try:
        return made(**extra)
    except InvalidValue as error:
        raise _refusal(group, config, "", error) from error
    except TypeError as error:
        if not _wrong_call(error):
            raise
        raise UserError(f"{group} ({node.get('_target_')}) cannot be made: {error}") from error


def _instantiated(group: str, config: Mapping[str, Any], node: Mapping[str, Any]) -> Any:
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        nested = match[1] if (match := re.search(r"full_key: (\S+)", str(error))) else ""
        if isinstance(cause, InvalidValue):
            raise _refusal(group, config, nested, cause) from error
        target = node.get("_target_")
        if cause is None or isinstance(cause, ImportError | AttributeError) or _wrong_call(cause):
            said = str(error).split("full_key:")[0].strip()
            raise UserError(f"{group} ({target}) cannot be made: {said}") from error
        raise cause  # noqa: B904  a UserError of its own, or a programming error: its traceback tells where


def accepted(node: Mapping[str, Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `offered` that the `_target_` of `node` names in its signature and `node` does not give itself.

    So somebody's own callable gets its own keywords only. A target that cannot be found is left to `build` to explain.
    """
    try:
        named = inspect.signature(get_object(node["_target_"])).parameters
    except Exception:  # an import may raise anything
        return dict(offered)
    return {name: value for name, value in offered.items() if name in named and name not in node}


def _wrong_call(error: BaseException) -> bool:
    """Whether Hydra's call itself failed, for an argument that is missing or unknown, and not something inside it."""
    frames = traceback.extract_tb(error.__traceback__)
    return (
        isinstance(error, TypeError)
        and "argument" in str(error)
        and ("hydra" in frames[-1].filename or frames[-1].filename == __file__)
    )


def _refusal(group: str, config: Mapping[str, Any], nested: str, error: InvalidValue) -> UserError:
    """The refusal under the full key; a value that the group has from the top level (`${seed}`) goes by that key."""
    path = [group, *filter(None, nested.split(".")), *error.name.split(".")]
    own = config[group].get(path[1], config)
    if path[1] in config and (own is config or own == config[path[1]]):
        path = path[1:]
    return error.told(".".join(path))
