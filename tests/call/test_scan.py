"""The fast paths of the scans give what the slow ones would."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.proto.scan import MAX_SAFE_INTEGER, has_unsafe_integer

INTEGERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.integers(MAX_SAFE_INTEGER - 3, MAX_SAFE_INTEGER + 3),
    st.integers(-MAX_SAFE_INTEGER - 3, -MAX_SAFE_INTEGER + 3),
    st.integers(10**14, 10**17),
)
OTHERS = st.one_of(st.text('0123456789"\\ax-.e', max_size=24), st.floats(0, 1), st.none())


@given(st.lists(st.one_of(INTEGERS, OTHERS)))
def test_unsafe_integers_are_found_and_nothing_else(values: list[object]) -> None:
    expected = any(isinstance(v, int) and abs(v) > MAX_SAFE_INTEGER for v in values)
    assert has_unsafe_integer(msgspec.json.encode(values)) == expected


def test_digits_in_text_and_fractions_are_no_integers() -> None:
    assert not has_unsafe_integer(b'["99999999999999999999",0.99999999999999999999]')
    assert has_unsafe_integer(b'{"a":[-9007199254740992]}')
    assert not has_unsafe_integer(b'{"a":[-9007199254740991]}')
