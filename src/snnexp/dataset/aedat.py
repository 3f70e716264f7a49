"""The AEDAT 2.0 files of a DVS128 (128 x 128 pixels), the format of CIFAR10-DVS.

Format (jAER): header lines that start with `#`, the first being `#!AER-DAT2.0`; then 8 bytes per event, two big-endian
32-bit words: address and timestamp in microseconds. Address bits 14-8 and 7-1 hold the coordinates, bit 0 the polarity
(0 = ON); bit 15 marks words that are not pixel events (signals at the camera's connector). In CIFAR10-DVS the camera
lay on its side: for an upright image, bits 14-8 give the column and bits 7-1 the row, both counted down from 127.
"""

from pathlib import Path

import numpy as np

from snnexp.dataset.events import EventFileError, Events, not_empty
from snnexp.dataset.foreign import shown

SIDE, BYTES, CLOCK = 128, 8, 1 << 32
HEADER_BYTES = 1 << 16  # of all header lines; those of jAER have about 500
VERSION = b"#!AER-DAT2.0"
HEADER = (
    VERSION + b"\r\n# int32 address, int32 timestamp (8 bytes, big-endian) for each event\r\n"
    b"# Timestamps tick is 1 us\r\n"
)


def decode(data: bytes, name: str = "the recording") -> Events:
    """Decode the bytes of a DVS128's file into events, sorted by time (events of equal time keep their order).

    Raises EventFileError, which names `name`, for another format or version, an unterminated header, an incomplete
    event, an address outside the DVS128, and a clock that has wrapped (after 71 minutes).
    """
    body = data[_header(data, name) :]
    if len(body) % BYTES:
        whole = f"a whole number of {BYTES}-byte events; the file is truncated or damaged"
        raise EventFileError(f"{name}: {len(body)} bytes after the header are not {whole}")
    address, t = np.frombuffer(body, ">u4").reshape(-1, 2).T.astype(np.int64)
    beyond = address >> 16 != 0
    if beyond.any():
        k = int(beyond.argmax())
        why = "which is outside a DVS128 (128 x 128 pixels): the file is damaged or from another camera"
        raise EventFileError(f"{name}: event {k} has the address 0x{address[k]:08x}, {why}")
    if (np.diff(t) < -CLOCK // 2).any():
        wrapped = "so the 32-bit clock has wrapped"
        raise EventFileError(f"{name}: the timestamps jump back by more than 35 minutes, {wrapped}")
    pixel = address & 0x8000 == 0
    if not pixel.all():
        address, t = address[pixel], t[pixel]
    if (np.diff(t) < 0).any():
        order = np.argsort(t, kind="stable")
        address, t = address[order], t[order]
    return Events(t, SIDE - 1 - (address >> 8), SIDE - 1 - (address >> 1 & 0x7F), 1 - (address & 1))


def encode(events: Events) -> bytes:
    """Encode events as an AEDAT 2.0 file: the inverse of `decode`. Raises ValueError for what it cannot hold."""
    t, x, y, p = (np.asarray(values, np.int64) for values in events)
    for values, limit, what in ((t, CLOCK, "t"), (x, SIDE, "x"), (y, SIDE, "y"), (p, 2, "p")):
        if len(values) and not 0 <= values.min() <= values.max() < limit:
            raise ValueError(f"{what} must lie in 0..{limit - 1} to be written as events of a DVS128")
    address = SIDE - 1 - x << 8 | SIDE - 1 - y << 1 | 1 - p
    return HEADER + np.stack([address, t], axis=1).astype(">u4").tobytes()


def write(path: Path, events: Events) -> None:
    """Write `events` to `path` as AEDAT 2.0."""
    path.write_bytes(encode(events))


def _header(data: bytes, name: str) -> int:
    """Return the number of bytes before the first event."""
    not_empty(data, name)
    if not data.startswith(VERSION):
        first = data[:40].split(b"\n")[0].decode("ascii", "replace").strip()
        what = (
            f"it has another version ({shown(first)})" if first.startswith("#!AER-DAT") else "it is not an AEDAT file"
        )
        raise EventFileError(f"{name}: {what}; an AEDAT 2.0 file starts with the line {VERSION.decode()}")
    end = 0
    while data[end : end + 1] == b"#":
        if not (end := data.find(b"\n", end, HEADER_BYTES) + 1):
            raise EventFileError(f"{name}: the header is not terminated; the file is truncated")
    return end
