"""Which received packets take the short way, and what both ways do alike.

`Twins` compare all state after each step; what is asserted here besides is which way was taken.
"""

from __future__ import annotations

import pytest
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.logger import QuicLogger
from aioquic.quic.packet import QuicFrameType
from aioquic.tls import CipherSuite, Epoch

from alknet.core.quic.engine import Engine
from tests.core.quic.hostile import varint
from tests.core.quic.hotpath.duels import (
    ANY_LENGTH,
    FRAMES,
    PING,
    forked,
    hear,
    is_short,
    ready,
    ready_once,
    stream,
)
from tests.core.quic.sansio import CLIENT_ADDRESS


@pytest.mark.parametrize("suite", list(CipherSuite)[:3])
def test_every_suite_has_its_short_way(suite: CipherSuite) -> None:
    duel = ready(suite=suite)
    assert duel.client.plain._cryptos[Epoch.ONE_RTT].send.cipher_suite is suite
    assert hear(duel, duel.server, stream(0, 5, b"more"))
    assert hear(duel, duel.client, stream(1, 5, b"more"))
    assert duel.server.received(0) == b"hellomore"
    assert duel.client.received(1) == b"hellomore"


def test_engines_take_the_short_way_unless_told_otherwise() -> None:
    assert Engine.is_hot


def test_nothing_is_plain_before_the_handshake_is_confirmed() -> None:
    duel = forked()
    duel.client.set(lambda engine: setattr(engine, "_handshake_confirmed", False))
    duel.client.hot._hot_inbound = None
    hear(duel, duel.client, PING)
    assert duel.client.hot._hot_inbound is None


def test_an_engine_that_is_not_hot_takes_the_long_way() -> None:
    duel = forked()
    duel.server._receives = False
    assert not hear(duel, duel.server, PING)
    assert duel.server.hot._hot_inbound is None


def test_a_connection_that_is_logged_takes_the_long_way() -> None:
    duel = forked()
    logs = []
    for engine in (duel.server.plain, duel.server.hot):
        logs.append(QuicLogger().start_trace(is_client=False, odcid=b""))
        engine._quic_logger = engine._loss._quic_logger = logs[-1]
    assert not hear(duel, duel.server, PING)
    plain, hot = ([entry["name"] for entry in log.to_dict()["events"]] for log in logs)
    assert plain == hot
    assert "transport:packet_received" in hot


def test_a_packet_for_another_connection_id_of_ours_takes_the_long_way_once() -> None:
    duel = forked()
    before = duel.server.plain.host_cid
    old = duel.client.seal(stream(0, 5, b"old"))
    duel.client.do(lambda engine: engine.change_connection_id())
    assert not hear(duel, duel.server, PING)
    assert duel.server.plain.host_cid != before
    assert hear(duel, duel.server, PING)
    assert not is_short(duel.server, lambda: duel.deliver(old, duel.server))
    assert duel.server.received(0) == b"helloold"


def test_a_packet_that_only_probes_does_not_choose_the_connection_id() -> None:
    duel = forked()
    before = duel.server.plain.host_cid
    duel.client.do(lambda engine: engine.change_connection_id())
    hear(duel, duel.server, FRAMES["path challenge"])
    assert duel.server.hot._hot_inbound is None
    assert duel.server.plain.host_cid == before
    hear(duel, duel.server, PING)
    assert duel.server.plain.host_cid != before


def test_a_client_takes_any_of_its_connection_ids_the_short_way() -> None:
    duel = forked()
    duel.server.do(lambda engine: engine.change_connection_id())
    assert not hear(duel, duel.client, PING)
    assert hear(duel, duel.client, PING)


@pytest.mark.parametrize("name", ["client", "server"])
def test_an_unknown_connection_id_is_dropped_by_the_long_way(name: str) -> None:
    duel = forked()
    side = getattr(duel, name)
    sender = duel.other(side)
    sender.set(lambda engine: setattr(engine._peer_cid, "cid", b"12345678"))
    received = side.plain.packets_received
    assert not hear(duel, side, PING)
    assert side.hot._hot_inbound is None
    assert side.plain.packets_received == received


