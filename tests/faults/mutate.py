"""Feed mutated files to a reader, in this process: each is accepted, or refused in one sentence that names the file."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from snnexp.errors import UserError

SECONDS, WAITING = 5.0, 10  # for one file, although the files are small: some say that they hold 64 million pixels
GROWTH = 128 << 20  # bytes by which one small file may raise the peak memory of the process
SPACE = 4 << 30  # bytes of address space that all files together may take
MESSAGE = 3000  # characters of a refusal
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 2**63 - 1, 2**64 - 1)


class TooSlow(BaseException):
    """Raised in a reader that does not end; no Exception, because readers turn those into refusals."""


@dataclass
class Counts:
    """What became of the files; `bad` describes those that were neither accepted nor refused cleanly."""

    refused: int = 0
    accepted: int = 0
    bad: list[str] = field(default_factory=list)
    slowest: float = 0.0  # seconds of the CPU


def fuzz(
    read: Callable[[bytes], object],
    seeds: Sequence[bytes],
    count: int,
    seed: int,
    name: str,
    mend: Callable[[bytes], bytes] = bytes,
    seconds: float = SECONDS,
    growth: int = GROWTH,
) -> Counts:
    """Call `read` with `count` mutants of `seeds`, determined by `seed`, and count what happens.

    A clean refusal is a UserError of one printable line that contains `name`. Everything else that `read` raises is
    bad (AssertionError: what it accepted is wrong), and so is a file that takes more than `seconds` of the CPU, or
    WAITING times as many of the clock, or raises the peak memory by more than `growth`. Every other mutant passes
    through `mend`, which may restore checksums.
    """
    counts = Counts()
    with _limited(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k in range(count):
            data = mutant(seeds, seed, k)
            if k % 2:
                data = mend(data)
            peak, start = _peak(), time.process_time()
            fault = _fault(read, data, name, seconds, counts)
            counts.slowest = max(counts.slowest, time.process_time() - start)
            if fault is None and _peak() - peak > growth:
                fault = f"took {(_peak() - peak) >> 20} MiB"
            if fault:
                counts.bad.append(f"seed {seed}, file {k}: {fault}")
    return counts


def mutant(seeds: Sequence[bytes], seed: int, k: int) -> bytes:
    """Return mutant `k` of `seeds`: one of them after one to four changes."""
    draw = random.Random(seed << 32 | k)
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 2, 4))):
        draw.choice(CHANGES)(data, _place(draw, len(data)), draw, seeds)
    return bytes(data)


def _place(draw: random.Random, size: int) -> int:
    """Draw a position in a file: half of the time within the first or last 64 bytes, where headers and lists are."""
    near = min(size, 64)
    return draw.choice((draw.randrange(size + 1), draw.randrange(near + 1), size - draw.randrange(near + 1)))


def _flip(data: bytearray, at: int, draw: random.Random, seeds: Sequence[bytes]) -> None:
    if at < len(data):
        data[at] ^= 1 << draw.randrange(8)


def _number(data: bytearray, at: int, draw: random.Random, seeds: Sequence[bytes]) -> None:
    """Overwrite a number of 1 to 8 bytes, of either order, by one at the edge of a type."""
    width, order = draw.choice((1, 2, 4, 8)), draw.choice(("big", "little"))
    value = draw.choice(EDGES) % (1 << 8 * width)
    if at + width <= len(data):
        data[at : at + width] = value.to_bytes(width, order)


def _cut(data: bytearray, at: int, draw: random.Random, seeds: Sequence[bytes]) -> None:
    del data[at : at + draw.choice((1, 2, 5, 8, 64, len(data)))]


def _repeat(data: bytearray, at: int, draw: random.Random, seeds: Sequence[bytes]) -> None:
    data[at:at] = data[at : at + draw.choice((1, 5, 8, 64, 1000))] * draw.choice((1, 1, 2, 10))


def _noise(data: bytearray, at: int, draw: random.Random, seeds: Sequence[bytes]) -> None:
    data[at:at] = draw.randbytes(draw.choice((1, 2, 5, 8, 64)))


def _splice(data: bytearray, at: int, draw: random.Random, seeds: Sequence[bytes]) -> None:
    other = draw.choice(seeds)
    data[at:] = other[_place(draw, len(other)) :]


CHANGES = (_flip, _flip, _number, _number, _cut, _repeat, _noise, _splice)


def _fault(read: Callable[[bytes], object], data: bytes, name: str, seconds: float, counts: Counts) -> str | None:
    """Read one file and count it; return what was bad about it."""
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds * WAITING)
        try:
            read(data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
    except UserError as error:
        text = str(error)
        if isinstance(error.__cause__, MemoryError):
            return f"ran out of memory: {text}"
        if name not in text or not text.isprintable() or len(text) > MESSAGE:
            return f"an unclear refusal: {text[:MESSAGE]!r}"
        counts.refused += 1
    except (Exception, TooSlow) as error:
        return f"{type(error).__name__}: {error}"
    else:
        counts.accepted += 1
    return None


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextmanager
def _limited() -> Iterator[None]:
    """Raise TooSlow when the timer ends, and MemoryError instead of taking all of the machine's memory.

    What C libraries (libtiff) print about damaged files is dropped.
    """

    def stop(number: int, frame: object) -> None:
        raise TooSlow("it did not end in time")

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # the peak memory starts again from what is taken now
    sys.stderr.flush()
    terminal, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handlers = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    try:
        os.dup2(nothing, 2)
        resource.setrlimit(resource.RLIMIT_AS, (taken + SPACE, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nothing)
