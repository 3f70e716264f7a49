"""The record of a run: its directory, its MLflow run, its tables and figures, and its closing table."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from snnexp.config import DEFAULT_OBJECTIVE, GROUPS, TAGS, flatten
from snnexp.errors import FULL, Outage, Pruned, UserError
from snnexp.files import read_json, replace, replace_by
from snnexp.masking import masked
from snnexp.origin import ORIGIN, resumed, software
from snnexp.rundir import RunDir, write_csv, write_json
from snnexp.session import Session
from snnexp.signals import held
from snnexp.terminal import closing_table, quiet, rows_table
from snnexp.tracking import Status
from snnexp.training import THREADS, Metrics
from snnexp.trial.data import check_data, setting_of
from snnexp.trial.job import Job, label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from snnexp.task.base import Task

Rows = Sequence[Mapping[str, Any]]  # a table: every row has the same keys


class Record:
    """The record of the run of `task` in `folder`. `overrides` is the command line, without Hydra's own keys.

    Picklable, so that a data-parallel rank can report.
    """

    def __init__(self, session: Session, task: Task, folder: Path, overrides: Sequence[str] = ()) -> None:
        self.session, self.task, self.folder, self.overrides = session, task, folder, list(overrides)
        self.new_folder = folder  # the one that Hydra made; with `resume`, `folder` becomes an earlier run's
        self.tracker, self.job = session.tracker, Job.current()
        # A trial's record is its own, even if an earlier trial had the same values.
        self.config = session.config | ({"resume": False} if self._trial else {})

    @property
    def _trial(self) -> bool:
        return self.job is not None and self.job.trial is not None

    def check(self) -> None:
        """Raise UserError if the task does not return the objective, or if results cannot be recorded."""
        gives = list(self.task.objectives(self.session))
        for name in self.session.objectives:
            if name in gives or (name == DEFAULT_OBJECTIVE and not self._trial):
                continue
            none = f"task={self.session.choices['task']} gives no validation metric (objective=null)"
            wanted = f"it must be one of {', '.join(gives)}" if gives else none
            raise UserError(f"objective={name} is not allowed: {wanted}")
        if self.task.recorded:
            RunDir.check(self.config)
            self.tracker.check()

    def tracked(self, work: Callable[[], Metrics]) -> Metrics:
        """Run `work` in a run directory (with `resume`, an earlier one), track it, and save and return its result.

        If the run is already finished, its saved result is returned. Tracker and run directory record how `work` ended;
        after an interruption, the command to resume is printed.
        """
        data = self.session.prepared
        if self.job and data:
            where = Path(self.job.sweep or self.new_folder.parent)
            check_data(self.job, where, setting_of(self.config), data)
        with RunDir.open(self.folder, self.config, data) as opened:
            self.folder = opened.path
            if self.job:
                job = {"overrides": self.overrides, "varied": self._variation, "name": self.name}
                folder = os.path.relpath(opened.path, self.new_folder)  # relative: outputs may be moved
                write_json(self.new_folder / "job.json", job | {"folder": folder})
            if opened.finished:
                return self._close(opened.result(), "this run was already finished (resume=false starts anew)")
            return self._close(self._performed(work, opened), self.tracker.place)

    def _performed(self, work: Callable[[], Metrics], opened: RunDir) -> Metrics:
        status: Status = "FAILED"
        try:
            replace(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(masked(self.config))))
            write_json(self.folder / ORIGIN, self._origin())
            opened.status = "RUNNING"
            parent = self.job.parent if self.job else None
            self.tracker.start(self.folder, self.name, self.parameters, self.tags, parent, self.session.prepared)
            self.artifact("config.yaml", ORIGIN)
            result = work()
            write_json(self.folder / "result.json", result)
            status = "FINISHED"
        except Pruned:
            status = "PRUNED"
            raise
        except KeyboardInterrupt:
            status = "KILLED"
            again = [argument for argument in sys.argv[1:] if not argument.startswith("resume=")]
            again += [] if self._trial else ["resume=true"]
            print(f"\ninterrupted; go on with: {shlex.join(masked(['snnexp', *again]))}", file=sys.stderr)
            raise
        except OSError as error:
            if error.errno not in FULL:
                raise
            advice = "make room, then go on with resume=true"
            raise Outage(f"cannot write to {error.filename or self.folder}: {error.strerror}; {advice}") from error
        finally:
            with held():  # an impatient second Ctrl-C would leave the run open
                with suppress(OSError):  # these fail as well on a full disk, and the first error is the one to report
                    self.tracker.finish(status)
                with suppress(OSError):
                    opened.status = status
        return result

    def _origin(self) -> dict[str, Any]:
        """Return the origin of the run; if it is resumed, its first one, with other code or packages noted."""
        if first := read_json(self.folder / ORIGIN):
            return resumed(first, software())
        known = {"choices": self.session.choices, "overrides": self.overrides, "data": self.session.prepared}
        return known | {"threads": self.config["trainer"]["threads"] or THREADS} | software()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log values at `step`."""
        self.tracker.metrics(values, step)

    def artifact(self, *names: str) -> None:
        """Log files or folders of the run directory."""
        for name in names:
            self.tracker.artifact(self.folder / name)

    def write(self, tables: Mapping[str, Rows], figures: Mapping[str, Figure]) -> None:
        """Write tables/<name>.csv (if it has rows) and figures/<name>.png into the run directory, and log them."""
        for kind, suffix, made in (("tables", "csv", tables), ("figures", "png", figures)):
            filled = {name: content for name, content in made.items() if content}
            if filled:
                (self.folder / kind).mkdir(exist_ok=True)
                for name, content in filled.items():
                    _save(content, self.folder / kind / f"{name}.{suffix}")
                self.artifact(kind)

    def show(self, title: str, rows: Rows) -> None:
        """Print a table, unless other runs share the terminal."""
        if not quiet():
            rows_table(title, rows)

    @property
    def name(self) -> str:
        """The run's name: the values that vary in its sweep, or the options that take part and the seed."""
        if self.job:
            return self.job.name or label(self._variation)
        named = [option for group, option in self.options.items() if group != "task" and option != "none"]
        return "-".join([*(named or [self.task.subject or self.options["task"]]), f"s{self.session.seed}"])

    @cached_property
    def options(self) -> dict[str, str]:
        """The option of each group in TAGS that takes part in the run; a neuron without a surrogate has none."""
        groups = {"task", *self.task.groups}
        if self.config["surrogate"]["_target_"] not in flatten(self.config["neuron"]).values():
            groups.discard("surrogate")
        choices = self.session.choices
        chosen = {group: choices[group] for group in TAGS if group in groups and choices.get(group)}
        if chosen.get("calibration") == "none" and (steps := self.config["calibration"].get("steps")):
            chosen["calibration"] = "+".join(steps)
        return chosen

    @property
    def parameters(self) -> dict[str, Any]:
        """The config, flattened, without the groups that take no part in the run."""
        absent = set(GROUPS) - {"task", "tracking", *self.task.groups}
        return flatten({key: value for key, value in self.config.items() if key not in absent})

    @property
    def tags(self) -> dict[str, str]:
        """The options that take part, the sweep's tags, and the commit of the code (of a wheel: its version)."""
        tags = self.options | (dict(self.job.tags) if self.job else {})
        code = software()["code"]
        if "commit" not in code:
            return tags | {"version": code["version"]}
        changed = {"git_dirty": "true"} if code["diff"] else {}
        return tags | {"git_commit": code["commit"], "mlflow.source.git.commit": code["commit"]} | changed

    @property
    def _variation(self) -> dict[str, str]:
        return self.job.variation(self.overrides) if self.job else {}

    def _close(self, result: Metrics, tracked: str) -> Metrics:
        if not quiet():
            subject = f": {self.options['model']} on {self.options['dataset']}" if "model" in self.options else ""
            title = f"{self.options['task']}{subject}, seed {self.session.seed}"
            shown = {name: value for name, value in result.items() if not name.startswith("val/accuracy_T")}
            closing_table(title, shown, {"results": self.folder, "tracked": tracked})
        return result


def _save(content: Any, path: Path) -> None:
    """Write rows as CSV, a figure as PNG."""
    if isinstance(content, Sequence):
        write_csv(path, content)
    else:
        replace_by(path, partial(content.savefig, format="png", dpi=120))
