"""`task=rerun`: a run again, from its own record, in a new folder."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from snnexp.build import build
from snnexp.config import FOLDERS, NOT_THE_EXPERIMENT, flatten
from snnexp.errors import UserError, require, told
from snnexp.masking import is_masked
from snnexp.origin import differences, software
from snnexp.record import Record
from snnexp.recorded import Recorded, recorded
from snnexp.rundir import other_data
from snnexp.session import Session
from snnexp.surrogate.limits import check_arguments
from snnexp.task.base import Task
from snnexp.terminal import rows_table
from snnexp.training import Metrics
from snnexp.trust import check_config

TIMES = ("seconds",)  # parts of the names of metrics that differ between equal runs


class Rerun(Task):
    """Run `run`, the folder or the MLflow id of an earlier run, again: same config, new folder. Where results, data and
    caches are, and the tracking, come from the command. Prints what differs in code, packages and data before the run,
    and in the metrics after it. Raises InvalidValue.

    `run` raises UserError if there is no such record, it names code that is not trusted (docs/security.md), or the
    command sets other values of the experiment.
    """

    recorded = False

    def __init__(self, run: str) -> None:
        require(isinstance(run, str), "run", run, "the folder of a run, or its id in MLflow")
        self.where = run

    def run(self, session: Session, record: Record) -> Metrics:
        for override in record.overrides:
            key = override.split("=", 1)[0].lstrip("+~")
            if key.split(".")[0] not in ("task", *NOT_THE_EXPERIMENT):
                may = ", ".join(("tracking", "resume", *FOLDERS))
                raise UserError(
                    f"{override} is not allowed with task=rerun, which takes the experiment from the run's record: "
                    f"the command may set {may}"
                )
        earlier = recorded(self.where, "task.run", session.tracker)
        again = Session(_config(earlier, session.config), _choices(earlier))
        task = build("task", again.config, Task)
        if not task.recorded:
            raise UserError(f"task.run={self.where}: {task.__class__.__name__} records no run")
        inner = Again(again, task, record.new_folder, earlier)
        inner.check()
        return task.run(again, inner)  # type: ignore[no-any-return]


class Again(Record):
    """The record of a run that repeats the run `earlier`."""

    def __init__(self, session: Session, task: Task, folder: Path, earlier: Recorded) -> None:
        super().__init__(session, task, folder, [f"task=rerun task.run={earlier.place}"])
        self.earlier = earlier

    def tracked(self, work: Callable[[], Metrics]) -> Metrics:
        lines = differences(self.earlier.origin, software())
        if other := other_data(_mapping(self.earlier.origin.get("data")), self.session.prepared):
            lines.append(f"the run {other}")
        for line in lines or ["code, packages and data are those of the run"]:
            print(f"rerun of {self.earlier.place}: {line}", file=sys.stderr)
        result = super().tracked(work)
        self._compare(result)
        return result

    def _compare(self, result: Metrics) -> None:
        """Say which metrics differ from those of the earlier run."""
        then = {k: v for k, v in self.earlier.metrics.items() if k in result and not k.endswith(TIMES)}
        rows = [
            {"metric": key, "then": repr(value), "now": repr(result[key])}
            for key, value in then.items()
            if value != result[key]
        ]
        if rows:
            rows_table("metrics that differ from those of the run", rows)
        else:
            print(f"all {len(then)} metrics equal those of the run" if then else "the run has no metrics to compare")

    @property
    def tags(self) -> dict[str, str]:
        return super().tags | {"rerun_of": self.earlier.place}


def _config(earlier: Recorded, command: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the run, with the places and the tracking of the command. Raises UserError."""
    own = {key: value for key, value in earlier.config.items() if key not in NOT_THE_EXPERIMENT}
    check_config(own, f"task.run={earlier.place}")
    for key, value in flatten(own).items():
        if isinstance(value, str) and is_masked(value):
            raise UserError(
                f"task.run={earlier.place}: the record hides a password in {key}, so it cannot be run again"
            )
    with told("surrogate."):
        check_arguments(own["surrogate"]["_target_"], own["surrogate"])
    old, dataset = earlier.config, dict(own["dataset"])
    if dataset.get("cache") == old["cache_dir"]:
        dataset["cache"] = command["cache_dir"]
    root = Path(str(dataset.get("root")))
    if "root" in dataset and not root.exists() and root.is_relative_to(str(old["data_dir"])):  # on another machine
        dataset["root"] = str(Path(command["data_dir"]) / root.relative_to(str(old["data_dir"])))
    trainer = dict(own["trainer"])
    if trainer.get("threads") is None:  # the rounding of sums depends on it
        trainer["threads"] = earlier.origin.get("threads")
    return own | {"dataset": dataset, "trainer": trainer} | {key: command[key] for key in NOT_THE_EXPERIMENT}


def _choices(earlier: Recorded) -> dict[str, str]:
    """Return the options of the run by group; those of an earlier version are named by their classes."""
    classes = {
        k: str(v["_target_"]).rpartition(".")[2] for k, v in earlier.config.items() if _mapping(v).get("_target_")
    }
    return classes | {str(k): str(v) for k, v in _mapping(earlier.origin.get("choices")).items()}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
