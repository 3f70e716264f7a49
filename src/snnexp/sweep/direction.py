"""The directions of a sweep's objectives: one rule for grids and studies."""

from typing import Any, Literal

from snnexp.analysis.seeds import kind
from snnexp.config import listed
from snnexp.errors import UserError

Direction = Literal["maximize", "minimize"]


def directions(objective: Any, given: Any) -> list[Direction]:
    """Return a direction for each metric of `objective`: the given one or, for None, that of the metric's kind.

    A metric of no known kind is maximized unless a direction is given. Raises UserError for a wrong number or value of
    `given`, and for a direction that contradicts the metric's kind.
    """
    metrics, wanted = listed(objective), listed(given) or [None] * len(listed(objective))
    if wrong := [d for d in wanted if d not in ("maximize", "minimize", None)]:
        allowed = "maximize, minimize or null (by the metric)"
        raise UserError(f"hydra.sweeper.direction={wrong[0]} is not allowed: it must be {allowed}")
    if len(wanted) != len(metrics):
        count = f"has {len(wanted)} values for {len(metrics)} metrics in objective"
        raise UserError(f"hydra.sweeper.direction {count}: give one for each")
    for metric, direction in zip(metrics, wanted, strict=True):
        if direction and direction != (kind(metric) or direction):
            raise UserError(
                f"hydra.sweeper.direction={direction} is not allowed: the better {metric} is the "
                f"{'lower' if kind(metric) == 'minimize' else 'higher'} one. Leave it out, or set {kind(metric)}"
            )
    return [direction or kind(metric) or "maximize" for metric, direction in zip(metrics, wanted, strict=True)]
