"""Outages of a study's storage: wait until it is available again, as long as the sweep allows."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from optuna.storages import BaseStorage

from snnexp.errors import Outage, UserError
from snnexp.masking import masked

log = logging.getLogger("snnexp.sweep")
POLL = 0.5  # seconds
T = TypeVar("T")
_limits: dict[str, float] = {}  # the longest wait in seconds for each address
_told: set[str] = set()  # the addresses of which the user knows that they are away
_thread = threading.local()


def allow(url: str, seconds: float) -> None:
    """Let this process and its forks wait for the storage at `url`; until then, a failure is an error at once."""
    _limits[url] = seconds


@contextmanager
def impatient() -> Iterator[None]:
    """Let this thread not wait for any storage."""
    before, _thread.impatient = getattr(_thread, "impatient", False), True
    try:
        yield
    finally:
        _thread.impatient = before


def waited(url: str, call: Callable[[], T]) -> T:
    """Return the result of `call`, repeated while the storage at `url` is away; say so once.

    Raises Outage when the wait has reached its limit.
    """
    begun = time.monotonic()
    while True:
        try:
            result = call()
        except Exception as error:
            limit = 0.0 if getattr(_thread, "impatient", False) else _limits.get(url, 0.0)
            if not limit or not is_outage(error):
                raise
            _wait(url, error, time.monotonic() - begun, limit)
        else:
            if url in _told:
                _told.discard(url)
                log.warning("hydra.sweeper.storage=%s is available again: the sweep goes on", masked(url))
            return result


def is_outage(error: BaseException | None) -> bool:
    """Return whether a storage or its file system cannot be reached, rather than refusing what it was asked."""
    from sqlalchemy.exc import InterfaceError, OperationalError

    while error:
        if isinstance(error, OSError | InterfaceError | OperationalError) and not isinstance(error, UserError):
            return True
        error = error.__cause__
    return False


def _wait(url: str, error: Exception, since: float, limit: float) -> None:
    cause: BaseException = error
    while cause.__cause__:
        cause = cause.__cause__
    what = f"hydra.sweeper.storage={masked(url)} cannot be reached ({masked(' '.join(str(cause).split()))[:200]})"
    if since >= limit:
        raise Outage(f"{what} for {limit:g} s (hydra.sweeper.wait)\nThe same command goes on from there") from error
    if url not in _told:
        _told.add(url)
        log.warning("%s: waiting for up to %g s (hydra.sweeper.wait)", what, limit)
    time.sleep(min(POLL, limit - since))


def _method(name: str) -> Callable[..., Any]:
    def call(self: Any, *arguments: Any, **more: Any) -> Any:
        return waited(self.url, partial(getattr(self.storage, name), *arguments, **more))

    return call


def _init(self: Any, storage: BaseStorage, url: str) -> None:
    self.storage, self.url = storage, url


_methods = {name: _method(name) for name in vars(BaseStorage) if not name.startswith("_")}
# A storage that waits in each of its methods while the one behind it is away.
Patient: Any = type("Patient", (BaseStorage,), {"__init__": _init, **_methods})
