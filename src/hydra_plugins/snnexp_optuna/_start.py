"""Points of the space with which a study starts: trials with given values, ahead of those of the sampler."""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution

from hydra_plugins.snnexp_optuna._space import Dimension, Space
from snnexp.config import quoted
from snnexp.errors import UserError

KEY = "hydra.sweeper.start"


def points_of(given: Any, space: Space, n_trials: int) -> list[dict[str, Any]]:
    """Return {parameter name: value} of each point in `given`, a list of {key: value}.

    Raises UserError unless each point has a value in range for every parameter whose condition holds, and no others.
    """
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(point, Mapping) for point in given):
        raise UserError(f"{KEY}={given} is not allowed: it must be a list of points {{key: value}}, or null")
    if len(given) > n_trials:
        raise UserError(f"{KEY} has {len(given)} points, more than hydra.sweeper.n_trials={n_trials}")
    return [_point(point, space) for point in given]


def enqueue(study: optuna.Study, points: list[dict[str, Any]]) -> None:
    """Let the next trials have the values of these points, without those that the study has tried already."""
    for point in points:
        study.enqueue_trial(point, skip_if_exists=True)


def _point(given: Mapping[str, Any], space: Space) -> dict[str, Any]:
    used: set[str] = set()

    def value(d: Dimension) -> Any:
        if missing := [key for key in d.keys if key not in given]:
            raise UserError(f"{KEY}: the point {dict(given)} has no value for {missing[0]}")
        used.update(d.keys)
        found = value_of(d, [given[key] for key in d.keys])
        if found is None:
            shown = ", ".join(f"{key}={given[key]}" for key in d.keys)
            raise UserError(f"{KEY}: {shown} is not allowed: it is not in the search space, {d.distribution}")
        return found

    params = space.walk(value)
    if more := [str(key) for key in given if key not in used]:
        raise UserError(f"{KEY}: the point {dict(given)} has a value for {more[0]}, which is not sampled there")
    return params


def value_of(d: Dimension, values: list[Any]) -> Any:
    """Return the value of the dimension that stands for these values of its keys; None if it has none."""
    if isinstance(d.distribution, CategoricalDistribution):
        texts = dict(zip(d.keys, (quoted(v) if isinstance(v, list | dict) else str(v) for v in values), strict=True))
        return next((choice for choice in d.distribution.choices if d.values(choice) == texts), None)
    (number,) = values
    plain = isinstance(number, int | float) and not isinstance(number, bool)
    return number if plain and d.distribution._contains(d.distribution.to_internal_repr(number)) else None
