"""The progress of a study in one line, which on a terminal renews itself below what the jobs print."""

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Self

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live
from rich.text import Text

from snnexp.terminal import AS_IT_IS
from snnexp.trial.counted import TAKEN, counts

TICK = 1.0  # seconds
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
# A fork must not happen while another thread draws: the child would wait for the locks of that thread for ever.
_drawing = threading.RLock()
os.register_at_fork(before=_drawing.acquire, after_in_parent=_drawing.release, after_in_child=_drawing.release)


def live() -> bool:
    """Return whether the line renews itself. Jobs are then quiet, and otherwise the line follows each trial's own."""
    return Console(stderr=True).is_terminal


class Progress:
    """The state of `study`, of which `wanted` trials are asked; `shown` writes a trial's values.

    As a context manager, it keeps the line on the terminal up to date, if there is one.
    """

    def __init__(
        self,
        study: optuna.Study,
        wanted: int,
        shown: Callable[[Mapping[str, Any]], str],
        console: Console | None = None,
    ) -> None:
        self.study, self.wanted, self.shown = study, wanted, shown
        console = console or Console(stderr=True, **AS_IT_IS)
        self._state, self._left, self._since = "", None, time.monotonic()  # type: tuple[str, float | None, float]
        self._live = Live(
            console=console, auto_refresh=False, transient=True, redirect_stdout=sys.stdout.isatty(), screen=False
        )
        self._live.get_renderable = lambda: Text(self.line, no_wrap=True, overflow="ellipsis")  # type: ignore[method-assign]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep_drawing, daemon=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._thread:
            self._live.start(refresh=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread:
            self._end.set()
            self._thread.join()
            self._live.stop()

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Learn the state of all trials."""
        self._state, self._left, self._since = self._described(trials), self._remaining(trials), time.monotonic()
        self._draw()

    @property
    def line(self) -> str:
        """The progress so far, and the time that is probably left."""
        if self._left is None:
            return self._state
        left = max(0.0, self._left - (time.monotonic() - self._since))
        return f"{self._state}; about {duration(left)} left"

    def _draw(self) -> None:
        if self._thread:
            with _drawing:
                self._live.refresh()

    def _keep_drawing(self) -> None:
        while not self._end.wait(TICK):
            self._draw()

    def _described(self, trials: Sequence[FrozenTrial]) -> str:
        counts = {state: sum(t.state == state for t in trials) for state in TrialState}
        words = {TrialState.RUNNING: "running", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
        some = [f"{counts[state]} {word}" for state, word in words.items() if counts[state]]
        text = f"{_done(trials)} of {self.wanted} trials" + (f" ({', '.join(some)})" if some else "")
        best = best_of(self.study, trials)
        if len(self.study.directions) > 1:
            return f"{text}; {len(best)} on the Pareto front" if best else text
        return (
            f"{text}; best {best[0].value:.4g}: {self.shown(best[0].params)} (trial {best[0].number})" if best else text
        )

    def _remaining(self, trials: Sequence[FrozenTrial]) -> float | None:
        """Return the seconds that are left if trials take as long as those that ended; None if it cannot be known."""
        times = [
            t.duration.total_seconds() for t in trials if t.state in ENDED and t.duration and TAKEN not in t.user_attrs
        ]
        if not times:
            return None
        usual, now = statistics.median(times), datetime.now()
        running = [(now - t.datetime_start).total_seconds() for t in trials if t.state == TrialState.RUNNING]  # type: ignore[operator]
        coming = max(0, self.wanted - _done(trials) - len(running)) * usual
        begun = [max(0.0, usual - elapsed) for elapsed in running]
        return max([(coming + sum(begun)) / max(1, len(running)), *begun]) if coming or begun else None


def _done(trials: Sequence[FrozenTrial]) -> int:
    """Return the number of ended trials, of which those that are repeated or taken over do not count."""
    return sum(t.state.is_finished() and counts(t) for t in trials)


def best_of(study: optuna.Study, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the best of the trials or, with several objectives, the Pareto front; none if none was completed."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if len(study.directions) > 1:
        return study.best_trials if complete else []
    sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
    return sorted(complete, key=lambda trial: -sign * trial.values[0])[:1]


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: 45 s, 3 min 20 s, 5 h 10 min."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
