"""Errors the user can fix: printed as one message, never as a traceback. Imports nothing heavy."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from hydra.errors import CompactHydraException


class UserError(CompactHydraException):
    """A message for the user: what is wrong, which value, and what to do. Hydra prints it without a traceback."""


class Outage(UserError):
    """An error of the surroundings (a server, a disk, a lock), not of the config: it may succeed later as it stands."""


class Pruned(Exception):
    """Raised where a sweep's pruner stops this run; not an error."""


class InvalidValue(ValueError):
    """A constructor's refusal of one argument; `build` turns it into a UserError with the full config key.

    Attributes: `name` the argument, `value` what was given, `allowed` what may be given instead.
    """

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(f"{name}={value!r} is not allowed: it must be {allowed}")
        self.name, self.value, self.allowed = name, value, allowed

    def told(self, key: str) -> UserError:
        """Return the same refusal as a UserError under the full config key."""
        return UserError(f"{key}={self.value} is not allowed: it must be {self.allowed}")

    def __reduce__(self) -> tuple[type[Self], tuple[str, object, str]]:
        return type(self), (self.name, self.value, self.allowed)


@contextmanager
def told(prefix: str = "") -> Iterator[None]:
    """Turn an InvalidValue raised in the block into a UserError under the config key `prefix` + its name."""
    try:
        yield
    except InvalidValue as error:
        raise error.told(prefix + error.name) from error


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
UNWRITTEN = ("pytorchstreamwriter failed", "unexpected pos")  # torch.save on a full disk
MEMORY = (  # how Python, torch and the system's loader report it
    *("can't allocate memory", "cannot allocate memory", "out of memory", "failed to map segment"),
    *("can't start new thread", "unable to allocate"),
)


def explained(error: Exception) -> UserError | None:
    """Return a UserError if `error` means that memory or disk space ran out; None if it has another cause."""
    if isinstance(error, UserError):
        return None
    said = " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(sign in said.lower() for sign in MEMORY):
        return UserError(
            f"not enough memory: {said[-200:] or type(error).__name__}\nAllow the process more (ulimit -v, the job's "
            "memory limit), or make the work smaller: trainer.batch_size, trainer.eval_batch_size, model sizes"
        )
    full = isinstance(error, OSError) and error.errno in FULL
    if full or any(sign in said.lower() for sign in UNWRITTEN):
        return Outage(f"cannot write: {said}\nMake room in outputs_dir, cache_dir or TMPDIR, then repeat the command")
    return None


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise `InvalidValue` unless `condition` holds. `allowed` completes the sentence 'it must be ...'."""
    if not condition:
        raise InvalidValue(name, value, allowed)


def number(
    name: str,
    value: object,
    allowed: str,
    *,
    above: float = float("-inf"),
    below: float = float("inf"),
    at_least: float = float("-inf"),
    at_most: float = float("inf"),
) -> float:
    """Return `value` as a float if it is a number inside the given bounds, else raise `InvalidValue`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    require(is_number and above < value < below and at_least <= value <= at_most, name, value, allowed)  # type: ignore[operator]
    return float(value)  # type: ignore[arg-type]


def integer(name: str, value: object, *, at_least: int) -> int:
    """Return `value` if it is an int (not a bool) of at least `at_least`, else raise `InvalidValue`."""
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= at_least
    require(ok, name, value, f"an integer >= {at_least}")
    return int(value)  # type: ignore[call-overload, no-any-return]


def integer_or_none(name: str, value: object, *, at_least: int) -> int | None:
    """Return `value` if it is None or an int of at least `at_least`, else raise `InvalidValue`."""
    return None if value is None else integer(name, value, at_least=at_least)


def boolean(name: str, value: object) -> bool:
    """Return `value` if it is a bool, else raise `InvalidValue`."""
    require(isinstance(value, bool), name, value, "true or false")
    return bool(value)


def integers(name: str, values: object, *, at_least: int) -> list[int]:
    """Return `values` if it is a list of ints of at least `at_least`, else raise `InvalidValue`."""
    require(isinstance(values, list | tuple), name, values, f"a list of integers >= {at_least}, such as [{at_least}]")
    return [integer(name, value, at_least=at_least) for value in values]  # type: ignore[attr-defined]


def choice(name: str, value: object, options: tuple[str, ...]) -> str:
    """Return `value` if it is one of `options`, else raise `InvalidValue`."""
    require(value in options, name, value, "one of " + ", ".join(options))
    return str(value)
