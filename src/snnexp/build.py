"""Make objects from plain configs: Hydra's `_target_` names the class, and errors name the full key."""

import inspect
import re
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from snnexp.errors import InvalidValue, UserError
from snnexp.mistakes import did_you_mean, near
from snnexp.trust import check_plain


def build(group: str, config: Mapping[str, Any], protocol: type | None = None, **extra: Any) -> Any:
    """Instantiate `config[group]`, passing `extra` keyword arguments as they are, and check it against `protocol`.

    `protocol` is a class that the object must be an instance of, or a Protocol whose members it must have. Raises
    UserError, naming the key, if the constructor refuses a value or does not take a key, or if the object does not
    satisfy `protocol`. Errors inside a constructor pass through.
    """
    # Hydra would copy `extra` into the config, which takes plain values only: bind the config first, then call.
    node = {**config[group], "_partial_": True} if extra else config[group]
    made = _instantiated(group, config, node)
    if extra:
        try:
            made = made(**extra)
        except InvalidValue as error:
            raise _refusal(group, config, "", error) from error
        except TypeError as error:
            if not _wrong_call(error, extra):
                raise
            raise UserError(f"{group} ({node.get('_target_')}) cannot be made: {error}") from error
    if protocol is not None and (lacks := unlike(made, protocol)):
        raise UserError(
            f"{group} ({node.get('_target_')}) gives a {type(made).__name__}, which {lacks} (docs/extending.md)"
        )
    return made


def unlike(made: object, protocol: type) -> str:
    """Return why `made` does not satisfy `protocol`, as text that completes "which ..."; "" if it does.

    For a Protocol, only names are compared: attributes, properties and methods that do not begin with an underscore.
    """
    if not getattr(protocol, "_is_protocol", False):
        return "" if isinstance(made, protocol) else f"is no {protocol.__module__}.{protocol.__qualname__}"
    asked = {name for base in protocol.__mro__ for name in (*vars(base), *vars(base).get("__annotations__", {}))}
    missing = sorted(name for name in asked if not name.startswith("_") and not hasattr(made, name))
    return f"lacks {', '.join(missing)} of {protocol.__module__}.{protocol.__qualname__}" if missing else ""


def _instantiated(group: str, config: Mapping[str, Any], node: Mapping[str, Any]) -> Any:
    check_plain(node, group)
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        nested = match[1] if (match := re.search(r"full_key: (\S+)", str(error))) else ""
        if isinstance(cause, InvalidValue):
            raise _refusal(group, config, nested, cause) from error
        target = node.get("_target_")
        if cause is None or isinstance(cause, ImportError | AttributeError) or _wrong_call(cause, node):
            said = str(error).split("full_key:")[0].strip()
            if isinstance(cause, TypeError) and not nested and (unknown := _unknown(cause, node)):
                raise UserError(_no_argument(group, str(target), unknown)) from error
            raise UserError(f"{group} ({target}) cannot be made: {said}") from error
        raise cause  # noqa: B904  a UserError already, or a programming error whose traceback tells where


def accepted(node: Mapping[str, Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Return the items of `offered` that are parameters of the `_target_` of `node` and that `node` does not set.

    A user's own callable thus gets only its own keywords. A target that cannot be found is left to `build` to report.
    """
    try:
        named = inspect.signature(get_object(node["_target_"])).parameters
    except Exception:  # an import may raise anything
        return dict(offered)
    return {name: value for name, value in offered.items() if name in named and name not in node}


def _wrong_call(error: BaseException, given: Iterable[str]) -> bool:
    """Return whether the call itself failed (an argument is missing, or one of `given` is unknown), not code inside it.

    A constructor may pass keywords that it does not know on to another one.
    """
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    here = "hydra" in place or place == __file__ or bool(_unknown(error, given))
    return isinstance(error, TypeError) and "argument" in str(error) and here


def _unknown(error: BaseException, given: Iterable[str]) -> str:
    """Return which of the arguments `given` a call does not know, by its error; "" if it is about something else."""
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    return found[1] if found and found[1] in given else ""


def _no_argument(group: str, target: str, name: str) -> str:
    """Return the message for a key that a group's constructor does not take."""
    known: list[str] = []
    with suppress(Exception):  # an import may raise anything
        known = [key for key in inspect.signature(get_object(target)).parameters if key not in ("args", "kwargs")]
    meant = did_you_mean([f"{group}.{key}" for key in near(name, known)])
    return f"{group}.{name} is not allowed: {target} has no argument {name}.{meant} It takes {', '.join(known)}"


def _refusal(group: str, config: Mapping[str, Any], nested: str, error: InvalidValue) -> UserError:
    """Return the error with the full key, or with the top-level key from which the group takes its value."""
    path = [group, *filter(None, nested.split(".")), *error.name.split(".")]
    own = config[group].get(path[1], config)
    if path[1] in config and (own is config or own == config[path[1]]):
        path = path[1:]
    return error.told(".".join(path))
