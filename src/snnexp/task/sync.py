"""`task=sync`: send records to MLflow that were kept while it was unavailable, and close runs whose process died."""

from pathlib import Path

from sqlalchemy.exc import ArgumentError

from snnexp.errors import UserError
from snnexp.journal import JOURNAL
from snnexp.lock import Held
from snnexp.record import Record
from snnexp.rundir import RunDir
from snnexp.session import Session
from snnexp.task.base import Task
from snnexp.tracking import MLflow, Tracker, Unreachable
from snnexp.training import Metrics


class Sync(Task):
    """Send the unsent records of the run directory `run_dir`, or (None) of every run under `outputs_dir`.

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
    """Send the unsent records of `run_dir`, or of all runs under `outputs`. Return the numbers of runs and records.

    Raises UserError for tracking=none, for a folder without tracked results or still in use, if the store cannot be
    reached, and at the end if runs were skipped because they could not be sent.
    """
    if not isinstance(tracker, MLflow):
        raise UserError("task=sync sends to MLflow: it needs tracking=mlflow")
    if run_dir and not (run_dir / JOURNAL).exists():
        raise UserError(f"task.run_dir={run_dir}: nothing was tracked in that folder (no {JOURNAL})")
    if run_dir:
        count = _sent(run_dir, tracker)
        if count is None:
            raise UserError(f"task.run_dir={run_dir}: that run is still going on; it sends its results itself")
        return {"runs": bool(count), "records": count}
    runs, records, skipped, stopped = 0, 0, list[str](), None
    for folder in sorted(path.parent for path in outputs.rglob(JOURNAL)):
        try:
            count = _sent(folder, tracker) or 0
            runs, records = runs + bool(count), records + count
        except UserError as error:
            if stopped := _of_the_store(error, tracker):
                break
            skipped.append(str(error) if str(folder) in str(error) else f"{folder}: {error}")
    if skipped or stopped:
        lines = [f"sent to MLflow: {records} records of {runs} runs"]
        lines += [f"could not be sent ({len(skipped)}):", *(f"  {each}" for each in skipped)] if skipped else []
        lines += [f"no other run was tried, because of the store: {stopped}"] if stopped else []
        raise UserError("\n".join(lines))
    return {"runs": runs, "records": records}


def _of_the_store(error: UserError, tracker: MLflow) -> UserError | None:
    """Return the error of the store, which stands for every run; None if `error` is about one run."""
    if isinstance(error, Held):
        return error
    try:
        if isinstance(error, Unreachable):
            tracker.probe()
    except UserError as unreachable:
        return unreachable
    return None


def _sent(folder: Path, tracker: MLflow) -> int | None:
    """Send the unsent records of one run; return their number, or None if the run is active. Raises UserError."""
    try:
        run = RunDir.unused(folder)
        if run is None:
            return None
        with run:
            return tracker.send(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror} ({error.filename})") from error
    except (ValueError, ArgumentError) as error:  # an address or a number in its state that no run of ours has
        raise UserError(f"{folder} cannot be read: {error}") from error
