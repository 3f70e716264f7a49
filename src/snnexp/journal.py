"""The journal of a run: all it reports, on disk before it is sent, so that no kill and no server failure loses data."""

import json
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snnexp.errors import UserError
from snnexp.files import opened, read_json, write
from snnexp.masking import masked
from snnexp.rundir import write_json

log = logging.getLogger(__name__)
JOURNAL, STATE = "tracking.jsonl", "tracking.json"
TYPES = {"key": str, "uri": str, "experiment": str, "run_id": str | None, "sent": int}  # of the entries of STATE


class Journal:
    """The records of a run, one JSON object per line, and a second file with the state of their transmission.

    Neither holds a password: those of addresses are masked.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir.absolute()
        self.file = self.folder / JOURNAL
        self._logged: set[tuple[str, int]] = set()
        self._read = 0
        self._unreadable: set[int] = set()

    @property
    def state(self) -> dict[str, Any]:
        """key, uri, experiment, run_id and sent (bytes), read from disk: a data-parallel rank may have changed them.

        Empty if nothing was noted. Raises UserError if the file cannot be read.
        """
        path = self.folder / STATE
        state = read_json(path) or {}
        for name, kind in TYPES.items():
            if name in state and not isinstance(state[name], kind):
                raise UserError(f"{path} cannot be read: {name} is {state[name]}")
        if state.get("sent", 0) < 0:
            raise UserError(f"{path} cannot be read: sent is {state['sent']}")
        if not re.fullmatch(r"\w*", state.get("key", "")):
            raise UserError(f"{path} cannot be read: key is {state['key']}")
        return state

    def note(self, **changes: object) -> None:
        """Change entries of the state."""
        write_json(self.folder / STATE, self.state | changes)

    def address(self, uri: str, experiment: str) -> None:
        """Set the store that receives the records. A new store receives all of them."""
        state = self.state
        if (masked(state.get("uri")), state.get("experiment")) != (masked(uri), experiment):
            key = state.get("key", uuid.uuid4().hex)
            self.note(key=key, uri=uri, experiment=experiment, run_id=None, sent=0)

    def mend(self) -> None:
        """Remove an incomplete last line, and a state that cannot be read, and say so.

        If more was sent than there is, the file is not the one that was sent: all of it will be sent.
        """
        with opened(self.file, os.O_RDWR | os.O_CREAT, "rb+") as file:
            data = file.read()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                log.warning("%s: the last line was not written completely; it is removed", self.file)
                file.truncate(whole)
        try:
            if self.state.get("sent", 0) > whole:
                self.note(sent=0)
        except UserError as error:
            log.warning("%s\nThe run is tracked as a new one.", error)
            (self.folder / STATE).unlink()

    def append(self, **record: object) -> None:
        """Write a record, with the current time in milliseconds. Raises OSError if the disk is full.

        A line that a kill or a full disk truncated stays a line of its own, so that what follows can be read.
        """
        line = json.dumps(masked(record) | {"time": time.time_ns() // 1_000_000}, allow_nan=False) + "\n"
        with opened(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, "ab+") as file:
            size = os.fstat(file.fileno()).st_size
            torn = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
            write(file, (b"\n" if torn else b"") + line.encode())

    def batches(self, start: int, size: int = 500) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Yield the records from byte `start` on in batches, each with the byte at which it ends.

        Lines that are no record are left out with a warning, except a last one without its end.
        """
        records, end = [], start
        with opened(self.file, os.O_RDONLY, "rb", buffering=-1) as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                if (record := _record(line)) is not None:
                    records.append(record)
                elif end not in self._unreadable:
                    self._unreadable.add(end)
                    log.warning("%s: a line was not written completely; it is left out", self.file)
                if len(records) == size:
                    yield records, end
                    records = []
        if records:
            yield records, end

    def unsent(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Yield the records that were not sent yet, as `batches` does."""
        with opened(self.file, os.O_RDONLY, "rb") as file:
            os.fsync(file.fileno())  # the store must not know more than the disk, even after a power failure
        return self.batches(self.state["sent"])

    def logged(self) -> set[tuple[str, int]]:
        """Return every (metric, step) in the journal, including those of earlier processes."""
        if self._read < self.file.stat().st_size:
            for records, end in self.batches(self._read):
                self._logged.update((key, r["step"]) for r in records for key in r.get("metrics", ()))
                self._read = end
        return self._logged

    def ended(self) -> bool:
        """Return whether the last process that opened the run has closed it; True if none has opened it."""
        marks = ["end" in r for records, _ in self.batches(0) for r in records if "end" in r or "name" in r]
        return not marks or marks[-1]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("time"), int) else None
