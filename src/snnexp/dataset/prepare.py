"""Prepared data on disk: each directory is made once, by one process, and verified as a whole at each use."""

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
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnexp.dataset.manifest import fault, seal
from snnexp.errors import UserError
from snnexp.lock import locked

log = logging.getLogger(__name__)
CANNOT = (  # errors of a cache folder, which the user can mend
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENOENT),
    *(errno.ENOTEMPTY, errno.ELOOP, errno.EIO),
)

Item = TypeVar("Item")
Result = TypeVar("Result")


def digest(**settings: object) -> str:
    """Return 16 hex digits that identify `settings` (anything JSON can encode)."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def prepared_once(directory: Path, build: Callable[[Path], None]) -> Path:
    """Return `directory`, after `build(temporary directory)` has filled it if it did not exist.

    The temporary directory is renamed when it is complete and on disk, with a manifest of its files. A directory that
    differs from its manifest (files missing, changed or added) is made again. A lock, which the system releases however
    its holder ends, lets one process build while others wait; what a killed process left is removed and rebuilt. Raises
    what `build` raises, leaving nothing behind, and UserError if the cache cannot be written.
    """
    try:
        return _prepared(directory, build) if fault(directory) else directory
    except OSError as error:
        if error.errno not in CANNOT:
            raise
        where = directory.parent.parent
        raise UserError(
            f"cannot prepare data in cache_dir={where}: {error.strerror} ({error.filename}); "
            "choose another folder with cache_dir=DIR or SNNEXP_CACHE"
        ) from error


def _prepared(directory: Path, build: Callable[[Path], None]) -> Path:
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(directory.name + ".partial")
    with locked(directory.with_name(directory.name + ".lock")):
        if wrong := fault(directory):
            if os.path.lexists(directory):
                log.warning("%s is not as it was prepared (%s): it is prepared again", directory, wrong)
            _removed(partial)
            partial.mkdir()
            try:
                build(partial)
                seal(partial)
                os.sync()  # one call for all: tens of thousands of fsync calls would take minutes
                _removed(directory)
                partial.rename(directory)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    return directory


def store(directory: Path, name: str, labels: NDArray[np.int64], arrays: Iterable[NDArray[np.uint8]]) -> None:
    """Write `arrays` [b, ...], one after another, as <name>.npy [n, ...], and `labels` [n] as labels.npy."""
    with (directory / f"{name}.npy").open("wb") as file:  # not mapped: a full disk raises an error, not SIGBUS
        for k, array in enumerate(arrays):
            if k == 0:
                header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), *array.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(array.tobytes())
    np.save(directory / "labels.npy", labels)


def stored(directory: Path, name: str, in_memory: bool = False) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return the array and the labels that `store` wrote, the array mapped unless `in_memory`, and meta.json."""
    # copy-on-write, because torch has no read-only tensors: writing to it changes neither the file nor other processes
    x = np.load(directory / f"{name}.npy", mmap_mode=None if in_memory else "c")
    meta = json.loads((directory / "meta.json").read_text())
    return torch.from_numpy(x), torch.from_numpy(np.load(directory / "labels.npy")), meta


def ranges(count: int, size: int) -> Iterator[range]:
    """Yield ranges of at most `size` that together are range(count)."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def _removed(path: Path) -> None:
    """Remove whatever is at `path`; a folder is renamed first, so that it is there as a whole or not at all."""
    if path.is_dir() and not path.is_symlink():
        gone = path.with_name(path.name + ".removed")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
