"""The journal of a run: all it reports, on disk before it is sent, so that no kill and no server failure loses data."""

import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snnexp.rundir import write_json

JOURNAL, STATE = "tracking.jsonl", "tracking.json"


class Journal:
    """The records of a run, one JSON object per line, and a second file with the state of their transmission."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir.absolute()
        self.file = self.folder / JOURNAL
        self._logged: set[tuple[str, int]] = set()
        self._read = 0

    @property
    def state(self) -> dict[str, Any]:
        """key, uri, experiment, run_id and sent (bytes), read from disk: a data-parallel rank may have changed them."""
        path = self.folder / STATE
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def note(self, **changes: object) -> None:
        """Change entries of the state."""
        write_json(self.folder / STATE, self.state | changes)

    def address(self, uri: str, experiment: str) -> None:
        """Set the store that receives the records. A new store receives all of them."""
        state = self.state
        if (state.get("uri"), state.get("experiment")) != (uri, experiment):
            key = state.get("key", uuid.uuid4().hex)
            self.note(key=key, uri=uri, experiment=experiment, run_id=None, sent=0)

    def mend(self) -> None:
        """Remove an incomplete last line, left by a killed process."""
        self.file.touch()
        data = self.file.read_bytes()
        os.truncate(self.file, data.rfind(b"\n") + 1)

    def append(self, **record: object) -> None:
        """Write a record, with the current time in milliseconds."""
        line = json.dumps(record | {"time": time.time_ns() // 1_000_000}, allow_nan=False) + "\n"
        with self.file.open("ab", buffering=0) as file:  # a single write, so that a kill truncates at most this line
            file.write(line.encode())

    def batches(self, start: int, size: int = 500) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Yield the records from byte `start` on in batches, each with the byte at which it ends."""
        records, end = [], start
        with self.file.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                records.append(json.loads(line))
                if len(records) == size:
                    yield records, end
                    records = []
        if records:
            yield records, end

    def unsent(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Yield the records that were not sent yet, as `batches` does."""
        with self.file.open("rb") as file:
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
