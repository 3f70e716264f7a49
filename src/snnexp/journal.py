"""A run's own record of what it reports, from which a tracker sends: it survives a kill, and a server that is away."""

from __future__ import annotations

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
    """A run's records, one JSON object a line, and beside them what is known of the store and what it has received."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir.absolute()
        self.file = self.folder / JOURNAL
        self._logged: set[tuple[str, int]] = set()
        self._read = 0

    @property
    def state(self) -> dict[str, Any]:
        """key, uri, experiment, run_id, sent (bytes). Read anew: a data-parallel rank may have changed it."""
        path = self.folder / STATE
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def note(self, **changes: object) -> None:
        write_json(self.folder / STATE, self.state | changes)

    def address(self, uri: str, experiment: str) -> None:
        """Say where the records go. A store that has not had them yet gets all of them."""
        state = self.state
        if (state.get("uri"), state.get("experiment")) != (uri, experiment):
            key = state.get("key", uuid.uuid4().hex)
            self.note(key=key, uri=uri, experiment=experiment, run_id=None, sent=0)

    def mend(self) -> None:
        """Drop a last line that a killed process did not complete."""
        self.file.touch()
        data = self.file.read_bytes()
        os.truncate(self.file, data.rfind(b"\n") + 1)

    def append(self, **record: object) -> None:
        line = json.dumps(record | {"time": time.time_ns() // 1_000_000}, allow_nan=False) + "\n"
        with self.file.open("ab", buffering=0) as file:  # one write, so that a kill tears at most this line
            file.write(line.encode())

    def batches(self, start: int, size: int = 500) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """The records from byte `start` on, with the byte at which each batch ends."""
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
        with self.file.open("rb") as file:
            os.fsync(file.fileno())  # what the store has must not be forgotten here, even if the power fails
        return self.batches(self.state["sent"])

    def logged(self) -> set[tuple[str, int]]:
        """Every (metric, step) in the journal, whichever process wrote it."""
        if self._read < self.file.stat().st_size:
            for records, end in self.batches(self._read):
                self._logged.update((key, r["step"]) for r in records for key in r.get("metrics", ()))
                self._read = end
        return self._logged

    def ended(self) -> bool:
        """Whether the last process that reported here has closed the run (or none has opened it)."""
        marks = ["end" in r for records, _ in self.batches(0) for r in records if "end" in r or "name" in r]
        return not marks or marks[-1]
