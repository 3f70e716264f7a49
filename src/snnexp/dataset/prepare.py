"""Prepared data on disk: each directory is made once, by one process, and is complete or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from snnexp.errors import UserError
from snnexp.lock import locked

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


def digest(**settings: object) -> str:
    """Return 16 hex digits that identify `settings` (anything JSON can encode)."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def prepared_once(directory: Path, build: Callable[[Path], None]) -> Path:
    """Return `directory`, after `build(temporary directory)` has filled it if it did not exist.

    The temporary directory is renamed when it is complete and on disk, so `directory` is complete if it exists. A lock,
    which the system releases however its holder ends, lets one process build while others wait; what a killed process
    left is removed and rebuilt. Raises what `build` raises, leaving nothing behind, and UserError if the cache cannot
    be written.
    """
    try:
        return directory if directory.exists() else _prepared(directory, build)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.ENOENT):
            raise
        where = directory.parent.parent
        raise UserError(f"cannot prepare data in cache_dir={where}: {error.strerror} ({error.filename})") from error


def _prepared(directory: Path, build: Callable[[Path], None]) -> Path:
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(directory.name + ".partial")
    with locked(directory.with_name(directory.name + ".lock")):
        if not directory.exists():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                build(partial)
                os.sync()  # one call for all: tens of thousands of fsync calls would take minutes
                partial.rename(directory)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    return directory


def in_order(function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 4) -> Iterator[Result]:
    """Do the same as `map` with one thread per core (numpy releases the GIL in the slow parts), results in order; at
    most `ahead` results per thread wait, so memory stays bounded."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool, pending = ThreadPoolExecutor(workers), []
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= workers * ahead:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()
    finally:  # after an error, what has not begun is not done
        pool.shutdown(cancel_futures=True)


def progress(
    chunks: Iterable[Result], what: str, total: int, size: Callable[[Result], int], unit: str = "recordings"
) -> Iterator[Result]:
    """Yield `chunks` while a bar on stderr counts up to `total`; without a terminal, log start and end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    log.info("%s: %d %s", what, total, unit)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)
        for chunk in chunks:
            yield chunk
            bar.advance(task, size(chunk))
    log.info("%s: done", what)
