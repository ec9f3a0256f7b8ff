from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.core.endpoint.admission import Admission, Place
from alknet.core.identity import ANONYMOUS, OWNER, Identity
from alknet.core.limits import Limits
from alknet.core.source import source_of
from alknet.errors import Unavailable

PEER = Identity("peer:alice")
HOME, ELSEWHERE = "192.0.2.1", "192.0.2.2"


def admission(**limits: int) -> Admission:
    return Admission(Limits(**limits))


def fill(counters: Admission, count: int, source: str | None, who: Identity) -> list[Place]:
    return [counters.admit(source, who, 0.0) for _ in range(count)]


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.1:4433", "192.0.2.1"),
        ("[2001:db8:1:2:3:4:5:6]:4433", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2:ffff::1]:1", "2001:db8:1:2::/64"),
        ("[fe80::1%2]:4433", "fe80::/64"),
        ("[::ffff:192.0.2.1]:4433", "192.0.2.1"),
        ("memory:dialer", "memory:dialer"),
        ("", ""),
    ],
)
def test_sources_are_what_an_attacker_cannot_multiply(address: str, source: str) -> None:
    assert source_of(address) == source


def test_a_relayed_stream_counts_against_the_relay() -> None:
    assert source_of("192.0.2.1:4433", PEER) == "relay:peer:alice"


@given(st.text())
def test_any_text_is_a_source(address: str) -> None:
    assert isinstance(source_of(address), str)


def test_strangers_of_one_address_are_limited_exactly() -> None:
    counters = admission(connections_per_address=3)
    places = fill(counters, 3, HOME, ANONYMOUS)
    with pytest.raises(Unavailable, match="too many connections from this address"):
        counters.admit(HOME, ANONYMOUS, 0.0)
    counters.admit(ELSEWHERE, ANONYMOUS, 0.0)
    places[0].release()
    counters.admit(HOME, ANONYMOUS, 0.0)


def test_a_proven_peer_is_let_in_beside_too_many_strangers() -> None:
    counters = admission(connections_per_address=1)
    fill(counters, 1, HOME, ANONYMOUS)
    with counters.handshake(HOME):
        counters.admit(HOME, PEER, 0.0)


def test_connections_of_one_identity_are_limited_exactly_wherever_they_come_from() -> None:
    counters = admission(connections_per_identity=2)
    places = [counters.admit(HOME, PEER, 0.0), counters.admit(ELSEWHERE, PEER, 0.0)]
    with pytest.raises(Unavailable, match="this identity has too many"):
        counters.admit("192.0.2.3", PEER, 0.0)
    counters.admit(HOME, Identity("peer:bob"), 0.0)
    places[0].release()
    counters.admit(HOME, PEER, 0.0)


def test_the_node_as_a_whole_is_limited_exactly() -> None:
    counters = admission(connections=2)
    place = fill(counters, 2, HOME, PEER)[0]
    with pytest.raises(Unavailable, match="node has too many"):
        counters.admit(ELSEWHERE, ANONYMOUS, 0.0)
    with pytest.raises(Unavailable, match="node has too many"), counters.handshake(ELSEWHERE):
        pass
    place.release()
    counters.admit(ELSEWHERE, ANONYMOUS, 0.0)


def test_the_owner_is_always_admitted() -> None:
    counters = admission(connections=1, connections_per_identity=1, connections_per_address=1)
    fill(counters, 1, HOME, PEER)
    fill(counters, 3, None, OWNER)
    assert counters.total == 4


def test_a_unix_socket_has_no_address_to_count() -> None:
    counters = admission(connections_per_address=1)
    fill(counters, 5, None, ANONYMOUS)


def test_handshakes_in_progress_are_limited_per_address() -> None:
    counters = admission(connections_per_address=1)
    with counters.handshake(HOME):
        with pytest.raises(Unavailable, match="handshakes"), counters.handshake(HOME):
            pass
        with counters.handshake(ELSEWHERE):
            assert counters.handshakes == 2
    assert counters.handshakes == 0
    with counters.handshake(HOME):
        pass


def test_a_stranger_that_becomes_a_peer_leaves_the_strangers_count() -> None:
    counters = admission(connections_per_address=1, connections_per_identity=1)
    place = counters.admit(HOME, ANONYMOUS, 0.0)
    place.move_to(PEER)
    with pytest.raises(Unavailable, match="identity"):
        counters.admit(HOME, PEER, 0.0)
    counters.admit(HOME, ANONYMOUS, 0.0)
    place.release()
    counters.admit(HOME, PEER, 0.0)


def test_what_the_node_dialled_counts_but_is_never_refused() -> None:
    counters = admission(connections=1)
    fill(counters, 1, HOME, PEER)
    counters.enter(ELSEWHERE, PEER)
    assert counters.total == 2


def test_the_fifth_failed_token_closes_its_connection() -> None:
    counters = admission()
    place = counters.admit(HOME, PEER, 0.0)
    assert [counters.failed_authentication(place, 0.0) for _ in range(5)] == [False] * 4 + [True]


def test_the_twentieth_failure_in_a_minute_shuts_strangers_out_for_a_minute() -> None:
    counters = admission()
    for second in range(19):
        counters.failed_key(HOME, float(second))
    counters.admit(HOME, ANONYMOUS, 18.0).release()
    counters.failed_key(HOME, 19.0)
    with pytest.raises(Unavailable, match="failed authentications") as refused:
        counters.admit(HOME, ANONYMOUS, 29.0)
    assert refused.value.retry_after_s == 50.0
    counters.admit(HOME, PEER, 29.0)
    counters.admit(ELSEWHERE, ANONYMOUS, 29.0)
    with pytest.raises(Unavailable):
        counters.admit(HOME, ANONYMOUS, 78.9)
    counters.admit(HOME, ANONYMOUS, 79.0)


def test_failures_older_than_a_minute_are_forgiven() -> None:
    counters = admission()
    for _ in range(19):
        counters.failed_key(HOME, 0.0)
    counters.failed_key(HOME, 60.0)
    assert not counters.is_shut_out(HOME, 60.0)


def test_failures_at_the_control_socket_shut_nobody_out() -> None:
    counters = admission()
    for _ in range(100):
        counters.failed_key(None, 0.0)
    assert not counters.is_shut_out(None, 0.0)


def test_sources_with_old_failures_are_forgotten() -> None:
    counters = admission()
    for n in range(5_000):
        counters.failed_key(f"source-{n}", float(n))
    assert len(counters._failures) <= 1_100


def test_counters_return_to_nothing() -> None:
    counters = admission()
    places = fill(counters, 3, HOME, ANONYMOUS) + fill(counters, 2, HOME, PEER)
    places[0].move_to(PEER)
    for place in places:
        place.release()
    assert counters.total == 0
    assert not counters._strangers_by_source
    assert not counters._by_identity
    assert not counters._handshakes_by_source
