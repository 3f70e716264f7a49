"""The progress of a sweep in one line, which on a terminal renews itself below what the jobs print."""

import os
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from snnexp.terminal import AS_IT_IS

TICK = 1.0  # seconds
# A fork must not happen while another thread draws: the child would wait for the locks of that thread for ever.
drawing = threading.RLock()
os.register_at_fork(before=drawing.acquire, after_in_parent=drawing.release, after_in_child=drawing.release)


def live() -> bool:
    """Return whether the line renews itself. Jobs are then quiet, and otherwise the line follows each job's own."""
    return Console(stderr=True).is_terminal


@dataclass(frozen=True)
class State:
    """How far a sweep is: the number of ended jobs, how many of them were pruned, failed and the like (`counts`), the
    best so far as text, the seconds that ended jobs took, and those for which others have been running.
    """

    done: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    best: str = ""
    times: Sequence[float] = ()
    running: Sequence[float] = ()

    def described(self, wanted: int, unit: str) -> str:
        """Return the state as text, for a sweep of `wanted` jobs, which are called `unit`."""
        counts = {"running": len(self.running), **self.counts}
        some = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        text = f"{self.done} of {wanted} {unit}" + (f" ({some})" if some else "")
        return f"{text}; {self.best}" if self.best else text

    def left(self, wanted: int) -> float | None:
        """Return the seconds that are left if jobs take as long as those that ended; None if it cannot be known."""
        if not self.times:
            return None
        usual = statistics.median(self.times)
        coming = max(0, wanted - self.done - len(self.running)) * usual
        begun = [max(0.0, usual - elapsed) for elapsed in self.running]
        return max([(coming + sum(begun)) / max(1, len(begun)), *begun]) if coming or begun else None


class Progress:
    """The state of a sweep of `wanted` jobs, which are called `unit`.

    As a context manager, it keeps the line on the terminal up to date, if there is one.
    """

    def __init__(self, wanted: int, unit: str, console: Console | None = None) -> None:
        self.wanted, self.unit = wanted, unit
        console = console or Console(stderr=True, **AS_IT_IS)
        self._state, self._since = State(), time.monotonic()
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

    def update(self, state: State) -> None:
        """Show another state."""
        self._state, self._since = state, time.monotonic()
        self._draw()

    @property
    def line(self) -> str:
        """The progress so far, and the time that is probably left."""
        text, seconds = self._state.described(self.wanted, self.unit), self._state.left(self.wanted)
        if seconds is None:
            return text
        return f"{text}; about {duration(max(0.0, seconds - (time.monotonic() - self._since)))} left"

    def _draw(self) -> None:
        if self._thread:
            with drawing:
                self._live.refresh()

    def _keep_drawing(self) -> None:
        while not self._end.wait(TICK):
            self._draw()


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: 45 s, 3 min 20 s, 5 h 10 min."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
