"""The record of a sweep as a whole: a run in the tracker, in which its jobs are nested, and a locked folder."""

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from snnexp.build import build
from snnexp.errors import UserError
from snnexp.files import replace
from snnexp.journal import JOURNAL, Journal
from snnexp.origin import software
from snnexp.rundir import RunDir, write_json
from snnexp.sweep.command import command
from snnexp.sweep.summary import Rows, markdown, plain
from snnexp.terminal import rows_table
from snnexp.tracking import MLflow, Status, Tracker

SWEEP = "sweep.json"  # in the folder of a sweep, for task=sweeps
log = logging.getLogger("snnexp.sweep")


class Parent:
    """The parent run of a sweep, as a context manager; closed as FAILED or KILLED if its block raises.

    `listed` is what task=sweeps shows beside state and command: `wanted` (the number of jobs), the name, and a study's
    storage. The runs of a trial's seeds have such a parent as well, which is nested in the run `under`.

    An interrupted and resumed sweep, and several processes that share a sweep, have the same `key` and so are one run.
    It begins without the store if that is unavailable. Raises UserError if the store refuses it.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        folder: Path,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        key: str | None = None,
        under: str | None = None,
        listed: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.folder, self.name, self.params, self.tags, self.key = config, folder, name, params, tags, key
        self.under, self.listed = under, listed
        self.tracker: Tracker = build("tracking", config)
        self._held: RunDir | None = None

    def __enter__(self) -> Self:
        self.tracker.check()
        software()  # read once, for all jobs that are forked from this process
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held = RunDir.unused(self.folder)  # as long as it is locked, task=sync skips this folder
        if self._held is None:
            raise UserError(f"hydra.sweep.dir={self.folder} is in use by another sweep")
        self._note("RUNNING")
        if self.key:
            Journal(self.folder).note(key=self.key)
        self.tracker.start(self.folder, self.name, self.params, self.tags, self.under)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        killed = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.close("FINISHED" if kind is None else "KILLED" if killed else "FAILED")

    def close(self, status: Status) -> None:
        """Close the run and release the folder."""
        self.tracker.finish(status)
        self._note(status)
        if self._held:
            self._held.release()

    def _note(self, status: str) -> None:
        if self.listed is not None:
            more = [] if self.listed["storage"] or any(a.startswith("resume=") for a in sys.argv) else ["resume=true"]
            known = {"status": status, "key": self.key, "objective": self.config["objective"], **self.listed}
            with suppress(OSError):  # of a full disk, which its jobs report
                write_json(self.folder / SWEEP, known | {"command": command([*sys.argv[1:], *more])})

    @property
    def run_id(self) -> str | None:
        """The link to this run for runs that are nested in it."""
        if self._held and self.tracker.run_id is None:
            self.tracker.flush()  # the store may be available again
        return self.tracker.link

    def publish(self, parts: Sequence[str | Rows], *files: str) -> None:
        """Print text and tables, write them to summary.md as Markdown, and log that with the folder's experiments,
        figures and `files`. In the text, a command has backquotes, which are not printed.
        """
        text = "\n".join(f"{part}\n" if isinstance(part, str) else markdown(part) for part in parts)
        replace(self.folder / "summary.md", text)
        self.tracker.tags({"mlflow.note.content": text})
        for name in (*files, "summary.md", "experiment", "figures"):
            if (self.folder / name).exists():
                self.tracker.artifact(self.folder / name)
        print()
        for part in parts:
            if isinstance(part, str):
                print(f"{part.replace('`', '')}\n")
            else:
                rows_table("", plain(part))
        print(f"  results  {self.folder}\n  tracked  {self.tracker.place}")

    def close_child(self, folder: Path | None) -> None:
        """Close the run of a job that died, if its folder is visible on this machine."""
        from snnexp.task.sync import send_kept

        if folder is None or not (folder / JOURNAL).exists() or not isinstance(self.tracker, MLflow):
            return
        try:
            send_kept(folder, folder, build("tracking", self.config))
        except UserError as error:
            log.debug("the run of %s stays open: %s", folder, error)
