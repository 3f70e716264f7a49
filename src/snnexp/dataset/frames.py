"""Convert events to frames: T bins by time or by number of events, with two polarity channels.

Channel 0 counts OFF events, channel 1 ON events (as in SpikingJelly's frames).
"""

import numpy as np
from numpy.typing import NDArray

from snnexp.dataset.events import Events

POLARITIES = 2
Counts = NDArray[np.int64]


def bin_of_event(t: NDArray[np.int64], timesteps: int, bins: str, duration: int) -> NDArray[np.int64]:
    """Return the bin 0..timesteps-1 of each event, from the sorted timestamps `t` [n] in us.

    `bins="time"`: equal parts of 0..duration us, later events in the last bin. `bins="count"`: n // timesteps events
    per bin, and the remainder in the last bin (as SpikingJelly's split_by="number").
    """
    if bins == "time":
        return np.minimum(t * timesteps // duration, timesteps - 1)
    return np.minimum(np.arange(len(t)) // max(len(t) // timesteps, 1), timesteps - 1)


def count(recordings: list[Events], timesteps: int, bins: str, duration: int, height: int, width: int) -> Counts:
    """Count the events of each recording in each bin, polarity and pixel: int64 [n, timesteps, 2, height, width].

    No event is dropped: the sum over all but the first axis is each recording's number of events.
    """
    shape = (len(recordings), timesteps, POLARITIES, height, width)
    cells = int(np.prod(shape[1:]))
    flat = [
        ((bin_of_event(e.t, timesteps, bins, duration) * POLARITIES + e.p) * height + e.y) * width + e.x + k * cells
        for k, e in enumerate(recordings)
    ]
    return np.bincount(np.concatenate(flat), minlength=len(recordings) * cells).reshape(shape)


def to_bytes(counts: Counts, values: str) -> tuple[NDArray[np.uint8], int]:
    """Return (`counts` as uint8, cells clipped at 255) for `values="count"`, (0 and 1, 0) for `values="binary"`."""
    if values == "binary":
        return (counts > 0).astype(np.uint8), 0
    return np.minimum(counts, 255).astype(np.uint8), int((counts > 255).sum())
