"""The N-MNIST reader and writer: hand-made bytes, round trips, and whatever else may be in a file."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snnexp.dataset.events import EventFileError, Events, decode, encode, write
from snnexp.dataset.events import read_events as read
from snnexp.errors import UserError

one_event = st.tuples(st.integers(0, 2**22), st.integers(0, 33), st.integers(0, 33), st.integers(0, 1))


def as_events(rows: list[tuple[int, int, int, int]]) -> Events:
    return Events(*np.array(rows, np.int64).reshape(-1, 4).T)


def as_rows(events: Events) -> list[tuple[int, ...]]:
    return list(zip(*(column.tolist() for column in events), strict=True))


def test_bits_are_where_the_format_puts_them() -> None:
    # x = 5, y = 33, OFF, t = 0x012345; x = 33, y = 0, ON, t = 0x7FFFFF minus 2^22
    events = decode(bytes([5, 33, 0x01, 0x23, 0x45, 33, 0, 0x80 | 0x3F, 0xFF, 0xFF]))
    assert as_rows(events) == [(0x012345, 5, 33, 0), (0x3FFFFF, 33, 0, 1)]


def test_no_bytes_are_no_events_but_an_empty_file_is_refused(tmp_path) -> None:
    assert as_rows(decode(b"")) == []
    (tmp_path / "00001.bin").write_bytes(b"")
    with pytest.raises(EventFileError, match=r"00001\.bin: the file is empty"):
        read(tmp_path / "00001.bin")


@given(st.lists(one_event))
def test_what_is_written_is_read_back(rows) -> None:
    rows.sort(key=lambda row: row[0])
    assert as_rows(decode(encode(as_events(rows)))) == rows


def test_a_file_is_written_and_read(tmp_path) -> None:
    write(tmp_path / "a.bin", as_events([(7, 1, 2, 1)]))
    assert (tmp_path / "a.bin").read_bytes() == bytes([1, 2, 0x80, 0, 7])
    assert as_rows(read(tmp_path / "a.bin")) == [(7, 1, 2, 1)]


@given(st.lists(one_event, min_size=1))
def test_events_out_of_order_are_put_in_order_and_none_is_lost(rows) -> None:
    assert as_rows(decode(encode(as_events(rows)))) == sorted(rows, key=lambda row: row[0])  # both sorts are stable


@given(st.lists(one_event, min_size=1), st.integers(1, 4))
def test_a_truncated_file_is_refused(rows, cut) -> None:
    with pytest.raises(EventFileError, match=r"some file: .* bytes are not a whole number of 5-byte events"):
        decode(encode(as_events(rows))[:-cut], name="some file")


@given(st.lists(one_event), st.integers(34, 239), st.integers(0, 33), st.booleans(), st.integers(0, 10))
def test_an_address_beyond_the_sensor_is_refused(rows, far, near, in_x, place) -> None:
    rows.insert(place, (rows[0][0] if rows else 0, *((far, near) if in_x else (near, far)), 1))
    with pytest.raises(EventFileError, match="outside the 34 x 34 sensor"):
        decode(encode(as_events(rows)))


def test_a_marker_moves_the_clock_and_is_no_event() -> None:
    marker = bytes([0, 240, 0, 0, 0])
    data = encode(as_events([(8000, 1, 1, 1)])) + marker + encode(as_events([(5, 2, 2, 0)])) + marker
    assert as_rows(decode(data)) == [(8000, 1, 1, 1), (8192 + 5, 2, 2, 0)]


def test_a_wrapped_clock_is_refused() -> None:
    with pytest.raises(EventFileError, match="clock has wrapped"):
        decode(bytes([0, 0, 0x7F, 0xFF, 0xFF, 0, 0, 0, 0, 0]))


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_random_bytes_give_a_clear_error_or_ordered_events_on_the_sensor(data) -> None:
    try:
        events = decode(data, name="noise")
    except EventFileError as error:
        assert isinstance(error, UserError)
        assert str(error).startswith("noise: ")
    else:
        raw = np.frombuffer(data, np.uint8).reshape(-1, 5)
        assert len(events.t) == (raw[:, 1] != 240).sum()
        assert sorted(zip(events.x, events.y, strict=True)) == sorted((x, y) for x, y in raw[:, :2] if y != 240)
        assert (np.diff(events.t) >= 0).all()
        assert ((events.x < 34) & (events.y < 34) & (events.p < 2)).all()


@pytest.mark.parametrize("row", [(2**23, 0, 0, 0), (-1, 0, 0, 0), (0, 256, 0, 0), (0, 0, 240, 0), (0, 0, 0, 2)])
def test_what_forty_bits_cannot_hold_is_not_written(row) -> None:
    with pytest.raises(ValueError, match="must lie in 0"):
        encode(as_events([row]))
