"""Run directories: one folder per run, locked while the run is active, and found again by `resume=`."""

import csv
import io
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from filelock import FileLock

from snnexp.config import experiment_of, fingerprint
from snnexp.errors import FULL, Outage, UserError
from snnexp.files import LOCK, odd, read_json, remove_leftovers, replace
from snnexp.lock import try_lock
from snnexp.masking import masked

log = logging.getLogger(__name__)
TYPES = {
    "status": str,
    "fingerprint": str,
    "created": int | float,
    "config": dict,
    "data": dict | None,
}  # of the entries of run.json


class RunDir:
    """A run's folder: `run.json` (status, fingerprint, data), the resolved `config.yaml`, and the files of the task.

    Use `with RunDir.open(...)`. The lock is held until the block or the process ends, even if the process is killed.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path, self._lock = path, lock

    @classmethod
    def open(cls, new: Path, config: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> Self:
        """Return the folder to write to, locked: `new` or, with `resume`, the folder of the run to resume.

        `resume=true` selects the newest unfinished run of the same configuration that no live process holds. If all
        are finished, it selects the newest of them; if there is none, it creates `new`. `data` is the identity of the
        dataset: runs that had the same data come first. Raises UserError if a named folder holds no run, a run of
        another configuration, or a run that is still active, if the run to resume had other data, or if `new` is not
        writable.
        """
        if isinstance(config["resume"], str):
            path = cls.check(config) or new
            if (run := cls.unused(path)) is None:
                raise UserError(f"resume={path}: that run is still active")
        else:
            digest = fingerprint(config)
            found = cls._newest(Path(config["outputs_dir"]), digest, data) if config["resume"] else None
            run = found or cls._create(new, config, digest, data)
        if other := other_data((_run(run.path / "run.json") or {}).get("data"), data):
            run.release()
            raise UserError(
                f"resume={config['resume']}: the run in {run.path} {other}. Bring the old data back, or start a new "
                "run with resume=false"
            )
        return run

    @staticmethod
    def check(config: Mapping[str, Any]) -> Path | None:
        """Return the folder that `resume` names, if any. Raises UserError unless it holds a run of this config."""
        if not isinstance(config["resume"], str):
            return None
        path = Path(config["resume"]).expanduser().absolute()
        record = _run(path / "run.json")
        if record is None:
            raise UserError(f"resume={path}: there is no run in that folder (no run.json)")
        if record["fingerprint"] != fingerprint(config):
            raise UserError(f"resume={path}: that run has another configuration: {_difference(record, config)}")
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Let other processes use the folder."""
        self._lock.release()

    @property
    def finished(self) -> bool:
        return self.status == "FINISHED"

    @property
    def status(self) -> str:
        return str((read_json(self.path / "run.json") or {})["status"])

    @status.setter
    def status(self, status: str) -> None:
        record = read_json(self.path / "run.json") or {}
        write_json(self.path / "run.json", record | {"status": status})

    def result(self) -> dict[str, float]:
        """Return the metrics of a finished run, from `result.json`. Raises UserError if it cannot be read."""
        result = read_json(self.path / "result.json")
        if result is None or not all(isinstance(value, int | float) for value in result.values()):
            raise UserError(f"{self.path / 'result.json'} cannot be read: it holds no metrics")
        return result

    @classmethod
    def _create(cls, new: Path, config: Mapping[str, Any], digest: str, data: Mapping[str, Any] | None) -> Self:
        try:
            new.mkdir(parents=True, exist_ok=True)
            if (there := _run(new / "run.json")) and there["fingerprint"] != digest:
                raise UserError(
                    f"{new} holds the run of another configuration ({_difference(there, config)}): each run needs a "
                    "folder of its own. In a sweep, hydra.sweep.subdir must differ for each job, as "
                    "hydra.sweep.subdir='${hydra.job.num}' does; for one run, choose another hydra.run.dir"
                )
            run = cls.unused(new)
            record = {"status": "RUNNING", "fingerprint": digest, "created": time.time(), "data": data}
            write_json(new / "run.json", record | {"config": config})
        except OSError as error:
            kind = Outage if error.errno in FULL else UserError
            raise kind(f"cannot write to outputs_dir={config['outputs_dir']}: {error.strerror} ({new})") from error
        if run is None:
            raise UserError(f"{new} is in use by another run")
        return run

    @classmethod
    def _newest(cls, outputs: Path, digest: str, data: Mapping[str, Any] | None) -> Self | None:
        """Return the best run to resume, among those with the same data if there are any. Runs that cannot be read or
        locked are skipped, with a warning."""
        same, broken = [], []
        for path in outputs.rglob("run.json"):
            try:
                if (r := _run(path)) and r["fingerprint"] == digest:
                    same.append((not other_data(r.get("data"), data), r["status"] != "FINISHED", r["created"], path))
            except UserError as error:
                broken.append(str(error))
        found = None
        for alike, _, _, path in sorted(same, reverse=True):
            try:
                if alike == max(same)[0] and (found := cls._usable(path.parent)):
                    break
            except UserError as error:
                broken.append(str(error))
        if broken:
            log.warning("resume=true passes over what cannot be used:\n  %s", "\n  ".join(broken))
        return found

    @classmethod
    def _usable(cls, path: Path) -> Self | None:
        """Do the same as `unused`; raise UserError also for a finished run without its result."""
        run = cls.unused(path)
        try:
            if run and run.finished:
                run.result()
        except UserError:
            run.release()  # type: ignore[union-attr]
            raise
        return run

    @classmethod
    def unused(cls, path: Path) -> Self | None:
        """Return the run directory `path`, locked; None if a live process holds the lock or there is no such folder.

        Temporary files that a killed process left in it are removed. Raises UserError if it cannot be locked, or holds
        links, pipes or devices: snnexp makes none, and would write to other places or send what lies there.
        """
        if not path.is_dir():
            return None
        if found := odd(path, hidden=False):
            raise UserError(
                f"{found} is a link, pipe or device, which no run makes: remove it if you trust that folder"
            )
        try:
            lock = try_lock(path / LOCK)
        except OSError as error:  # another user's file
            raise UserError(f"{path / LOCK} cannot be locked: {error.strerror}") from error
        if lock is None:
            return None
        remove_leftovers(path)
        return cls(path, lock)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` as a CSV file, with a column for every key of any row."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    table.writeheader()
    table.writerows(rows)
    replace(path, text.getvalue())


def write_json(path: Path, value: object) -> None:
    """Replace the file `path` atomically by `value` as JSON; passwords of addresses are masked."""
    replace(path, json.dumps(masked(value), indent=2, default=str))


def other_data(then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    """Say how the dataset differs, to complete "the run ..."; "" if it does not, or if one of the two is not known."""
    if not then or not now or then.get("digest") == now["digest"]:
        return ""
    old, new = (f"{' + '.join(str(d.get(s)) for s in ('train', 'val', 'test'))} samples" for d in (then, now))
    differ = f"had {old} ({then.get('digest')}), and have {new} ({now['digest']}) now"
    return f"used other data of the dataset {now['name']}: train + val + test {differ}"


def _run(path: Path) -> dict[str, Any] | None:
    """Return what a run.json holds; None if there is no such file. Raises UserError if it cannot be read."""
    record = read_json(path)
    for name, kind in TYPES.items() if record is not None else ():
        if not isinstance((record or {}).get(name), kind):
            raise UserError(f"{path} cannot be read: it has no valid {name}")
    return record


def _difference(record: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    then, now = experiment_of(record["config"]), experiment_of(masked(config))
    keys = sorted({*then, *now}, key=lambda k: (k.count("."), k))  # those from which others are computed come first
    differ = [k for k in keys if then.get(k) != now.get(k)]
    return "; ".join(f"{k} was {then.get(k)}, is now {now.get(k)}" for k in differ[:3])
