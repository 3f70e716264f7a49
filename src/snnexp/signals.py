"""The signals that end a run: Ctrl-C (SIGINT), SIGTERM and SIGHUP all raise KeyboardInterrupt. Imports nothing heavy.

A signal that the parent process ignores stays ignored: SIGINT in a background job of a script, SIGHUP under nohup.
Handlers can only be installed in the main thread; elsewhere, the functions here change nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DEFAULT = (signal.SIG_DFL, signal.default_int_handler)
SAME = 1.0  # seconds in which further signals are part of one request: a terminal and a parent both send one
Handler = Callable[[int, FrameType | None], Any]
_last = -SAME


@contextmanager
def handled(handler: Handler, replaced: tuple[Any, ...] | None = None) -> Iterator[None]:
    """Let `handler` answer the signals that are not ignored; with `replaced`, only those with a handler in it."""
    old: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                now = signal.getsignal(number)
                if now in replaced if replaced else now not in (signal.SIG_IGN, None):
                    old[number] = signal.signal(number, handler)
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, unless it was raised less than `SAME` seconds ago and is still being answered."""
    global _last
    if (now := time.monotonic()) - _last >= SAME:
        _last = now
        raise KeyboardInterrupt


@contextmanager
def interrupting() -> Iterator[None]:
    """Raise KeyboardInterrupt on each signal. Other handlers, such as those of a cluster's launcher, stay."""
    with handled(interrupt, DEFAULT):
        yield


@contextmanager
def collected() -> Iterator[list[int]]:
    """Collect signals in the yielded list; a signal `SAME` seconds or more after the first acts at once."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        global _last
        if seen:
            interrupt(number, frame)
        else:
            _last = time.monotonic()
        seen.append(number)

    with handled(note):
        yield seen


@contextmanager
def held() -> Iterator[None]:
    """Hold signals back until the block has ended; raise KeyboardInterrupt if one came and no exception is active."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if not seen:
            os.write(2, b"\nclosing the run, please wait\n")  # print is not safe in a handler
        seen.append(number)

    with handled(note):
        yield
    if seen and sys.exception() is None:
        raise KeyboardInterrupt


def ignored() -> None:
    """Ignore the signals from now on: the process is about to exit."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
