"""Manifests of prepared folders: sizes, times and digests of all files, so that a folder is verified as a whole."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MANIFEST = "manifest.json"
CHEAP = 64 * 2**20  # bytes of a folder whose contents are digested once per process, whatever sizes and times say
_digested: set[Path] = set()  # by this process


class File(NamedTuple):
    """Size in bytes, modification time in ns, and SHA-256 of a file."""

    size: int
    time: int
    digest: str


def seal(folder: Path) -> None:
    """Write the manifest of the files that are in `folder` now."""
    found = _found(folder)
    digests = _digests(folder, found)
    files = {name: File(s.st_size, s.st_mtime_ns, digests[name]) for name, s in found.items()}
    temporary = folder / f".{MANIFEST}.{os.getpid()}"
    temporary.write_text(json.dumps({"files": files}))
    temporary.replace(folder / MANIFEST)


def fault(folder: Path) -> str | None:
    """Return the first difference between `folder` and its manifest; None if there is none.

    Names, sizes and times are compared at each call. Contents are compared where a time has changed (a copy), and once
    per process if the folder is small.
    """
    try:
        known, found = _known(folder), _found(folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"it has no valid {MANIFEST}"
    for name in sorted(known.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in known:
            return f"{name} does not belong to it"
        if not stat.S_ISREG(found[name].st_mode) or not os.access(folder / name, os.R_OK):
            return f"{name} is not a readable file"
        if found[name].st_size != known[name].size:
            return f"{name} has {found[name].st_size} bytes instead of {known[name].size}"
    moved = [name for name in known if found[name].st_mtime_ns != known[name].time]
    small = sum(file.size for file in known.values()) <= CHEAP and folder not in _digested
    for name, digest in _digests(folder, known if small else moved).items():
        if digest != known[name].digest:
            return f"{name} has other contents"
    if moved:
        with suppress(OSError):  # somebody else's folder: its contents are compared again next time
            seal(folder)
    _digested.add(folder)
    return None


def content(folder: Path, *names: str) -> str:
    """Return 16 hex digits that identify the contents of the files `names` of a sealed folder."""
    known = _known(folder)
    return hashlib.sha256("".join(known[name].digest for name in names).encode()).hexdigest()[:16]


def emptied(folder: Path) -> None:
    """Remove the files of `folder` and its manifest; hidden files, such as its lock, stay."""
    for name in (*_found(folder), MANIFEST):
        (folder / name).unlink(missing_ok=True)


def _known(folder: Path) -> dict[str, File]:
    path = folder / MANIFEST
    if not path.is_file():  # opening a pipe would wait forever
        raise FileNotFoundError(path)
    return {name: File(*values) for name, values in json.loads(path.read_text())["files"].items()}


def _found(folder: Path) -> dict[str, os.stat_result]:
    """Return all files below `folder`, links and devices too, but no manifest and no hidden files (locks)."""
    found = {}
    for at, folders, files in os.walk(folder):
        for path in (Path(at, name) for name in (*files, *folders)):
            own = path == folder / MANIFEST or path.name.startswith(".")
            if not own and (path.is_symlink() or path.name in files):
                found[path.relative_to(folder).as_posix()] = path.lstat()
    return found


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    def digest(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    names = list(names)
    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))
