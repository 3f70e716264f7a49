"""Earlier starts of a grid: with resume=true, a grid that was killed or extended stays one sweep."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snnexp.config import fingerprint
from snnexp.errors import UserError
from snnexp.files import read_json
from snnexp.journal import Journal
from snnexp.rundir import write_json
from snnexp.sweep.summary import Child, children

GRID = "grid.json"


def digest_of(config: Mapping[str, Any], varied: Sequence[str]) -> str:
    """Return what distinguishes a grid from others: its config and the keys that vary, not their values."""
    return fingerprint({**config, "varied": sorted(varied)})


def starts(outputs: Path, digest: str) -> list[Path]:
    """Return the folders under `outputs` of grids with this digest, oldest first."""
    found = []
    for path in outputs.rglob(GRID):
        try:
            same = (read_json(path) or {}).get("fingerprint") == digest
        except UserError:
            same = False
        found += [path] * same
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime)]


def note(folder: Path, digest: str) -> None:
    """Write the digest of a grid to its folder."""
    write_json(folder / GRID, {"fingerprint": digest})


def key_of(folders: Sequence[Path]) -> str | None:
    """Return the key of the run that these starts share; None if none of them has one."""
    keys = (Journal(folder).state.get("key") for folder in reversed(folders))
    return next((key for key in keys if key), None)


def jobs(folders: Sequence[Path]) -> list[Child]:
    """Return the jobs of all starts; of jobs with the same values, that of the last start."""
    newest = {tuple(child.varied.items()): child for folder in folders for child in children(folder)}
    return list(newest.values())
