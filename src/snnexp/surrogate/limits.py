"""What the parameters of surrogates may be: SpikingJelly's, which it does not check itself, and ours.

Imports nothing heavy, so a config is refused at once. The user's own surrogates check themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from snnexp.errors import InvalidValue, integer, number, require

LIBRARY = "spikingjelly.activation_based.surrogate."
OURS = "snnexp.surrogate."

# Classes of the library's surrogate module that are no surrogate of the Heaviside step.
NOT_HEAVISIDE = {
    "PoissonPass": "it draws spikes with probability x, so x must be a rate in [0, 1] and not v - theta",
    "MultiLevelSpikeCount": "it emits counts above 1",
}


def _positive(name: str, value: object) -> None:
    number(name, value, "a number > 0", above=0)


def _anything(name: str, value: object) -> None:
    pass


def _at_least_0(name: str, value: object) -> None:
    number(name, value, "a number >= 0", at_least=0)


_RULES: dict[tuple[str, str], Callable[[str, object], object]] = {  # SpikingJelly's other parameters are positive
    ("Sine", "alpha"): _positive,
    ("Power", "alpha"): lambda name, value: number(
        name, value, "a number between 0 and 1, both excluded", above=0, below=1
    ),
    ("Power", "max_gradient"): _positive,
    ("Dspike", "b"): _positive,
    **{("AdaptiveDspike", name): _positive for name in ("b", "db", "low", "high", "eps")},
    ("AdaptiveDspike", "weights"): lambda name, value: integer(name, value, at_least=2),
    **{("AdaptiveDspike", name): lambda name, value: integer(name, value, at_least=1) for name in ("batch", "moves")},
    ("LeakyKReLU", "leak"): _at_least_0,
    ("LogTailedReLU", "alpha"): _at_least_0,
    ("PiecewiseLeakyReLU", "c"): _at_least_0,
    ("QPseudoSpike", "alpha"): lambda name, value: number(name, value, "a number > 1", above=1),
    # The series has n - 1 terms: with n = 1 every gradient is zero.
    ("SquarewaveFourierSeries", "n"): lambda name, value: integer(name, value, at_least=2),
}


def check_arguments(target: str, arguments: Mapping[str, object]) -> None:
    """Raise `InvalidValue` for the first argument that the surrogate named by the path `target` must not have.

    Call it before the surrogate is built: a few classes of SpikingJelly fail an `assert` first. Keys that start with
    an underscore (Hydra's) are skipped, and other packages' surrogates. The name raised is the plain argument, or
    `_target_` where the class itself is refused.
    """
    if not target.startswith((LIBRARY, OURS)):
        return
    kind = target.rpartition(".")[2]
    otherwise = _positive if target.startswith(LIBRARY) else _anything
    if kind in NOT_HEAVISIDE:
        raise InvalidValue(
            "_target_", target, f"a surrogate of the Heaviside step, which {kind} is not: {NOT_HEAVISIDE[kind]}"
        )
    for name, value in arguments.items():
        if name == "spiking":
            require(isinstance(value, bool), name, value, "true or false")
        elif not name.startswith("_"):
            _RULES.get((kind, name), otherwise)(name, value)


def arguments_of(kind: type[Any]) -> list[str]:
    """Names of the arguments of a surrogate of SpikingJelly; empty for other classes."""
    return list(inspect.signature(kind).parameters) if f"{kind.__module__}." == LIBRARY else []
