"""Run directories: one folder per run, locked while it is written, and found again by `resume=`."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from snnexp.config import experiment_of, fingerprint
from snnexp.errors import UserError


class RunDir:
    """A run's folder: `run.json` (status and fingerprint), the resolved `config.yaml`, and whatever the task writes.

    Use `with RunDir.open(...)`. The lock is held until the block ends, or the process, however it ends.
    """

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path, self._lock = path, lock

    @classmethod
    def open(cls, new: Path, config: Mapping[str, Any]) -> RunDir:
        """The folder to write to: `new`, or, with `resume`, the one of the run to take up.

        `resume=true` takes the newest run of the same configuration that is not finished and that no live process
        holds; if all are finished, the newest of them; if there is none, it starts at `new`. Raises UserError if a
        named folder is no run, is of another configuration or still running, or if `new` cannot be written.
        """
        if isinstance(config["resume"], str):
            path = cls.check(config) or new
            if (run := cls.unused(path)) is None:
                raise UserError(f"resume={path}: that run is still going on")
            return run
        digest = fingerprint(config)
        found = cls._newest(Path(config["outputs_dir"]), digest) if config["resume"] else None
        return found or cls._create(new, config, digest)

    @staticmethod
    def check(config: Mapping[str, Any]) -> Path | None:
        """The folder that `resume` names, if it names one. Raises UserError unless it holds a run of this config."""
        if not isinstance(config["resume"], str):
            return None
        path = Path(config["resume"]).expanduser().absolute()
        record = _read(path / "run.json")
        if record is None:
            raise UserError(f"resume={path}: there is no run in that folder (no run.json)")
        if record["fingerprint"] != fingerprint(config):
            raise UserError(f"resume={path}: that run has another configuration: {_difference(record, config)}")
        return path

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()

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
        """What `result.json` holds of a finished run."""
        return dict(json.loads((self.path / "result.json").read_text()))

    @classmethod
    def _create(cls, new: Path, config: Mapping[str, Any], digest: str) -> RunDir:
        try:
            new.mkdir(parents=True, exist_ok=True)
            run = cls.unused(new)
            write_json(
                new / "run.json", {"status": "RUNNING", "fingerprint": digest, "created": time.time(), "config": config}
            )
        except OSError as error:
            raise UserError(f"cannot write to outputs_dir={config['outputs_dir']}: {error.strerror} ({new})") from error
        if run is None:
            raise UserError(f"{new} is in use by another run")
        return run

    @classmethod
    def _newest(cls, outputs: Path, digest: str) -> RunDir | None:
        paths = [*outputs.glob("runs/*/*/run.json"), *outputs.glob("multirun/*/*/*/run.json")]
        same = [
            (r["status"] != "FINISHED", r["created"], p)
            for p in paths
            if (r := _read(p)) and r["fingerprint"] == digest
        ]
        for _, _, path in sorted(same, reverse=True):
            if run := cls.unused(path.parent):
                return run
        return None

    @classmethod
    def unused(cls, path: Path) -> RunDir | None:
        """The run directory `path`, locked; None if a live process has the lock or there is no such folder."""
        held = lock(path) if path.is_dir() else None
        return cls(path, held) if held else None


def lock(folder: Path) -> IO[str] | None:
    """The folder's lock, held until it is closed; None if a live process has it."""
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def write_json(path: Path, value: object) -> None:
    """Replace `path` with `value` as JSON, whole or not at all."""
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
