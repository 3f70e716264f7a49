"""The record of a sweep as a whole: a run of the tracker that its jobs are nested in, and a folder that is locked."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from snnexp.build import build
from snnexp.errors import UserError
from snnexp.journal import JOURNAL, Journal
from snnexp.rundir import lock
from snnexp.tracking import MLflow, Status, Tracker

log = logging.getLogger("snnexp.sweep")


class Parent:
    """Use with `with`: opened when the sweep begins, closed as FAILED or KILLED if it ends with an exception.

    `key` is the same for all parts of a sweep that was interrupted, or that several processes share: they then are
    one run. Raises UserError if results could not be sent.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        folder: Path,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        key: str | None = None,
    ) -> None:
        self.config, self.folder, self.name, self.params, self.tags, self.key = config, folder, name, params, tags, key
        self.tracker: Tracker = build("tracking", config)
        self._lock: IO[str] | None = None

    def __enter__(self) -> Parent:
        self.tracker.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self.folder)  # task=sync leaves us alone while we hold it
        if self._lock is None:
            raise UserError(f"hydra.sweep.dir={self.folder} is in use by another sweep")
        if self.key:
            Journal(self.folder).note(key=self.key)
        self.tracker.start(self.folder, self.name, self.params, self.tags)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        killed = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.close("FINISHED" if kind is None else "KILLED" if killed else "FAILED")

    def close(self, status: Status) -> None:
        self.tracker.finish(status)
        if self._lock:
            self._lock.close()

    @property
    def run_id(self) -> str | None:
        return self.tracker.run_id

    def close_child(self, folder: Path | None) -> None:
        """Close the record of a job that died, as far as it can be seen from here."""
        from snnexp.task.sync import send_kept

        if folder is None or not (folder / JOURNAL).exists() or not isinstance(self.tracker, MLflow):
            return
        try:
            send_kept(folder, folder, build("tracking", self.config))
        except UserError as error:
            log.debug("the record of %s stays open: %s", folder, error)
