"""Every fuzz target under hypothesis: a second each, in every test run."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

JSON_LIKE = st.text(alphabet='{}[]",:0123456789eE+-.truefalsn\\u \x00é', max_size=400)
ANY_BYTES = st.one_of(st.binary(max_size=1_500), JSON_LIKE.map(str.encode))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_any_bytes_are_understood_or_refused(name: str) -> None:
    target = TARGETS[name]
    expensive = name in {"handshake", "datagrams"}

    @settings(max_examples=40 if expensive else 300, deadline=None)
    @given(ANY_BYTES)
    def run(data: bytes) -> None:
        target(data)

    run()
