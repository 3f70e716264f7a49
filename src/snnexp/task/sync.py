"""`task=sync`: send to MLflow what runs kept back while it was away, and close runs whose process died."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from snnexp.errors import UserError
from snnexp.journal import JOURNAL
from snnexp.rundir import RunDir
from snnexp.tracking import MLflow, Tracker

if TYPE_CHECKING:
    from snnexp.session import Session


def sync(session: Session, run_dir: str | None = None) -> dict[str, float]:
    """Send for `run_dir`, or for every run under `outputs_dir`. Raises UserError as `send_kept` does."""
    folder = None if run_dir is None else Path(run_dir).expanduser()
    result = send_kept(Path(session.config["outputs_dir"]), folder, session.tracker)
    print(f"sent to MLflow: {result['records']:.0f} records of {result['runs']:.0f} runs")
    return result


def send_kept(outputs: Path, run_dir: Path | None, tracker: Tracker) -> dict[str, float]:
    """Send for `run_dir`, or for every run under `outputs`; returns how many runs and records there were to send.

    Raises UserError for tracking=none, for a folder without tracked results or still in use, and if the store cannot
    be reached.
    """
    if not isinstance(tracker, MLflow):
        raise UserError("task=sync sends to MLflow: it needs tracking=mlflow")
    if run_dir and not (run_dir / JOURNAL).exists():
        raise UserError(f"run_dir={run_dir}: nothing was tracked in that folder (no {JOURNAL})")
    runs = records = 0
    for folder in [run_dir] if run_dir else sorted(path.parent for path in outputs.rglob(JOURNAL)):
        run = RunDir.unused(folder)
        if run is None and run_dir:
            raise UserError(f"run_dir={run_dir}: that run is still going on; it sends by itself")
        if run:
            with run:
                count = tracker.send(folder)
            runs, records = runs + bool(count), records + count
    return {"runs": runs, "records": records}
