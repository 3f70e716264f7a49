"""Binning: conserved counts, the bin of each event, SpikingJelly as the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snnexp.dataset.events import Events, decode
from snnexp.dataset.frames import bin_of_event, count, to_bytes


def some_events(n: int, seed: int = 0) -> Events:
    draw = np.random.default_rng(seed)
    return Events(
        np.sort(draw.integers(0, 330_000, n)), draw.integers(0, 34, n), draw.integers(0, 34, n), draw.integers(0, 2, n)
    )


@given(st.integers(0, 300), st.integers(1, 40), st.sampled_from(["time", "count"]), st.integers(0, 9))
def test_no_event_is_lost_or_made(n, timesteps, bins, seed) -> None:
    recordings = [some_events(n, seed), some_events(17, seed + 1)]
    counts = count(recordings, timesteps, bins, 315_000, 34, 34)
    assert counts.shape == (2, timesteps, 2, 34, 34)
    assert counts.sum((1, 2, 3, 4)).tolist() == [n, 17]
    assert counts[0, :, 1].sum() == recordings[0].p.sum()


def test_equal_parts_of_the_duration_and_what_is_later_in_the_last() -> None:
    t = np.array([0, 31_499, 31_500, 314_999, 315_000, 400_000])
    assert bin_of_event(t, 10, "time", 315_000).tolist() == [0, 0, 1, 9, 9, 9]


@pytest.mark.parametrize(("n", "expected"), [(7, [0, 0, 1, 1, 2, 2, 2]), (2, [0, 1]), (0, [])])
def test_equal_numbers_of_events_and_the_rest_in_the_last(n, expected) -> None:
    assert bin_of_event(np.arange(n), 3, "count", 1).tolist() == expected


@pytest.mark.parametrize("n", [10, 999, 4001])
def test_frames_by_count_are_those_of_spikingjelly(n) -> None:
    from spikingjelly.datasets.utils import integrate_events_by_fixed_frames_number

    events = some_events(n)
    theirs = integrate_events_by_fixed_frames_number(events._asdict(), "number", 10, 34, 34)
    assert (count([events], 10, "count", 1, 34, 34)[0] == theirs).all()


def test_an_event_is_one_count_at_its_row_column_and_polarity() -> None:
    off, on = Events(*np.array([[5], [3], [30], [0]])), Events(*np.array([[5], [3], [30], [1]]))
    assert np.argwhere(count([off, on], 1, "count", 1, 34, 34)).tolist() == [[0, 0, 0, 30, 3], [1, 0, 1, 30, 3]]


def test_bytes_saturate_and_tell_or_are_binary() -> None:
    counts = np.array([0, 1, 255, 256, 10_000])
    array, cut = to_bytes(counts, "count")
    assert (array.tolist(), cut, array.dtype) == ([0, 1, 255, 255, 255], 2, np.uint8)
    array, cut = to_bytes(counts, "binary")
    assert (array.tolist(), cut) == ([0, 1, 1, 1, 1], 0)


@given(
    st.lists(st.tuples(st.integers(0, 33), st.integers(0, 33), st.integers(0, 1), st.integers(0, 400_000)), min_size=1),
    st.integers(1, 12),
    st.sampled_from(["time", "count"]),
)
def test_from_bytes_to_frames_every_event_is_counted_where_it_was(rows, timesteps, bins) -> None:
    """Against a count by hand: address and polarity of the raw bits, and the bin by the event's rank or time."""
    raw = b"".join(bytes([x, y]) + ((p << 23) | t).to_bytes(3, "big") for x, y, p, t in rows)
    counts = count([decode(raw, name="fuzz")], timesteps, bins, 315_000, 34, 34)[0]
    expected = np.zeros_like(counts)
    ordered = sorted(rows, key=lambda row: row[3])  # stable, as the reader's order
    for rank, (x, y, p, t) in enumerate(ordered):
        by_time, by_count = t * timesteps // 315_000, rank // max(len(rows) // timesteps, 1)
        expected[min(by_time if bins == "time" else by_count, timesteps - 1), p, y, x] += 1
    assert np.array_equal(counts, expected)
