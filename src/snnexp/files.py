"""Files in folders that other people may write to: links are not followed, and a file is replaced as a whole."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from snnexp.errors import UserError

LOCK = ".lock"  # in the folder of a run or a sweep
TEMPORARY = re.compile(r".+\.tmp\d+")  # names of files that are renamed when they are complete


def opened(path: Path, flags: int, mode: str, buffering: int = 0) -> BinaryIO:
    """Open a regular file without following a link or waiting for a pipe. Raises OSError for anything else."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return os.fdopen(descriptor, mode, buffering=buffering)  # type: ignore[return-value]


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in the file `path`; None if there is no such file. Raises UserError for other content."""
    try:
        with opened(path, os.O_RDONLY, "rb") as file:
            value = json.loads(file.read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:  # not JSON, not UTF-8
        said = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read: {said}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} cannot be read: it holds no JSON object")
    return value


def replace(path: Path, data: str | bytes | memoryview) -> None:
    """Replace the file `path` by `data`, atomically; a link at `path` is itself replaced. Raises OSError."""
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        with opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, "wb") as file:
            write(file, data.encode() if isinstance(data, str) else data)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_by(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Replace the file `path`, as `replace` does, by what `save` writes into the binary file that it is given."""
    buffer = io.BytesIO()
    save(buffer)
    replace(path, buffer.getbuffer())


def write(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of `data` to an unbuffered file, whose `write` may write only a part of it. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def odd(path: Path, *, hidden: bool = True) -> Path | None:
    """Return the first link, pipe or device at or below `path`; None if there are only regular files and folders.

    Without `hidden`, hidden folders are not entered: submitit keeps links in its hidden folder.
    """
    below = _below(path, lambda folder: not hidden and folder.name.startswith("."))
    return next((each for each in (path, *below) if not _plain(each)), None)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files below `folder` that a killed process left. The caller holds the lock of the folder.

    Folders with a lock of their own (the jobs of a sweep, which may be active) and hidden ones are not entered.
    """
    for path in _below(folder, lambda inner: inner.name.startswith(".") or (inner / LOCK).exists()):
        if TEMPORARY.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def _below(folder: Path, skip: Callable[[Path], bool]) -> Iterator[Path]:
    for name, folders, files in os.walk(folder):  # which does not enter links
        yield from (Path(name, each) for each in (*folders, *files))
        folders[:] = [each for each in folders if not skip(Path(name, each))]


def _plain(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
