"""Anything received: mutated packets, random bytes and traffic, the same as aioquic does."""

from __future__ import annotations

import pytest
from aioquic.tls import CipherSuite
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.quic.hotpath.differential import Duel, Traffic, Weather
from tests.core.quic.hotpath.duels import (
    FRAMES,
    forked,
    hear,
)

WEATHERS = {
    "calm": Weather(),
    "lossy": Weather(loss=0.1),
    "reordered": Weather(jitter=0.02),
    "repeated": Weather(repeat=0.3, jitter=0.005),
    "storm": Weather(loss=0.2, repeat=0.2, jitter=0.05),
}


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Frames, some of them with wrong bytes."""
    kinds = draw(st.lists(st.sampled_from(list(FRAMES.values())), min_size=1, max_size=4))
    plain = bytearray(b"".join(kinds))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(plain) - 1))
        plain[place] = draw(st.integers(0, 255))
    return bytes(plain[: draw(st.integers(1, len(plain)))])


@settings(max_examples=60, deadline=None)
@given(st.lists(mutated(), min_size=1, max_size=3), st.sampled_from(["client", "server"]))
def test_mutated_packets_have_the_same_outcome(packets: list[bytes], name: str) -> None:
    duel = forked()
    for frames in packets:
        hear(duel, getattr(duel, name), frames)


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=0, max_size=60))
def test_any_bytes_have_the_same_outcome(frames: bytes) -> None:
    duel = forked()
    hear(duel, duel.server, frames)


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=0, max_size=60))
def test_any_datagram_has_the_same_outcome(data: bytes) -> None:
    duel = forked()
    inbound = duel.server.hot._hot_inbound
    assert inbound is not None
    duel.deliver(data, duel.server)
    duel.deliver(b"\x41" + inbound.cid + data, duel.server)


@pytest.mark.parametrize("weather", WEATHERS)
def test_random_traffic_is_received_alike(weather: str) -> None:
    suites = list(CipherSuite)[:3]
    place = list(WEATHERS).index(weather)
    duel = Duel(place, weather=WEATHERS[weather], suite=suites[place % 3])
    traffic = Traffic(duel)
    for _ in range(50):
        traffic.step()
    duel.weather = Weather()
    duel.run(3)
    for side in (duel.client, duel.server):
        assert side.plain.close_event is None
        assert side.seen
        assert side.hot._hot_inbound is not None


def test_the_twins_tell_a_difference() -> None:
    duel = forked()
    duel.server.hot._spin_highest_pn += 1
    with pytest.raises(AssertionError, match="_spin_highest_pn"):
        duel.server.check()
