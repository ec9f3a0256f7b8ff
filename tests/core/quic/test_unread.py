"""Bytes that wait for a reader come out as they went in, in few pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alknet.core.quic.unread import SHORT_BYTES, Unread


@given(st.lists(st.binary(max_size=2 * SHORT_BYTES)), st.lists(st.integers(1, 3 * SHORT_BYTES)))
def test_bytes_come_out_in_order(pieces: list[bytes], sizes: list[int]) -> None:
    unread = Unread()
    for piece in pieces:
        unread.append(piece)
    expected = b"".join(pieces)
    for size in sizes:
        assert unread.take(size) == expected[:size]
        expected = expected[size:]
        assert len(unread) == len(expected)
    assert unread.take(len(expected) + 1) == expected
    assert not unread


def test_single_bytes_do_not_cost_an_object_each() -> None:
    unread = Unread()
    for _ in range(10_000):
        unread.append(b"x")
    assert len(unread._pieces) <= 10_000 // SHORT_BYTES + 1
    assert unread.take(20_000) == b"x" * 10_000


def test_after_clear_nothing_is_left() -> None:
    unread = Unread()
    unread.append(b"x" * 1000)
    unread.clear()
    assert (len(unread), unread.take(10)) == (0, b"")
