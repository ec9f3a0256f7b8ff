"""A peer that has moved: plain packets go the short way again once its address is proven."""

from __future__ import annotations

from collections import Counter
from typing import cast

import pytest
from aioquic.quic.connection import QuicConnection, QuicNetworkPath
from aioquic.quic.packet_builder import QuicSentPacket

from alknet.core.limits import Limits
from alknet.core.quic.congestion import CongestionControl
from alknet.core.quic.hotpath.records import PlainPacket
from alknet.core.quic.status import transport_status
from tests.core.quic.sansio import CLIENT_ADDRESS, EnginePair, connected

ELSEWHERE = ("198.51.100.7", 9)
SOMEWHERE = ("198.51.100.8", 9)


def moved() -> tuple[EnginePair, int]:
    """A pair whose client was at another address before, with a stream of the client's."""
    pair = connected(Limits())
    stream_id = pair.dialer.open_stream(unidirectional=False)
    pair.dialer.send_stream_data(stream_id, b"here")
    pair.run()
    pair.client.address = ELSEWHERE
    pair.dialer.send_stream_data(stream_id, b" and there")
    pair.run(5)
    return pair, stream_id


@pytest.fixture
def rare(monkeypatch: pytest.MonkeyPatch) -> Counter[QuicConnection]:
    """Count the send passes that are aioquic's, by connection."""
    passes: Counter[QuicConnection] = Counter()
    original = QuicConnection.datagrams_to_send

    def counted(self: QuicConnection, now: float) -> object:
        passes[self] += 1
        return original(self, now)

    monkeypatch.setattr(QuicConnection, "datagrams_to_send", counted)
    return passes


def test_after_a_move_plain_packets_are_not_left_to_aioquic(
    rare: Counter[QuicConnection],
) -> None:
    pair, stream_id = moved()
    paths = pair.acceptor._network_paths
    assert [path.addr for path in paths][:1] == [ELSEWHERE]
    assert len(paths) == 2
    assert paths[0].is_validated
    rare.clear()
    for turn in range(5):
        pair.acceptor.send_stream_data(stream_id, bytes(2_000))
        pair.run(0.2)
        assert len(pair.client.received(stream_id)) == 2_000 * (turn + 1)
    assert not rare[pair.acceptor]


def _path(
    *, is_validated: bool = False, is_asked: bool = False, asks: bool = False
) -> QuicNetworkPath:
    path = QuicNetworkPath(SOMEWHERE, is_validated=is_validated)
    path.local_challenge_sent = is_asked
    path.bytes_received = 10_000
    if asks:
        path.remote_challenges.append(bytes(8))
    return path


# What a path is like, and whether there is anything to say on it.
PATHS = {
    "new": ({}, True),
    "asked": ({"is_asked": True}, False),
    "proven": ({"is_validated": True}, False),
    "that asks, proven": ({"is_validated": True, "asks": True}, True),
    "that asks, asked": ({"is_asked": True, "asks": True}, True),
}


@pytest.mark.parametrize("has_own_id", [True, False])
@pytest.mark.parametrize("name", PATHS)
def test_a_path_not_in_use_is_aioquics_while_it_has_something_to_say(
    name: str, *, has_own_id: bool
) -> None:
    pair, _ = moved()
    engine = pair.acceptor
    assert not engine._is_special()
    state, is_rare = PATHS[name]
    path = _path(**state)
    if has_own_id:
        path.peer_cid = engine._peer_cid_available[0]
        engine._peer_cid_available.clear()
    engine._network_paths.append(path)
    assert engine._is_special() is is_rare
    sent = [address for _, address in engine.datagrams_to_send(pair.now)]
    assert (SOMEWHERE in sent) is is_rare
    assert not engine._is_special()


def test_a_path_for_which_there_is_no_connection_id_keeps_nothing_from_the_short_way() -> None:
    pair, _ = moved()
    engine = pair.acceptor
    engine._peer_cid_available.clear()
    engine._network_paths.append(_path(asks=True))
    assert not engine._is_special()
    assert engine.datagrams_to_send(pair.now) == []


@pytest.mark.parametrize("address", [ELSEWHERE, (CLIENT_ADDRESS[0], 9)])
def test_what_was_measured_of_a_path_says_nothing_about_another(address: tuple[str, int]) -> None:
    pair = connected(Limits())
    engine = pair.acceptor
    stream_id = pair.dialer.open_stream(unidirectional=False)
    pair.dialer.send_stream_data(stream_id, b"here")
    pair.run(5)
    engine._loss._cc.congestion_window = 1_000_000
    engine._loss._rtt_min = engine._loss._rtt_smoothed = 0.7
    engine._congestion.packets_lost = 3
    pair.client.address = address
    for words in (b" and", b" there"):  # the first may be acknowledged before its path counts
        pair.dialer.send_stream_data(stream_id, words)
        pair.run(5)
    engine.send_stream_data(stream_id, b"so I see")
    pair.run(5)
    status = transport_status(engine, 0)
    assert status.packets_lost == 3
    assert status.in_flight_bytes == 0
    assert status.congestion_window_bytes is not None
    assert status.rtt_s is not None
    is_same_host = address[0] == CLIENT_ADDRESS[0]
    assert (status.congestion_window_bytes >= 1_000_000) is is_same_host
    assert (status.rtt_s > 0.1) is is_same_host
    engine.send_stream_data(stream_id, bytes(100_000))
    pair.run(5)
    assert len(pair.client.received(stream_id)) == len(b"so I see") + 100_000


def test_what_is_in_flight_when_a_peer_moves_says_nothing_about_its_new_path() -> None:
    old = CongestionControl(max_datagram_size=1_200)
    sent = PlainPacket(1, 5.0, 1_200, [])
    old.on_packet_sent(packet=cast(QuicSentPacket, sent))
    new = old.successor(1_200, 6.0)
    window = new.congestion_window
    assert new.bytes_in_flight == 1_200
    new.on_packets_lost(now=6.5, packets=[cast(QuicSentPacket, sent)])
    assert new.bytes_in_flight == 0
    assert new.congestion_window == window