def test_a_retired_connection_id_is_no_longer_plain() -> None:
    duel = forked()
    duel.server.do(lambda engine: engine.change_connection_id())
    hear(duel, duel.client, PING)
    old = ready_once().server.fork()
    old.set(lambda engine: setattr(engine, "_packet_number", 100))
    assert not hear(duel, duel.client, varint(QuicFrameType.RETIRE_CONNECTION_ID, 0))
    assert duel.client.hot._hot_inbound is None
    received = duel.client.plain.packets_received
    duel.deliver(old.seal(PING, first=ANY_LENGTH), duel.client)
    assert duel.client.plain.packets_received == received


def test_a_packet_from_another_address_takes_the_long_way() -> None:
    duel = forked()
    data = [duel.client.seal(stream(0, 5 + n, b"x")) for n in range(2)]
    for packet in data:
        duel.server.receive(packet, ("203.0.113.1", 1), duel.now)
        assert duel.server.hot._hot_inbound is None
    path = duel.server.plain._network_paths[0]
    assert path.addr == ("203.0.113.1", 1)
    assert path.bytes_received == len(data[0]) + len(data[1])


def test_a_moved_peer_comes_back_to_the_short_way_once_its_address_is_proven() -> None:
    duel = forked()
    duel.server.receive(duel.client.seal(PING, first=ANY_LENGTH), ("203.0.113.1", 1), duel.now)
    duel.server.set(lambda engine: setattr(engine._network_paths[0], "is_validated", True))
    duel.server.receive(duel.client.seal(PING, first=ANY_LENGTH), ("203.0.113.1", 1), duel.now)
    inbound = duel.server.hot._hot_inbound
    assert inbound is not None
    duel.server.receive(duel.client.seal(stream(0, 5, b"x")), ("203.0.113.1", 1), duel.now)
    assert duel.server.hot._hot_inbound is inbound
    assert not hear(duel, duel.server, PING)  # from where it was before
    assert duel.server.plain._network_paths[0].addr == CLIENT_ADDRESS


def test_a_client_drops_what_comes_from_elsewhere() -> None:
    duel = forked()
    data = duel.server.seal(stream(1, 5, b"more"))
    duel.client.receive(data, ("203.0.113.1", 1), duel.now)
    assert duel.client.received(1) == b"hello"


def test_zero_rtt_keys_are_torn_down_by_the_long_way() -> None:
    duel = forked()
    for engine in (duel.server.plain, duel.server.hot):
        receiving = engine._cryptos[Epoch.ONE_RTT].recv
        assert receiving.cipher_suite is not None
        assert receiving.secret is not None
        engine._cryptos[Epoch.ZERO_RTT] = CryptoPair()
        engine._cryptos[Epoch.ZERO_RTT].recv.setup(
            cipher_suite=receiving.cipher_suite, secret=receiving.secret, version=1
        )
    duel.server.hot._hot_inbound = None
    broken = bytearray(duel.client.seal(PING, first=ANY_LENGTH))
    broken[-1] ^= 1
    duel.deliver(bytes(broken), duel.server)
    inbounds = [duel.server.hot._hot_inbound]
    hear(duel, duel.server, PING)
    inbounds.append(duel.server.hot._hot_inbound)
    assert [inbound is None for inbound in inbounds] == [True, False]
    assert not duel.server.hot._cryptos[Epoch.ZERO_RTT].recv.is_valid()


def test_nothing_is_plain_before_the_round_trip_is_known() -> None:
    duel = forked()
    duel.server.set(lambda engine: setattr(engine._loss, "_rtt_initialized", False))
    duel.server.hot._hot_inbound = None
    hear(duel, duel.server, PING)
    assert duel.server.hot._hot_inbound is None


def test_a_long_header_takes_the_long_way() -> None:
    duel = forked()
    inbound = duel.server.hot._hot_inbound
    assert inbound is not None
    data = b"\xc3" + inbound.cid + bytes(100)
    assert not is_short(duel.server, lambda: duel.deliver(data, duel.server))


@pytest.mark.parametrize("length", [*range(12), 20, 27, 28, 29, 30])
def test_short_datagrams_are_no_packets(length: int) -> None:
    duel = forked()
    data = duel.client.seal(b"", first=ANY_LENGTH)
    assert len(data) == 29
    short = (data + bytes(10))[:length]
    assert is_short(duel.server, lambda: duel.deliver(short, duel.server)) == (length >= 29)
    assert (duel.server.plain.close_event is not None) == (length == 29)  # it holds no frames
