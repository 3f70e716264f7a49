"""Waiting for a condition instead of for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
POLL = 0.01  # seconds


def until(
    condition: Callable[[], T],
    what: str,
    *,
    patience: float = 120,
    progress: Callable[[], object] = lambda: None,
    poll: float = POLL,
) -> T:
    """Wait until `condition()` is true, and return its value.

    Raises TimeoutError if it is still false when `progress()` has not changed for `patience` seconds, so a slow machine
    may take longer than one that hangs.
    """
    since, last = time.monotonic(), progress()
    while not (value := condition()):
        if (now := progress()) != last:
            since, last = time.monotonic(), now
        if time.monotonic() - since > patience:
            raise TimeoutError(f"waited {patience:g} s without progress for {what}; last progress: {last}")
        time.sleep(poll)
    return value
