"""Pruning by several objectives, for which Optuna has no pruner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from snnexp.errors import integer

EPOCH = "epoch "  # attribute of a trial of several objectives: their values after that epoch


class Dominated(optuna.pruners.BasePruner):
    """Prune a trial that `by` others dominate at the same epoch, but none before it has had `warmup` epochs.

    A trial dominates another if it is better in one objective and worse in none. Raises InvalidValue.
    """

    def __init__(self, by: int = 3, warmup: int = 1) -> None:
        self.by, self.warmup = integer("by", by, at_least=1), integer("warmup", warmup, at_least=0)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial should end after its last epoch."""
        if not (own := by_epoch(trial)):
            return False
        last = max(own)
        others = [by_epoch(t).get(last) for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        better = sum(other is not None and dominates(other, own[last], study.directions) for other in others)
        return last > self.warmup and better >= self.by


def by_epoch(trial: FrozenTrial) -> dict[int, list[float]]:
    """Return the objectives that the trial has reported, by epoch (from 1)."""
    several: Mapping[str, list[float]] = {k: v for k, v in trial.user_attrs.items() if k.startswith(EPOCH)}
    one = {epoch: [value] for epoch, value in trial.intermediate_values.items()}
    return one | {int(name.removeprefix(EPOCH)): values for name, values in several.items()}


def dominates(one: Sequence[float], other: Sequence[float], directions: Sequence[StudyDirection]) -> bool:
    """Return whether `one` is better than `other` in one objective and worse in none. A value nan is the worst."""
    signs = [1 if direction == StudyDirection.MAXIMIZE else -1 for direction in directions]
    ours, theirs = ([_rank(sign * value) for sign, value in zip(signs, values, strict=True)] for values in (one, other))
    return ours != theirs and all(a >= b for a, b in zip(ours, theirs, strict=True))


def _rank(value: float) -> float:
    return value if value == value else float("-inf")
