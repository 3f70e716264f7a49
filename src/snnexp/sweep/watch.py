"""The progress of a grid, from what its jobs write: they may run in any process, or on a cluster."""

import logging
import threading
import time
from pathlib import Path
from typing import Self

from snnexp.errors import UserError
from snnexp.sweep import summary
from snnexp.sweep.progress import TICK, Progress, State, drawing, live
from snnexp.trial.place import run_of, told_all

log = logging.getLogger("snnexp.sweep")


class Watch:
    """Show how many of the `wanted` jobs in `folder` have ended while its block runs, and the best by `metric`."""

    def __init__(self, folder: Path, wanted: int, metric: str, lower: bool) -> None:
        self.folder, self.metric, self.lower = folder, metric, lower
        self.progress = Progress(wanted, "jobs")
        self._state, self._end = State(), threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, daemon=True)

    def __enter__(self) -> Self:
        self.progress.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self.look()
        self.progress.__exit__(*error)

    def look(self) -> None:
        """Learn the state of the jobs. Without a terminal, log a line if others have ended."""
        with drawing:  # a fork meanwhile would copy the locks of files and loggers
            before, self._state = self._state, self._found()
            self.progress.update(self._state)
            if self._state.done > before.done and not live():
                log.info("  %s", self.progress.line)

    def _keep_looking(self) -> None:
        while not self._end.wait(TICK):
            self.look()

    def _found(self) -> State:
        failed, times, running = 0, list[float](), list[float]()
        for job, told in told_all(self.folder):
            try:
                result = run_of(job) / "result.json"
                ended = result.stat().st_mtime if result.exists() else None
            except (OSError, UserError):
                continue  # the summary says so
            begun = float(told.get("begun", 0.0))
            if "reason" in told:
                failed += 1
            elif ended is None:
                running.append(time.time() - begun)
            else:
                times.append(ended - begun)
        done = failed + len(times)
        best = self._state.best if done == self._state.done else self._best()
        taken = [seconds for seconds in times if seconds > 0]  # a job that was finished before took no time
        return State(done, {"failed": failed}, best, taken, running)

    def _best(self) -> str:
        group = summary.best(summary.children(self.folder), self.metric, self.lower)
        if not group:
            return ""
        over = f", mean of {len(group)} seeds" if len(group) > 1 else ""
        return f"best {summary.mean(group, self.metric)[0]:.4g}: {group[0].name}{over}"
