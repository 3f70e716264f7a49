"""snnexp: train spiking neural networks, convert ANNs into them, calibrate and compare, from YAML groups.

In Python and notebooks: `snnexp.run("surrogate=sine", "trainer.epochs=3")` and `snnexp.sweep("seed=0,1")`, see
`snnexp.api`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snnexp.api import Result, run, sweep

__all__ = ["Result", "run", "sweep"]


def __getattr__(name: str) -> Any:
    """Import what a notebook uses when it is first named, so that `import snnexp` loads nothing."""
    if name in ("run", "sweep"):  # modules that can be called
        return import_module(f"snnexp.{name}")
    if name == "Result":
        return import_module("snnexp.api").Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
