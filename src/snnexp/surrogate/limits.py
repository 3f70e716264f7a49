"""Limits for the parameters of surrogates: SpikingJelly's, which it does not check itself, and ours.

Imports nothing heavy, so that a bad config is rejected at once. The user's own surrogates check themselves.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from snnexp.errors import InvalidValue, boolean, integer, number

LIBRARY = "spikingjelly.activation_based.surrogate."
OURS = "snnexp.surrogate."

# classes in the library's surrogate module that are not surrogates of the Heaviside step
NOT_HEAVISIDE = {
    "PoissonPass": "it draws spikes with probability x, so x must be a rate in [0, 1] and not v - theta",
    "MultiLevelSpikeCount": "it emits counts above 1",
}

_positive = partial(number, allowed="a number > 0", above=0)
_at_least_0 = partial(number, allowed="a number >= 0", at_least=0)
_RULES: dict[tuple[str, str], Callable[[str, object], object]] = {  # SpikingJelly's other parameters are positive
    ("Sine", "alpha"): _positive,
    ("Power", "alpha"): partial(number, allowed="a number between 0 and 1, both excluded", above=0, below=1),
    ("Power", "max_gradient"): _positive,
    ("Dspike", "b"): _positive,
    **{("AdaptiveDspike", name): _positive for name in ("b", "db", "low", "high", "eps")},
    ("AdaptiveDspike", "weights"): partial(integer, at_least=2),
    **{("AdaptiveDspike", name): partial(integer, at_least=1) for name in ("batch", "moves")},
    ("LeakyKReLU", "leak"): _at_least_0,
    ("LogTailedReLU", "alpha"): _at_least_0,
    ("PiecewiseLeakyReLU", "c"): _at_least_0,
    ("QPseudoSpike", "alpha"): partial(number, allowed="a number > 1", above=1),
    # the series has n - 1 terms, so n = 1 would make every gradient zero
    ("SquarewaveFourierSeries", "n"): partial(integer, at_least=2),
}


def check_arguments(target: str, arguments: Mapping[str, object]) -> None:
    """Raise `InvalidValue` for the first argument outside the limits of the surrogate with the import path `target`.

    Call it before the surrogate is built, because a few SpikingJelly classes fail an `assert` first. Keys that start
    with an underscore (Hydra's) and surrogates of other packages are skipped. The name raised is the argument, or
    `_target_` if the class itself is rejected.
    """
    if not target.startswith((LIBRARY, OURS)):
        return
    kind = target.rpartition(".")[2]
    otherwise = _positive if target.startswith(LIBRARY) else None
    if kind in NOT_HEAVISIDE:
        why = f"which {kind} is not: {NOT_HEAVISIDE[kind]}"
        raise InvalidValue("_target_", target, f"a surrogate of the Heaviside step, {why}")
    for name, value in arguments.items():
        if name == "spiking":
            boolean(name, value)
        elif not name.startswith("_") and (rule := _RULES.get((kind, name), otherwise)):
            rule(name, value)


def arguments_of(kind: type[Any]) -> list[str]:
    """Return the names of the arguments of a SpikingJelly surrogate; empty for other classes."""
    return list(inspect.signature(kind).parameters) if f"{kind.__module__}." == LIBRARY else []
