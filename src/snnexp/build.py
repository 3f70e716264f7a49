"""From plain configs to objects: Hydra's `_target_` is the registry, and a refusal names the full key."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from snnexp.errors import InvalidValue, UserError


def build(group: str, config: Mapping[str, Any], **extra: Any) -> Any:
    """Instantiate `config[group]`, with `extra` keyword arguments that are passed as they are.

    Raises UserError, naming the key, if the constructor refuses a value or does not take a key.
    """
    # hydra would copy `extra` into the config, which takes plain values only: bind the config first, then call
    node = {**config[group], "_partial_": True} if extra else config[group]
    try:
        made = instantiate(node, _convert_="all")
        return made(**extra) if extra else made
    except InstantiationException as error:
        raise _explained(group, config, error.__cause__ or error) from error
    except (InvalidValue, UserError, TypeError) as error:
        raise _explained(group, config, error) from error


def accepted(node: Mapping[str, Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `offered` that the `_target_` of `node` names in its signature and `node` does not give itself.

    So somebody's own callable gets its own keywords only. A target that cannot be found is left to `build` to explain.
    """
    try:
        named = inspect.signature(get_object(node["_target_"])).parameters
    except Exception:  # an import may raise anything
        return dict(offered)
    return {name: value for name, value in offered.items() if name in named and name not in node}


def _explained(group: str, config: Mapping[str, Any], error: BaseException) -> BaseException:
    match error:
        case UserError():
            return error
        case InvalidValue():
            # an argument that a nested or top-level key supplied carries that key's own name
            key = error.name if error.name.split(".")[0] in config else f"{group}.{error.name}"
            return UserError(f"{key}={error.value} is not allowed: it must be {error.allowed}")
        case TypeError() | ValueError() | ImportError() | AttributeError() | InstantiationException():
            target = config[group].get("_target_")
            return UserError(f"{group} ({target}) cannot be made: {error}")
        case _:
            return error
