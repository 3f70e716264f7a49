"""Reasons to begin no further trial: what the sweep was told to reach, to wait for, or to spend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from snnexp.errors import UserError, integer, number
from snnexp.trial.counted import counts

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Stop:
    """When a study ends before it has `n_trials`. It is asked with all trials, so a restart or another process agrees.

    `target` has a value per objective (None: any), `patience` is a number of trials, and `hours` the time of all
    its trials together, without those that failed (a trial whose sweep was killed has no known end).
    """

    target: Sequence[float | None] | None
    patience: int | None
    hours: float | None
    directions: Sequence[StudyDirection]

    def reason(self, trials: Sequence[FrozenTrial]) -> str | None:
        """Return why no trial should begin any more; None if one may."""
        return self._reached(trials) or self._stuck(trials) or self._spent(trials)

    def _reached(self, trials: Sequence[FrozenTrial]) -> str | None:
        if self.target is None:
            return None
        for trial in trials:
            if trial.state == TrialState.COMPLETE and all(map(self._good, trial.values, self.target, self.directions)):
                values = ", ".join(f"{value:.4g}" for value in trial.values)
                return f"trial {trial.number} has reached hydra.sweeper.target={_shown(self.target)} with {values}"
        return None

    @staticmethod
    def _good(value: float, wanted: float | None, direction: StudyDirection) -> bool:
        return wanted is None or (value >= wanted if direction == StudyDirection.MAXIMIZE else value <= wanted)

    def _stuck(self, trials: Sequence[FrozenTrial]) -> str | None:
        if self.patience is None:
            return None
        since, last = 0, None
        best: list[list[float]] = []  # the values that no other dominates
        for trial in sorted((t for t in trials if t.state in ENDED), key=lambda t: (t.datetime_complete, t.number)):
            values = [
                v if d == StudyDirection.MAXIMIZE else -v
                for v, d in zip(trial.values or (), self.directions, strict=False)
            ]
            complete = trial.state == TrialState.COMPLETE
            if complete and not any(all(map(float.__ge__, other, values)) for other in best):
                best = [*(b for b in best if not all(map(float.__ge__, values, b))), values]
                since, last = 0, trial.number
            elif last is not None:
                since += counts(trial)
        if since < self.patience:
            return None
        return f"none of {since} trials was better than trial {last} (hydra.sweeper.patience={self.patience})"

    def _spent(self, trials: Sequence[FrozenTrial]) -> str | None:
        if self.hours is None:
            return None
        now, counted = datetime.now(), (*ENDED, TrialState.RUNNING)
        times = [(t.datetime_complete or now) - t.datetime_start for t in trials if t.state in counted]  # type: ignore[operator]
        hours = sum(time.total_seconds() for time in times) / 3600
        if hours < self.hours:
            return None
        return f"the trials have taken {hours:.3g} hours together (hydra.sweeper.hours={self.hours:g})"


def stop_of(settings: Mapping[str, Any], directions: Sequence[StudyDirection]) -> Stop:
    """Return the conditions that the settings give. Raises UserError for values that are not allowed."""
    target, patience, hours = (settings[name] for name in ("target", "patience", "hours"))
    try:
        if patience is not None:
            integer("patience", patience, at_least=1)
        if hours is not None:
            number("hours", hours, "a number of hours > 0, or null", above=0)
        targets = None if target is None else target if isinstance(target, list) else [target]
        for value in targets or ():
            if value is not None:
                number("target", value, "a value of the objective (a list of one for each), or null")
    except ValueError as error:
        raise UserError(f"hydra.sweeper.{error}") from error
    if targets is not None and (len(targets) != len(directions) or targets.count(None) == len(targets)):
        raise UserError(
            f"hydra.sweeper.target={_shown(targets)} is not allowed: it must be a value for each of the "
            f"{len(directions)} objectives (null: any)"
        )
    return Stop(targets, patience, hours, directions)


def _shown(targets: Sequence[float | None]) -> str:
    shown = ["null" if value is None else f"{value:g}" for value in targets]
    return shown[0] if len(shown) == 1 else f"[{','.join(shown)}]"
