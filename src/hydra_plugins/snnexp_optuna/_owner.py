"""Ownership of trials: several parents can share a study, and each can be killed at any time."""

import logging
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import optuna
from optuna.trial import FrozenTrial

from snnexp.files import LOCK
from snnexp.lock import is_locked
from snnexp.trial.outage import impatient
from snnexp.trial.place import lock_of
from snnexp.trial.storage import exclusive

log = logging.getLogger("snnexp.sweep")
JOB, PREFIX = "job", "parent "


def lock_of_trial(trial: FrozenTrial) -> Path:
    """Return the lock of the trial's job; of a trial that had no job, a path where no file is."""
    return Path(trial.user_attrs.get(JOB, {}).get("lock", "/nowhere/of"))


class Owner:
    """This process as a parent of trials. Every `interval` seconds it writes a heartbeat to the storage, for machines
    that cannot see its folder. `rank` is the number of parents that the study had before.
    """

    def __init__(self, study: optuna.Study, url: str, folder: Path, interval: float = 20.0) -> None:
        self.study, self.url, self.folder, self.interval = study, url, folder, interval
        self.id, self.rank, self._beat = uuid.uuid4().hex[:8], 0, 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)
        self._seen: dict[str, tuple[int, float]] = {}

    def __enter__(self) -> Self:
        with exclusive(self.url):
            self.rank = sum(name.startswith(PREFIX) for name in self.study.user_attrs)
            self._say()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()

    def mark(self, number: int) -> dict[str, str]:
        """Return the attribute that marks a trial as ours: its owner and the lock of its job."""
        return {"owner": self.id, "lock": str(lock_of(self.folder, number))}

    def alive(self, trial: FrozenTrial, silence: float) -> bool:
        """Return whether the trial is still active: its job holds its lock, or its parent is alive.

        If the folder of the parent is not visible here, the parent is alive unless its heartbeat stopped `silence`
        seconds ago.
        """
        mark: Mapping[str, Any] = trial.user_attrs.get(JOB, {})
        if mark.get("owner") == self.id or is_locked(Path(mark.get("lock", "/nowhere"))):
            return True
        other = self.study.user_attrs.get(PREFIX + str(mark.get("owner")))
        if other is None or Path(other["folder"]) == self.folder:  # we hold the lock of this folder now
            return False
        if Path(other["folder"]).is_dir() and (seen := is_locked(Path(other["folder"]) / LOCK)) is not None:
            return seen
        return self._recent(str(mark["owner"]), int(other["beat"]), silence)

    def _recent(self, owner: str, beat: int, silence: float) -> bool:
        """Compare heartbeats by our own clock only: the clocks of two machines may differ."""
        now = time.monotonic()
        known, since = self._seen.get(owner, (-1, now))
        if beat != known:
            self._seen[owner] = (beat, now)
            return True
        return now - since < silence

    def _say(self) -> None:
        self.study.set_user_attr(PREFIX + self.id, {"folder": str(self.folder), "beat": self._beat})
        self._beat += 1

    def _keep_beating(self) -> None:
        while not self._end.wait(self.interval):
            try:
                with impatient(), exclusive(self.url):
                    self._say()
            except Exception as error:  # a short failure of the storage must not end the sweep
                log.debug("no heartbeat: %s", error)
