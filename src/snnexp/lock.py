"""Locks on files, between processes and threads, on the `filelock` package.

They are `flock` locks: the system releases them when their holder ends, even if it is killed, and locks of earlier
versions of snnexp are respected. Every call makes its own lock object, so two threads exclude each other as two
processes do. A lock belongs to the process that took it: filelock closes the descriptor in a forked child and unlocks
explicitly in the parent, so a child neither releases the lock nor keeps it alive.
"""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor, unlock_descriptor

from snnexp.errors import Outage
from snnexp.files import opened
from snnexp.masking import masked

log = logging.getLogger(__name__)
logging.getLogger("filelock").setLevel(logging.INFO)  # it logs each attempt
POLL = 0.02  # seconds
TELL_AFTER = 2.0  # seconds of waiting for a lock after which the user is told who holds it


class Held(Outage, TimeoutError):
    """Raised if a lock is not released in time; the message says who holds it and what to do."""


def try_lock(path: Path, patience: float = 0.0) -> FileLock | None:
    """Return the lock of the file `path`, to be released; None if another holder keeps it for `patience` seconds.

    Raises OSError if the file cannot be locked, for example because it is another user's, or a link.
    """
    # without flock there is no fallback to mere existence, which a killed holder would leave behind
    lock = FileLock(path, thread_local=False, poll_interval=POLL, fallback_to_soft=False)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        return None
    return lock


@contextmanager
def locked(path: Path, patience: float = math.inf) -> Iterator[None]:
    """Hold the lock of the file `path`. After `TELL_AFTER` seconds of waiting, say once who holds it.

    Raises Held if the lock is not free within `patience` seconds.
    """
    lock = try_lock(path, min(patience, TELL_AFTER))
    if lock is None and patience > TELL_AFTER:
        log.info("%s", waiting(str(path), holder(path), patience))
        lock = try_lock(path, -1 if patience == math.inf else patience - TELL_AFTER)
    if lock is None:
        raise gave_up(str(path), holder(path), patience)
    try:
        yield
    finally:
        lock.release()


def waiting(what: str, who: str, patience: float) -> str:
    """Return the message that `what` is held by `who`, with the longest time that we wait for it."""
    limit = "" if patience == math.inf else f" (for up to {patience:g} s)"
    return f"waiting for {what}, which is held by {who}{limit}"


def gave_up(what: str, who: str, patience: float) -> Held:
    """Return the error that `who` did not release `what`."""
    return Held(
        f"{what} is in use by {who}, which did not release it within {patience:g} s\n"
        "Start again when it has ended. If it hangs, end it: its lock is then released"
    )


def holder(path: Path) -> str:
    """Return the process that holds the lock of the file `path`, with its command line, or "another process" if
    unknown."""
    try:
        inode = str(path.stat().st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()  # 1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF
            if "->" not in fields and fields[-3].rsplit(":", 1)[-1] == inode and _opened(fields[-4], path):
                command = Path(f"/proc/{fields[-4]}/cmdline").read_text(errors="replace").replace("\0", " ")
                return f"process {fields[-4]} ({masked(' '.join(command.split()))[:200]})"
    except (OSError, IndexError):
        pass
    return "another process"


def _opened(process: str, path: Path) -> bool:
    """Return whether the process has the file open: inodes of two file systems may have the same number."""
    try:
        return any(os.path.samestat(path.stat(), link.stat()) for link in Path(f"/proc/{process}/fd").iterdir())
    except PermissionError:  # a process of another user
        return True


def is_locked(path: Path) -> bool | None:
    """Return whether a live process holds the lock of the file `path`; None if this cannot be determined."""
    try:
        with opened(path, os.O_RDWR, "rb+") as file:
            if not lock_descriptor(file.fileno(), blocking=False):
                return True
            unlock_descriptor(file.fileno())  # closing would leave the lock to a process forked in this moment
    except FileNotFoundError:
        return False
    except OSError:  # another user's file, a link, or a file system without locks
        return None
    return False
