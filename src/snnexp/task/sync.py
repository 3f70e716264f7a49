"""`task=sync`: send to MLflow what runs kept back while it was away, and close runs whose process died."""

from pathlib import Path

from snnexp.errors import UserError
from snnexp.journal import JOURNAL
from snnexp.record import Record
from snnexp.rundir import RunDir
from snnexp.session import Session
from snnexp.task.base import Task
from snnexp.tracking import MLflow, Tracker
from snnexp.training import Metrics


class Sync(Task):
    """Send for the run directory `run_dir`, or (None) for every run under `outputs_dir`.

    `run` raises UserError as `send_kept` does.
    """

    recorded = False

    def __init__(self, run_dir: str | None = None) -> None:
        self.run_dir = None if run_dir is None else Path(run_dir).expanduser()

    def run(self, session: Session, record: Record) -> Metrics:
        result = send_kept(Path(session.config["outputs_dir"]), self.run_dir, session.tracker)
        print(f"sent to MLflow: {result['records']:.0f} records of {result['runs']:.0f} runs")
        return result


def send_kept(outputs: Path, run_dir: Path | None, tracker: Tracker) -> Metrics:
    """Send for `run_dir`, or for every run under `outputs`. Return how many runs and records there were to send.

    Raises UserError for tracking=none, for a folder without tracked results or still in use, and if the store cannot
    be reached.
    """
    if not isinstance(tracker, MLflow):
        raise UserError("task=sync sends to MLflow: it needs tracking=mlflow")
    if run_dir and not (run_dir / JOURNAL).exists():
        raise UserError(f"task.run_dir={run_dir}: nothing was tracked in that folder (no {JOURNAL})")
    runs = records = 0
    for folder in [run_dir] if run_dir else sorted(path.parent for path in outputs.rglob(JOURNAL)):
        run = RunDir.unused(folder)
        if run is None and run_dir:
            raise UserError(f"task.run_dir={run_dir}: that run is still going on; it sends its results itself")
        if run:
            with run:
                count = tracker.send(folder)
            runs, records = runs + bool(count), records + count
    return {"runs": runs, "records": records}
