"""How far a study is, for the line that shows the progress of a sweep."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hydra_plugins.snnexp_optuna._stop import ENDED
from snnexp.sweep.progress import State
from snnexp.trial.counted import TAKEN, counts

WORDS = {TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def of_study(study: optuna.Study, trials: Sequence[FrozenTrial], shown: Callable[[Mapping[str, Any]], str]) -> State:
    """Return the state of `study` with these trials; `shown` writes a trial's values."""
    now = datetime.now()
    return State(
        done=sum(t.state.is_finished() and counts(t) for t in trials),
        counts={word: sum(t.state == state for t in trials) for state, word in WORDS.items()},
        best=_best(study, trials, shown),
        times=[
            t.duration.total_seconds()
            for t in trials
            if t.state in ENDED and t.duration and not t.user_attrs.get(TAKEN)
        ],
        running=[(now - t.datetime_start).total_seconds() for t in trials if t.state == TrialState.RUNNING],  # type: ignore[operator]
    )


def _best(study: optuna.Study, trials: Sequence[FrozenTrial], shown: Callable[[Mapping[str, Any]], str]) -> str:
    """Return the best of the trials or, with several objectives, how many are on the Pareto front."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        return ""
    if len(study.directions) > 1:
        return f"{len(study.best_trials)} on the Pareto front"
    sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
    best = max(complete, key=lambda trial: sign * trial.values[0])
    return f"best {best.value:.4g}: {shown(best.params)} (trial {best.number})"
