"""Run directories: one folder per run, locked while the run is active, and found again by `resume=`."""

import csv
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from filelock import FileLock

from snnexp.config import experiment_of, fingerprint
from snnexp.errors import UserError
from snnexp.lock import try_lock

LOCK = ".lock"  # in the folder of a run or a sweep


class RunDir:
    """A run's folder: `run.json` (status and fingerprint), the resolved `config.yaml`, and the files of the task.

    Use `with RunDir.open(...)`. The lock is held until the block or the process ends, even if the process is killed.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path, self._lock = path, lock

    @classmethod
    def open(cls, new: Path, config: Mapping[str, Any]) -> Self:
        """Return the folder to write to, locked: `new` or, with `resume`, the folder of the run to resume.

        `resume=true` selects the newest unfinished run of the same configuration that no live process holds. If all
        are finished, it selects the newest of them; if there is none, it creates `new`. Raises UserError if a named
        folder holds no run, a run of another configuration, or a run that is still active, or if `new` is not writable.
        """
        if isinstance(config["resume"], str):
            path = cls.check(config) or new
            if (run := cls.unused(path)) is None:
                raise UserError(f"resume={path}: that run is still active")
            return run
        digest = fingerprint(config)
        found = cls._newest(Path(config["outputs_dir"]), digest) if config["resume"] else None
        return found or cls._create(new, config, digest)

    @staticmethod
    def check(config: Mapping[str, Any]) -> Path | None:
        """Return the folder that `resume` names, if any. Raises UserError unless it holds a run of this config."""
        if not isinstance(config["resume"], str):
            return None
        path = Path(config["resume"]).expanduser().absolute()
        record = _read(path / "run.json")
        if record is None:
            raise UserError(f"resume={path}: there is no run in that folder (no run.json)")
        if record["fingerprint"] != fingerprint(config):
            raise UserError(f"resume={path}: that run has another configuration: {_difference(record, config)}")
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    @property
    def finished(self) -> bool:
        return self.status == "FINISHED"

    @property
    def status(self) -> str:
        return str((_read(self.path / "run.json") or {})["status"])

    @status.setter
    def status(self, status: str) -> None:
        record = _read(self.path / "run.json") or {}
        write_json(self.path / "run.json", record | {"status": status})

    def result(self) -> dict[str, float]:
        """Return the metrics of a finished run, from `result.json`."""
        return dict(json.loads((self.path / "result.json").read_text()))

    @classmethod
    def _create(cls, new: Path, config: Mapping[str, Any], digest: str) -> Self:
        try:
            new.mkdir(parents=True, exist_ok=True)
            run = cls.unused(new)
            record = {"status": "RUNNING", "fingerprint": digest, "created": time.time(), "config": config}
            write_json(new / "run.json", record)
        except OSError as error:
            raise UserError(f"cannot write to outputs_dir={config['outputs_dir']}: {error.strerror} ({new})") from error
        if run is None:
            raise UserError(f"{new} is in use by another run")
        return run

    @classmethod
    def _newest(cls, outputs: Path, digest: str) -> Self | None:
        paths = [*outputs.glob("runs/*/*/run.json"), *outputs.glob("multirun/*/*/*/run.json")]
        found = [(record, path) for path in paths if (record := _read(path)) and record["fingerprint"] == digest]
        ranked = sorted((record["status"] != "FINISHED", record["created"], path) for record, path in found)
        for _, _, path in reversed(ranked):
            if run := cls.unused(path.parent):
                return run
        return None

    @classmethod
    def unused(cls, path: Path) -> Self | None:
        """Return the run directory `path`, locked; None if a live process holds the lock or there is no such folder."""
        lock = try_lock(path / LOCK) if path.is_dir() else None
        return cls(path, lock) if lock else None


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` as a CSV file, with a column for every key of any row."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        table.writeheader()
        table.writerows(rows)


def write_json(path: Path, value: object) -> None:
    """Replace the file `path` atomically by `value` as JSON."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        json.dump(value, file, indent=2, default=str)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, json.JSONDecodeError):
        return None


def _difference(record: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    then, now = experiment_of(record["config"]), experiment_of(config)
    differ = [k for k in sorted({*then, *now}) if then.get(k) != now.get(k)]
    return "; ".join(f"{k} was {then.get(k)}, is now {now.get(k)}" for k in differ[:3])
