"""Places of the jobs of a sweep: each writes its folder to that of the sweep, whatever hydra.sweep.subdir is."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from snnexp.errors import UserError
from snnexp.files import read_json
from snnexp.rundir import write_json

PLACES = ".jobs"


def lock_of(sweep: Path, number: int) -> Path:
    """Return the file that job `number` keeps locked while it runs."""
    return sweep / PLACES / f"{number}.lock"


def tell(sweep: Path, number: int, folder: Path, **more: Any) -> None:
    """Write the folder of job `number`, relative to that of the sweep, because outputs may be moved.

    The seeds of a trial are jobs of one number, so the folders of the earlier ones are kept.
    """
    path, name = sweep / PLACES / f"{number}.json", os.path.relpath(folder, sweep)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = read_json(path) or {}
    before = dict.fromkeys([*known.get("earlier", []), *([known["folder"]] if known else [])])
    write_json(path, {"folder": name, "earlier": [one for one in before if one != name], **more})


def told(lock: Path) -> Path | None:
    """Return the folder of the job that has this lock; None if it wrote none, or on another machine."""
    known = read_json(lock.with_suffix(".json"))
    return lock.parents[1] / str(known["folder"]) if known else None


def run_of(job: Path) -> Path:
    """Return the folder of the run of a job; with resume=true, it may be that of a job of an earlier sweep."""
    return job / str((read_json(job / "job.json") or {}).get("folder", "."))


def told_all(sweep: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the folder of each job of the sweep, and all that it wrote.

    Sweeps of earlier versions wrote nothing; their jobs lie directly in the folder of the sweep.
    """
    seen = set()
    for path in sorted(sweep.glob(f"{PLACES}/*.json")):
        try:
            known = read_json(path) or {}
        except UserError:
            known = {}
        number = {"number": int(path.stem) if path.stem.isdigit() else 0}
        for earlier in known.get("earlier", []):  # the other seeds of a trial
            seen.add((sweep / str(earlier)).resolve())
            yield sweep / str(earlier), number
        folder = sweep / str(known.get("folder", path.stem))
        seen.add(folder.resolve())
        yield folder, known | number
    for path in sweep.glob("*/job.json"):
        if path.parent.resolve() not in seen:
            yield path.parent, {"number": int(path.parent.name) if path.parent.name.isdigit() else 0}
