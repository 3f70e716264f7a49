"""Locks on files, between processes and threads, on the `filelock` package.

They are `flock` locks: the system releases them when their holder ends, even if it is killed, and locks of earlier
versions of snnexp count. Every call makes its own lock object, so two threads exclude each other as two processes do.
A lock belongs to the process that took it: filelock closes the descriptor in a forked child and unlocks explicitly in
the parent, so a child neither releases the lock nor keeps it alive.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor, unlock_descriptor

log = logging.getLogger(__name__)
logging.getLogger("filelock").setLevel(logging.INFO)  # it logs each attempt
POLL = 0.02  # seconds


def try_lock(path: Path, patience: float = 0.0) -> FileLock | None:
    """Return the lock of the file `path`, to be released; None if another holder keeps it for `patience` seconds."""
    # without flock there is no fallback to mere existence, which a killed holder would leave behind
    lock = FileLock(path, thread_local=False, poll_interval=POLL, fallback_to_soft=False)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        return None
    return lock


@contextmanager
def locked(path: Path, patience: float = math.inf) -> Iterator[None]:
    """Hold the lock of the file `path`. A wait without a limit is logged once.

    Raises TimeoutError if the lock is not free within `patience` seconds.
    """
    lock = try_lock(path)
    if lock is None and patience == math.inf:
        log.info("waiting for another process to release %s", path)
    lock = lock or try_lock(path, patience)
    if lock is None:
        raise TimeoutError(f"{path} is in use by another process")
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool | None:
    """Return whether a live process holds the lock of the file `path`; None if that cannot be seen from here."""
    try:
        with path.open("r+") as file:
            if not lock_descriptor(file.fileno(), blocking=False):
                return True
            unlock_descriptor(file.fileno())  # closing would leave the lock to a process forked in this moment
    except FileNotFoundError:
        return False
    except OSError:  # another user's file, or a file system without locks
        return None
    return False
