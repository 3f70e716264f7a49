"""`task=sync`: send to MLflow what runs kept back while it was away, and close runs whose process died."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snnexp.errors import UserError
from snnexp.journal import JOURNAL
from snnexp.tracking import MLflow, Tracker


def sync(outputs: str | Path, run_dir: str | Path | None, tracker: Tracker) -> dict[str, float]:
    """Send for `run_dir`, or for every run under `outputs`; returns how many runs and records were sent.

    Raises UserError for tracking=none, for a folder without tracked results or still in use, and if the store cannot
    be reached.
    """
    if not isinstance(tracker, MLflow):
        raise UserError("task=sync sends to MLflow: it needs tracking=mlflow")
    if run_dir is not None and not (Path(run_dir) / JOURNAL).exists():
        raise UserError(f"run_dir={run_dir}: nothing was tracked in that folder (no {JOURNAL})")
    folders = [Path(run_dir)] if run_dir else sorted(path.parent for path in Path(outputs).rglob(JOURNAL))
    runs = records = 0
    for folder in folders:
        with _free(folder) as free:
            if not free and run_dir:
                raise UserError(f"run_dir={run_dir}: that run is still going on; it sends by itself")
            count = tracker.send(folder) if free else 0
        runs, records = runs + bool(count), records + count
    return {"runs": runs, "records": records}


@contextmanager
def _free(folder: Path) -> Iterator[bool]:
    """Whether no process works in the run directory; holds its lock meanwhile."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
