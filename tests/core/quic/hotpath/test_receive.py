"""Receiving plain packets: the same as aioquic does, in less time.

`Twins` compare all state after each step; what is asserted here besides is which way was taken.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from aioquic.quic import events
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.logger import QuicLogger
from aioquic.quic.packet import NON_ACK_ELICITING_FRAME_TYPES, QuicErrorCode, QuicFrameType
from aioquic.quic.recovery import MAX_ACK_RANGES
from aioquic.tls import CipherSuite, Epoch
from hypothesis import given, settings
from hypothesis import strategies as st

from alknet.core.limits import Limits
from alknet.core.quic.bounds import MAX_IDLE_FRAMES
from alknet.core.quic.engine import Engine
from tests.core.quic.hostile import varint
from tests.core.quic.hotpath.differential import Duel, Traffic, Twins, Weather
from tests.core.quic.sansio import CLIENT_ADDRESS

PING = b"\x01"
SMALL = Limits(stream_receive_window_bytes=2_000, connection_receive_window_bytes=3_000)
# A packet number of four bytes: then any frames, none too, are long enough for a packet.
ANY_LENGTH = 0x43
SPIN = 0x20


def stream(stream_id: int, offset: int, data: bytes, kind: int = 0x0E) -> bytes:
    head = varint(kind, stream_id)
    if kind & 4:
        head += varint(offset)
    if kind & 2:
        head += varint(len(data))
    return head + data


def ready(limits: Limits | None = None, suite: CipherSuite | None = None) -> Duel:
    """A duel whose next packets are plain: streams 0, 2, 1 and 3 carry five bytes each."""
    duel = Duel(limits=limits, suite=suite or CipherSuite.AES_128_GCM_SHA256)
    for side, stream_ids in ((duel.client, (0, 2)), (duel.server, (1, 3))):
        # No packet number is left out, by chance: tests acknowledge packets by their numbers.
        side.set(lambda engine: setattr(engine, "_skip_at", 1 << 40))
        for stream_id in stream_ids:
            opened = side.do(
                lambda engine, i=stream_id: engine.open_stream(unidirectional=bool(i & 2))  # type: ignore[misc]
            )
            assert opened == stream_id
            side.do(lambda engine, i=opened: engine.send_stream_data(i, b"hello"))  # type: ignore[misc]
    duel.run(0.1)
    return duel


@cache
def _ready() -> Duel:
    return ready()


def forked() -> Duel:
    """`ready`, made once."""
    duel = Duel.__new__(Duel)
    duel.__dict__ |= _ready().__dict__
    duel.client, duel.server = duel.client.fork(), duel.server.fork()
    return duel


def is_short(side: Twins, act: Callable[[], object]) -> bool:
    """Do *act*; return whether *side* then took the short way."""
    before = side.hot._hot_inbound
    act()
    return before is not None and side.hot._hot_inbound is before


def hear(duel: Duel, side: Twins, frames: bytes, **header: int) -> bool:
    """Let *side* receive exactly these frames; return whether the short way was taken."""
    data = duel.other(side).seal(frames, **{"first": ANY_LENGTH, **header})
    return is_short(side, lambda: duel.deliver(data, side))


# what is plain


@pytest.mark.parametrize("suite", list(CipherSuite)[:3])
def test_every_suite_has_its_short_way(suite: CipherSuite) -> None:
    duel = ready(suite=suite)
    assert duel.client.plain.tls.key_schedule.cipher_suite is suite  # type: ignore[union-attr]
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
    old = _ready().server.fork()
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


# header protection, packet numbers, keys


@pytest.mark.parametrize("first", [0x41 | 0x10, 0x41 | 0x08, 0x41 | 0x18])
def test_reserved_bits_close(first: int) -> None:
    duel = forked()
    assert not hear(duel, duel.server, PING + bytes(3), first=first)
    assert duel.server.plain.close_event is not None
    assert duel.server.plain.close_event.error_code == QuicErrorCode.PROTOCOL_VIOLATION


def test_a_packet_without_the_fixed_bit_is_dropped() -> None:
    duel = forked()
    assert not hear(duel, duel.server, stream(0, 5, b"more"), first=0x01)
    assert duel.server.received(0) == b"hello"


NUMBERS = [
    (expected, number)
    for expected, numbers in {
        100: (101, 226, 227, 228, 229, 50, 0),
        1000: (1001, 1000 + 127, 1000 + 128, 1000 + 129, 1000 - 127, 1000 - 128, 1000 - 129),
        255: (255, 256, 257, 383, 384, 127),
        256: (255, 256, 257, 383, 384, 385, 128, 129),
        65_535: (65_535, 65_536, 65_537, 65_535 + 32_767, 65_535 + 32_768),
        65_536: (65_536, 65_536 + 32_767, 65_536 + 32_768, 65_536 + 32_769, 65_535, 65_440),
        2**24 + 7: (2**24 + 8, 2**24 - 1, 2**24 + 2**23, 2**25 + 2**23),
        2**32 - 1: (2**32 - 1, 2**32, 2**32 + 2**31 - 2, 2**32 + 2**31),
        2**62 - 200: (2**62 - 199, 2**62 - 73, 2**62 - 72, 2**62 - 71, 2**62 - 1),
        2**62 - 300: (2**62 - 257, 2**62 - 256, 2**62 - 255, 2**62 - 172, 2**62 - 171),
    }.items()
    for number in numbers
]


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_packet_numbers_are_recovered_alike(length: int) -> None:
    start = _ready().server
    duel = forked()
    for expected, number in NUMBERS:
        duel.server = start.fork()
        duel.server.set(lambda e, n=expected: _expect(e, n))  # type: ignore[misc]
        hear(duel, duel.server, stream(0, 5, b"more"), first=0x40 | length - 1, number=number)


def _expect(engine: Engine, number: int) -> None:
    space = engine._spaces[Epoch.ONE_RTT]
    space.expected_packet_number = number
    space.received_packets._lower = 0


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_the_next_number_is_understood_in_any_length(length: int) -> None:
    duel = forked()
    assert hear(duel, duel.server, stream(0, 5, b"more"), first=0x40 | length - 1)
    assert duel.server.received(0) == b"hellomore"


@pytest.mark.parametrize("place", [0, 9, 11, 13, 29, -1])
def test_a_broken_packet_is_dropped_without_a_trace(place: int) -> None:
    duel = forked()
    data = bytearray(duel.client.seal(stream(0, 5, b"more" * 10), first=ANY_LENGTH))
    data[place] ^= 1
    received = duel.server.plain.packets_received
    duel.deliver(bytes(data), duel.server)
    assert duel.server.plain.packets_received == duel.server.hot.packets_received == received
    assert duel.server.received(0) == b"hello"


def test_duplicates_are_dropped() -> None:
    duel = forked()
    data = duel.client.seal(stream(0, 5, b"more"))
    duel.deliver(data, duel.server)
    received = duel.server.hot.packets_received
    assert is_short(duel.server, lambda: duel.deliver(data, duel.server))
    assert duel.server.hot.packets_received == received


def test_a_packet_older_than_the_window_is_dropped() -> None:
    duel = forked()
    base = duel.server.plain._spaces[Epoch.ONE_RTT].largest_received_packet
    assert hear(duel, duel.server, PING, number=base + 300)
    received = duel.server.hot.packets_received
    assert hear(duel, duel.server, PING, number=base + 300 - 128)
    assert duel.server.hot.packets_received == received
    assert hear(duel, duel.server, PING, number=base + 300 - 127)
    assert duel.server.hot.packets_received == received + 1


@pytest.mark.parametrize("count", [255, 256, 257, 300])
def test_the_window_of_duplicates_is_pruned_alike(count: int) -> None:
    duel = forked()
    base = duel.server.plain._spaces[Epoch.ONE_RTT].largest_received_packet + 1
    known = set(range(base, base + count))

    def fill(engine: Engine) -> None:
        engine._spaces[Epoch.ONE_RTT].received_packets._received = set(known)

    duel.server.set(fill)
    hear(duel, duel.server, PING, number=base + count)
    left = len(duel.server.hot._spaces[Epoch.ONE_RTT].received_packets._received)
    assert left == (count + 1 if count < 256 else 128)


def test_gaps_are_acknowledged_alike() -> None:
    duel = forked()
    base = duel.client.plain._packet_number
    for step in (0, 2, 1, 5, 4, 9, 7, 3, 8, 20):
        assert hear(duel, duel.server, PING, number=base + step)
        duel.now += 0.001
    space = duel.server.plain._spaces[Epoch.ONE_RTT]
    stops = [r.stop for r in space.ack_queue]
    assert stops[-3:] == [base + 6, base + 10, base + 21]


def test_what_is_acknowledged_is_bounded() -> None:
    duel = forked()
    base = duel.client.plain._packet_number + 10
    ranges = [range(base + 2 * n, base + 2 * n + 1) for n in range(MAX_ACK_RANGES - 2)]

    def fill(engine: Engine) -> None:
        for part in ranges:
            engine._spaces[Epoch.ONE_RTT].ack_queue.add(part.start, part.stop)

    duel.server.set(fill)
    for step in range(4):
        assert hear(duel, duel.server, PING, number=base + 200 + 2 * step)
        assert len(duel.server.hot._spaces[Epoch.ONE_RTT].ack_queue) <= MAX_ACK_RANGES
    assert len(duel.server.hot._spaces[Epoch.ONE_RTT].ack_queue) == MAX_ACK_RANGES


def test_the_first_packet_after_all_was_acknowledged_is_recorded() -> None:
    duel = forked()
    duel.server.set(lambda e: e._spaces[Epoch.ONE_RTT].ack_queue.subtract(0, 2**40))
    assert hear(duel, duel.server, PING)
    assert len(duel.server.hot._spaces[Epoch.ONE_RTT].ack_queue) == 1


@pytest.mark.parametrize("name", ["client", "server"])
def test_the_spin_bit_follows_the_newest_packet(name: str) -> None:
    duel = forked()
    side = getattr(duel, name)
    base = duel.other(side).plain._packet_number
    seen = set()
    for number, spin in ((2, SPIN), (1, 0), (2, 0), (3, 0), (4, SPIN), (5, SPIN), (6, 0)):
        assert hear(duel, side, PING, number=base + number, first=ANY_LENGTH | spin)
        seen.add(side.hot._spin_bit)
    assert seen == {False, True}


def test_packet_zero_does_not_turn_the_spin_bit_that_nothing_has_set() -> None:
    duel = forked()
    duel.server.set(lambda e: setattr(e, "_spin_highest_pn", 0))
    assert hear(duel, duel.server, PING, number=0, first=ANY_LENGTH | SPIN)
    assert not duel.server.hot._spin_bit


def test_a_peer_that_is_closed_for_its_frames_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    duel = forked()
    logger = duel.server.plain._logger.logger
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level("WARNING", logger.name)  # commands that ran before have silenced it
    hear(duel, duel.server, varint(0x1F))
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


@pytest.mark.parametrize("name", ["client", "server"])
def test_keys_are_updated_by_the_long_way(name: str) -> None:
    duel = forked()
    side = getattr(duel, name)
    sender = duel.other(side)
    frames = stream(1 if name == "client" else 0, 5, b"more")
    old = sender.seal(frames)
    sender.do(lambda engine: engine.request_key_update())
    sender.do(lambda engine: engine.send_ping(1))
    for data, _ in sender.send(duel.now):
        assert not is_short(side, lambda d=data: duel.deliver(d, side))  # type: ignore[misc]
    assert side.hot._cryptos[Epoch.ONE_RTT].recv.key_phase == 1
    assert hear(duel, side, PING)
    duel.deliver(old, side)  # of the old phase, too late: aioquic drops it
    assert hear(duel, side, PING) or hear(duel, side, PING)


def test_a_key_update_of_ours_makes_the_next_packet_rare() -> None:
    duel = forked()
    old = duel.client.seal(stream(0, 5, b"more"))
    duel.server.do(lambda engine: engine.request_key_update())
    duel.server.do(lambda engine: engine.send_ping(1))
    duel.server.send(duel.now)
    assert not is_short(duel.server, lambda: duel.deliver(old, duel.server))


# streams


@pytest.mark.parametrize("kind", range(8, 16))
@pytest.mark.parametrize("offset", [0, 4, 5, 6])
@pytest.mark.parametrize("data", [b"", b"some more data" * 30])
def test_stream_frames_are_taken_alike(kind: int, offset: int, data: bytes) -> None:
    duel = forked()
    assert hear(duel, duel.server, stream(0, offset, data, kind))
    hear(duel, duel.server, stream(0, 5, b"filling the gap"))
    hear(duel, duel.server, stream(0, 20, b"after it", 0x0F))
    hear(duel, duel.server, stream(0, 28, b"beyond the end"))


@pytest.mark.parametrize("fin", [0, 1])
def test_bytes_in_order_become_an_event(fin: int) -> None:
    duel = forked()
    assert hear(duel, duel.server, stream(0, 5, b"more", 0x0E | fin))
    event = duel.server.seen[-1]
    assert event == events.StreamDataReceived(b"more", bool(fin), 0)
    assert isinstance(event, events.StreamDataReceived)
    assert type(event.end_stream) is bool
    receiver = duel.server.hot._streams[0].receiver
    assert receiver.is_finished == bool(fin)
    assert (duel.server.hot._hot_ended[-1:] == [duel.server.hot._streams[0]]) == bool(fin)


@pytest.mark.parametrize("kind", range(8, 16))
@pytest.mark.parametrize("length", [1, 63, 64, 1000])
def test_bytes_in_order_are_not_left_to_aioquic(kind: int, length: int) -> None:
    duel = forked()
    far = duel.server.fork()
    for stream_id, offset in ((0, 5), (64, 0), (64, 100), (0, 20_000), (0, 2**31)):
        duel.server = far.fork()
        duel.server.set(lambda e, i=stream_id, at=offset: _begin(e, i, at))  # type: ignore[misc]
        left = duel.server.watch()
        hear(duel, duel.server, stream(stream_id, offset, bytes(length), kind))
        assert (left == []) == (bool(kind & 4) or offset == 0)


def _begin(engine: Engine, stream_id: int, offset: int) -> None:
    known = engine._get_or_create_stream(0x08, stream_id)
    known.receiver.highest_offset = known.receiver._buffer_start = offset
    known.max_stream_data_local = engine._local_max_data.value = 2**40


def test_the_last_byte_of_a_window_is_not_left_to_aioquic() -> None:
    for name in ("stream", "connection"):
        duel = forked()
        if name == "stream":
            duel.server.set(lambda e: setattr(e._streams[0], "max_stream_data_local", 15))
        else:
            duel.server.set(lambda e: setattr(e._local_max_data, "value", 20))
        left = duel.server.watch()
        hear(duel, duel.server, stream(0, 5, bytes(10)) + bytes(3) + stream(0, 15, b"x"))
        assert left == [0x0E]


def test_padding_and_acknowledgements_are_not_left_to_aioquic() -> None:
    duel = forked()
    left = duel.server.watch()
    hear(duel, duel.server, bytes(5) + varint(2, 4, 0, 0, 0) + bytes(5) + PING)
    assert left == [1]


def test_packets_in_order_need_no_search_for_their_place() -> None:
    duel = forked()

    def refuse(*_: object) -> None:
        raise AssertionError("searched")

    duel.server.hot._spaces[Epoch.ONE_RTT].ack_queue.add = refuse  # type: ignore[method-assign, assignment]
    hear(duel, duel.server, PING)
    hear(duel, duel.server, PING)
    with pytest.raises(AssertionError):
        hear(duel, duel.server, PING, number=duel.client.plain._packet_number + 1)


def test_bytes_after_a_gap_wait_for_it() -> None:
    duel = forked()
    hear(duel, duel.server, stream(0, 7, b"world"))
    hear(duel, duel.server, stream(0, 12, b"!", 0x0F))
    hear(duel, duel.server, stream(0, 5, b", "))
    assert duel.server.received(0) == b"hello, world!"


@pytest.mark.parametrize("stream_id", [0, 1, 2, 3, 4, 6, 5, 7, 400, 4_000, 70_000, 2**30, 2**61])
@pytest.mark.parametrize("name", ["client", "server"])
def test_streams_of_all_kinds_are_treated_alike(name: str, stream_id: int) -> None:
    duel = forked()
    side = getattr(duel, name)
    assert hear(duel, side, stream(stream_id, 5, b"more"))


@pytest.mark.parametrize("limits", [{"stream": 20}, {"connection": 30}, {"stream": 16}, {}])
@pytest.mark.parametrize("length", [10, 11, 14, 15, 16])
def test_windows_are_kept_alike(limits: dict[str, int], length: int) -> None:
    duel = forked()

    def shrink(engine: Engine) -> None:
        engine._streams[0].max_stream_data_local = limits.get("stream", 1000)
        engine._local_max_data.value = limits.get("connection", 1000)
        assert engine._local_max_data.used == 10

    duel.server.set(shrink)
    hear(duel, duel.server, stream(0, 5, bytes(length)))
    hear(duel, duel.server, stream(2, 5, bytes(10)))


def test_a_window_can_be_filled_to_the_last_byte_the_short_way() -> None:
    duel = forked()
    duel.server.set(lambda e: setattr(e._local_max_data, "value", 20))
    duel.server.set(lambda e: setattr(e._streams[0], "max_stream_data_local", 15))
    assert hear(duel, duel.server, stream(0, 5, bytes(10)))
    assert duel.server.plain.close_event is None
    assert duel.server.received(0) == b"hello" + bytes(10)


@pytest.mark.parametrize("gap", [0, 100])
@pytest.mark.parametrize("code", ["reset", "fin", "forgotten", "stopped"])
def test_streams_that_are_over_are_treated_alike(code: str, gap: int) -> None:
    duel = forked()
    if code == "reset":
        hear(duel, duel.server, varint(QuicFrameType.RESET_STREAM, 0, 7, 5 + gap))
    elif code == "fin":
        hear(duel, duel.server, stream(0, 5 + gap, b"", 0x0F))
    elif code == "stopped":
        duel.server.do(lambda engine: engine.stop_receiving(0, 1))
    else:
        duel.server.set(lambda engine: engine._streams.pop(0))
    assert hear(duel, duel.server, stream(0, 5, b"more"))
    hear(duel, duel.server, stream(0, 5, b"more") + PING)


@pytest.mark.parametrize("offset", [63, 64, 16_383, 16_384, 70_000, 2**30 - 1, 2**30, 2**40])
def test_offsets_of_all_sizes_are_understood(offset: int) -> None:
    duel = forked()

    def far(engine: Engine) -> None:
        known = engine._streams[0]
        known.max_stream_data_local = engine._local_max_data.value = 2**50
        known.receiver.highest_offset = known.receiver._buffer_start = offset

    duel.server.set(far)
    for length in (1, 63, 64, 65, 200, 1000):
        at = duel.server.plain._streams[0].receiver.highest_offset
        assert hear(duel, duel.server, stream(0, at, bytes(length)) + stream(0, at + length, b"x"))
    assert duel.server.plain._streams[0].receiver.highest_offset == offset + 1399


def test_a_length_of_four_or_eight_bytes_is_understood() -> None:
    for length in (b"\x80\x00\x00\x04", b"\xc0" + bytes(6) + b"\x04"):
        duel = forked()
        assert hear(duel, duel.server, b"\x0e\x00\x05" + length + b"more" + PING)
        assert duel.server.received(0) == b"hellomore"


# other frames

FRAMES = {
    "ack": varint(2, 3, 10, 0, 1),
    "ack of two ranges": varint(2, 5, 1000, 1, 0, 1, 1),
    "ack with counts": varint(3, 3, 10, 0, 1, 1, 2, 100_000),
    "stream with all": stream(0, 5, b"more", 0x0F),
    "stream of a large offset": stream(0, 70_000, b"x"),
    "stream of another": stream(400, 0, b"more than that" * 10),
    "stream to the end": stream(0, 5, b"more", 0x0C),
    "crypto": varint(6, 70, 4) + b"more",
    "reset stream": varint(4, 0, 7, 5),
    "stop sending": varint(5, 0, 7),
    "new token": varint(7, 3) + b"tok",
    "max data": varint(0x10, 2**30),
    "max stream data": varint(0x11, 0, 2**30),
    "max streams": varint(0x12, 1000),
    "max streams, one way": varint(0x13, 1000),
    "data blocked": varint(0x14, 1000),
    "stream data blocked": varint(0x15, 0, 1000),
    "streams blocked": varint(0x16, 1000),
    "streams blocked, one way": varint(0x17, 1000),
    "new connection id": varint(0x18, 8, 1) + b"\x08" + bytes(24),
    "retire connection id": varint(0x19, 1),
    "path challenge": b"\x1a" + bytes(8),
    "path response": b"\x1b" + bytes(8),
    "transport close": varint(0x1C, 1, 2, 3) + b"why",
    "application close": varint(0x1D, 1, 3) + b"why",
    "handshake done": b"\x1e",
    "datagram": varint(0x31, 4) + b"data",
    "datagram to the end": b"\x30data",
    "padding": bytes(3),
    "ping": PING,
    "unknown": varint(0x1F),
    "unknown, long": varint(0x4000),
    "ping in two bytes": b"\x40\x01",
    "stream in two bytes": b"\x40" + stream(0, 5, b"more"),
    "padding in two bytes": b"\x40\x00",
}


@pytest.mark.parametrize("name", ["client", "server"])
@pytest.mark.parametrize("kind", FRAMES)
def test_frames_are_handled_alike_whole_and_cut_short(kind: str, name: str) -> None:
    frame = FRAMES[kind]
    for length in {1, 2, 3, 4, 6, 9, len(frame) // 2, len(frame) - 1, len(frame)}:
        if not 0 < length <= len(frame):
            continue
        duel = forked()
        side = getattr(duel, name)
        short = hear(duel, side, frame[:length])
        assert short or frame[0] == QuicFrameType.RETIRE_CONNECTION_ID
        if length == len(frame):
            hear(duel, side, stream(0, 5, b"after") + PING)


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_before_and_after_others_are_handled_alike(kind: str) -> None:
    duel = forked()
    hear(duel, duel.server, FRAMES[kind] + stream(0, 5, b"more") + FRAMES[kind])
    duel = forked()
    hear(duel, duel.client, bytes(2) + PING + stream(1, 5, b"more") + bytes(1) + FRAMES[kind])


def test_every_frame_may_come_in_a_plain_packet() -> None:
    """The short way does not look: aioquic allows them all."""
    table = _ready().server.plain.__dict__["_QuicConnection__frame_handlers"]._table
    assert len(table) == 33
    assert all(Epoch.ONE_RTT in epochs for _, epochs in table.values())


@pytest.mark.parametrize("kind", FRAMES)
def test_what_elicits_an_acknowledgement_is_told_alike(kind: str) -> None:
    frame = FRAMES[kind]
    duel = forked()
    duel.server.set(lambda e: setattr(e._spaces[Epoch.ONE_RTT], "ack_at", None))
    hear(duel, duel.server, frame)
    space = duel.server.hot._spaces[Epoch.ONE_RTT]
    if duel.server.plain.close_event is None and len(varint(frame[0])) == 1:
        assert (space.ack_at is None) == (frame[0] in NON_ACK_ELICITING_FRAME_TYPES)


def test_an_acknowledgement_is_due_from_the_first_packet_that_elicits_it() -> None:
    duel = forked()
    duel.server.set(lambda e: setattr(e._spaces[Epoch.ONE_RTT], "ack_at", None))
    duel.server.set(lambda e: setattr(e, "_ack_delay", 0.007))
    duel.now += 1
    hear(duel, duel.server, PING)
    due = duel.server.hot._spaces[Epoch.ONE_RTT].ack_at
    assert due == duel.now + 0.007
    duel.now += 0.001
    hear(duel, duel.server, PING)
    assert duel.server.hot._spaces[Epoch.ONE_RTT].ack_at == due


def test_frames_without_data_are_counted_alike() -> None:
    for frame in (PING, varint(2, 0, 0, 0, 0), stream(0, 5, b""), stream(0, 0, b"hello")):
        for count in (MAX_IDLE_FRAMES, MAX_IDLE_FRAMES + 1):
            duel = forked()
            assert hear(duel, duel.server, frame * count)
            counts = frame != stream(0, 0, b"hello")
            closed = duel.server.plain.close_event is not None
            assert closed == (counts and count > MAX_IDLE_FRAMES)
            hear(duel, duel.server, frame * 2)


def test_a_packet_after_our_close_is_not_read() -> None:
    duel = forked()
    duel.server.do(lambda engine: engine.close(error_code=7))
    assert not hear(duel, duel.server, stream(0, 5, b"more"))
    assert duel.server.received(0) == b"hello"
    duel.server.send(duel.now)
    assert not hear(duel, duel.server, stream(0, 5, b"more"))
    assert duel.server.hot._hot_inbound is None


def test_the_peers_close_ends_the_packet_alike() -> None:
    duel = forked()
    closing = duel.server.plain._close_at
    hear(duel, duel.server, FRAMES["application close"] + stream(0, 5, b"more"))
    assert duel.server.received(0) == b"hellomore"
    assert duel.server.plain._close_at != closing
    hear(duel, duel.server, stream(0, 9, b"more"))
    assert duel.server.received(0) == b"hellomore"


def test_a_stateless_reset_ends_the_short_way() -> None:
    duel = forked()
    duel.server.do(lambda engine: engine.on_stateless_reset(duel.now))
    hear(duel, duel.server, stream(0, 5, b"more"))
    assert duel.server.received(0) == b"hello"


# the idle time-out


def test_the_idle_timeout_starts_anew_with_each_packet() -> None:
    duel = forked()
    duel.server.set(lambda e: setattr(e, "_ack_eliciting_sent_since_receipt", True))
    duel.now += 5
    assert hear(duel, duel.server, PING)
    assert duel.server.hot._close_at == duel.now + Limits().idle_timeout_s
    assert not duel.server.hot._ack_eliciting_sent_since_receipt


@pytest.mark.parametrize("fields", [("_rtt_smoothed",), ("_rtt_variance",)])
@pytest.mark.parametrize("value", [0.0001, 9.9, 10.0, 25.0])
def test_the_idle_timeout_follows_the_round_trip(fields: tuple[str, ...], value: float) -> None:
    duel = forked()
    hear(duel, duel.server, PING)
    for field in fields:
        duel.server.set(lambda e, f=field: setattr(e._loss, f, value))  # type: ignore[misc]
    assert hear(duel, duel.server, PING)


@pytest.mark.parametrize("theirs", [None, 0.0, 5.0, 29.0, 31.0])
def test_the_idle_timeout_is_the_smaller_of_both(theirs: float | None) -> None:
    duel = forked()
    duel.server.set(lambda e: setattr(e, "_remote_max_idle_timeout", theirs))
    duel.server.hot._hot_inbound = None
    hear(duel, duel.server, PING)
    assert hear(duel, duel.server, PING)
    wanted = min(theirs or 30.0, 30.0)
    assert duel.server.hot._close_at == duel.now + wanted


# anything

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
