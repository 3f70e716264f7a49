"""Events of an address-event camera, and the N-MNIST file format.

Format (Orchard et al. 2015, "Converting Static Image Datasets to Spiking Neuromorphic Datasets Using Saccades"): 40
bits per event, big-endian: bits 39-32 x, 31-24 y, 23 polarity (1 = ON), 22-0 timestamp in microseconds. An event with y
= 240, outside the ATIS (304 x 240), is a marker that adds 2^13 us to all later timestamps. N-MNIST itself has none; the
group's other recordings do.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snnexp.dataset.foreign import read_bytes, shown
from snnexp.errors import UserError

BYTES, MARKER_ROW, MARKER_STEP, CLOCK = 5, 240, 1 << 13, 1 << 23
HEIGHT, WIDTH = 34, 34


class EventFileError(UserError):
    """A recording that cannot be read; the message names the file and its fault."""


class Events(NamedTuple):
    """One recording, sorted by time, as four int64 arrays [n]: `t` in microseconds, column `x` and row `y` from the top
    left, polarity `p`, 1 = ON (brighter), 0 = OFF (darker)."""

    t: NDArray[np.int64]
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    p: NDArray[np.int64]


def decode(data: bytes, height: int = HEIGHT, width: int = WIDTH, name: str = "the recording") -> Events:
    """Decode the bytes of an N-MNIST file into events, sorted by time (events of equal time keep their order).

    Raises EventFileError, which names `name`, if the length is not a multiple of 5 bytes, an address lies outside the
    `height` x `width` sensor, or the 23-bit clock has wrapped (after 8.4 s), which makes times ambiguous.
    """
    if len(data) % BYTES:
        why = "the file is truncated or not in the N-MNIST format"
        raise EventFileError(f"{name}: {len(data)} bytes are not a whole number of 5-byte events; {why}")
    raw = np.frombuffer(data, np.uint8).reshape(-1, BYTES).astype(np.int64)
    x, y, p = raw[:, 0], raw[:, 1], raw[:, 2] >> 7
    t = (raw[:, 2] & 0x7F) << 16 | raw[:, 3] << 8 | raw[:, 4]
    if (np.diff(t) < -CLOCK // 2).any():
        raise EventFileError(f"{name}: the timestamps jump back by more than 4 s, so the 23-bit clock has wrapped")
    marker = y == MARKER_ROW
    if marker.any():
        t += MARKER_STEP * np.cumsum(marker)
        t, x, y, p = (values[~marker] for values in (t, x, y, p))
    beyond = (x >= width) | (y >= height)
    if beyond.any():
        k = int(beyond.argmax())
        where = f"(x, y) = ({x[k]}, {y[k]}), outside the {width} x {height} sensor"
        raise EventFileError(f"{name}: event {k} is at {where}")
    if (np.diff(t) < 0).any():
        order = np.argsort(t, kind="stable")
        t, x, y, p = t[order], x[order], y[order], p[order]
    return Events(t, x, y, p)


def encode(events: Events) -> bytes:
    """Encode events as an N-MNIST file: the inverse of `decode`. Raises ValueError for what 40 bits cannot hold."""
    t, x, y, p = (np.asarray(values, np.int64) for values in events)
    for values, limit, what in ((t, CLOCK, "t"), (x, 256, "x"), (y, MARKER_ROW, "y"), (p, 2, "p")):
        if len(values) and not 0 <= values.min() <= values.max() < limit:
            raise ValueError(f"{what} must lie in 0..{limit - 1} to be written as N-MNIST events")
    return np.stack([x, y, p << 7 | t >> 16, t >> 8 & 0xFF, t & 0xFF], axis=1).astype(np.uint8).tobytes()


def read_events(path: Path, height: int = HEIGHT, width: int = WIDTH) -> Events:
    """Read the events in the file `path`. Raises EventFileError like `decode` and for an empty file, and UserError for
    what is no regular file of at most RECORDING_BYTES."""
    name = shown(path)
    return decode(not_empty(read_bytes(path), name), height, width, name)


def write(path: Path, events: Events) -> None:
    """Write `events` to `path` in the N-MNIST format."""
    path.write_bytes(encode(events))


def not_empty(data: bytes, name: str) -> bytes:
    """Return `data`, or raise EventFileError if it is empty: interrupted copies leave files without events."""
    if not data:
        raise EventFileError(f"{name}: the file is empty")
    return data
