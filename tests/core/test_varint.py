from __future__ import annotations

import pytest
from aioquic._buffer import Buffer
from hypothesis import given
from hypothesis import strategies as st

from alknet.core.varint import pull_varint_untrusted, varint, varint_size

EDGES = [0, 1, 63, 64, 16_383, 16_384, (1 << 30) - 1, 1 << 30, (1 << 62) - 1]


@pytest.mark.parametrize("value", EDGES)
def test_integers_are_as_short_as_they_can_be(value: int) -> None:
    buf = Buffer(capacity=8)
    buf.push_uint_var(value)
    assert varint(value) == buf.data
    assert varint_size(value) == len(buf.data)


@pytest.mark.parametrize("value", EDGES)
def test_an_integer_is_read_where_it_stands_and_only_whole(value: int) -> None:
    data = b"\x00" + varint(value)
    assert pull_varint_untrusted(data + b"rest", 1) == (value, len(data))
    for end in range(1, len(data)):
        assert pull_varint_untrusted(data[:end], 1) is None


@given(st.binary(max_size=9), st.integers(0, 9))
def test_any_bytes_are_read_as_aioquic_does(data: bytes, at: int) -> None:
    found = pull_varint_untrusted(bytearray(data), at)
    try:
        buf = Buffer(data=data[at:])
        expected = (buf.pull_uint_var(), at + buf.tell())
    except ValueError:  # aioquic's for the end of the buffer
        assert found is None
    else:
        assert found == expected
