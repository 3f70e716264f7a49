"""`task=diff`: the configuration, the versions and the metrics of runs side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from snnexp.config import experiment_of
from snnexp.dataset.prepare import digest
from snnexp.errors import require
from snnexp.masking import masked
from snnexp.origin import described
from snnexp.record import Record
from snnexp.recorded import Recorded, recorded
from snnexp.session import Session
from snnexp.task.base import Task
from snnexp.terminal import rows_table
from snnexp.training import Metrics


class Diff(Task):
    """Print tables of the runs `runs`, two or more folders or MLflow ids: what differs in their configuration, their
    data and the versions of code and packages, and then all metrics. Raises InvalidValue.

    `run` raises UserError if there is no record of one of them.
    """

    recorded = False

    def __init__(self, runs: Sequence[str]) -> None:
        several = isinstance(runs, list) and len(runs) > 1 and all(isinstance(run, str) for run in runs)
        require(several, "runs", runs, "a list of two or more folders or MLflow ids of runs")
        self.runs = runs

    def run(self, session: Session, record: Record) -> Metrics:
        found = [recorded(run, "task.runs", session.tracker) for run in self.runs]
        letters = _letters(found)
        for letter, run in zip(letters, found, strict=True):
            print(f"{letter}  {run.place}")
        configs = _differing([experiment_of(run.config) for run in found])
        versions = _differing([_versions(run) for run in found])
        for title, rows in (("configuration", configs), ("code, packages and data", versions)):
            if rows:
                rows_table(f"{title}: what differs", rows)
            elif rows is versions and (unknown := [a for a, run in zip(letters, found, strict=True) if not run.origin]):
                print(f"{title}: not recorded for {', '.join(unknown)}")
            else:
                print(f"{title}: no difference")
        rows_table("metrics", _table([run.metrics for run in found]))
        return {}


def _versions(run: Recorded) -> dict[str, str]:
    """Return the versions, the uncommitted changes and the digest of the data; {} for runs of earlier versions."""
    data, code = run.origin.get("data"), run.origin.get("code")
    changes = code.get("diff") if isinstance(code, Mapping) else None
    known = {"data": data.get("digest") if isinstance(data, Mapping) else None}
    known |= {"uncommitted changes": digest(diff=str(changes)) if changes else None}
    return described(run.origin) | {key: str(value) for key, value in known.items() if value}


def _differing(columns: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [row for row in _table(columns) if len(set(list(row.values())[1:])) > 1]


def _table(columns: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return a row for each key of any column, with full precision; "-" where a column lacks it."""
    keys = dict.fromkeys(key for column in columns for key in column)
    shown = [{key: str(masked(value)) for key, value in column.items()} for column in columns]
    return [{"": key} | {a: c.get(key, "-") for a, c in zip(_letters(columns), shown, strict=True)} for key in keys]


def _letters(columns: Sequence[Any]) -> list[str]:
    return [f"run {number}" for number in range(1, len(columns) + 1)]
