"""Who runs a trial, and whether he is still there: several parents share a study, and any may be killed."""

from __future__ import annotations

import fcntl
import logging
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hydra_plugins.snnexp_optuna._job import LOCK
from snnexp.trial.storage import exclusive

log = logging.getLogger("snnexp.sweep")
JOB, PREFIX = "job", "parent "


class Owner:
    """This parent in the study: a sign of life in the storage every `interval` seconds, for machines that do not see
    its folder. `rank` is how many parents the study had before.
    """

    def __init__(self, study: optuna.Study, url: str, folder: Path, interval: float = 20.0) -> None:
        self.study, self.url, self.folder, self.interval = study, url, folder, interval
        self.id, self.rank, self._beat = uuid.uuid4().hex[:8], 0, 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)
        self._seen: dict[str, tuple[int, float]] = {}

    def __enter__(self) -> Owner:
        with exclusive(self.url):
            self.rank = sum(name.startswith(PREFIX) for name in self.study.user_attrs)
            self._say()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._end.set()

    def mark(self, number: int) -> dict[str, str]:
        """What a trial of this parent carries: its owner, and its folder."""
        return {"owner": self.id, "folder": str(self.folder / str(number))}

    def alive(self, trial: FrozenTrial, silence: float) -> bool:
        """Whether the trial is still worked on: its job holds a lock in its folder, or its parent is alive.

        A folder that cannot be seen from here is judged by its parent's signs of life.
        """
        mark: Mapping[str, Any] = trial.user_attrs.get(JOB, {})
        if mark.get("owner") == self.id or held(Path(mark.get("folder", "/nowhere")) / LOCK):
            return True
        other = self.study.user_attrs.get(PREFIX + str(mark.get("owner")))
        if other is None or Path(other["folder"]) == self.folder:  # we hold this folder now
            return False
        if Path(other["folder"]).is_dir() and (seen := held(Path(other["folder"]) / ".lock")) is not None:
            return seen
        return self._recent(str(mark["owner"]), int(other["beat"]), silence)

    def _recent(self, owner: str, beat: int, silence: float) -> bool:
        """By our own clock: those of two machines need not agree."""
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
                with exclusive(self.url):
                    self._say()
            except Exception as error:  # a storage that is away for a moment must not end the sweep
                log.debug("no sign of life: %s", error)


def held(path: Path) -> bool | None:
    """Whether a live process holds the lock of the file `path`; None if that cannot be seen from here."""
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:  # another user's, or a file system without locks
        return None
    return False
