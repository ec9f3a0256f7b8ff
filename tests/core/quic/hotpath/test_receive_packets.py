"""Header protection, packet numbers and keys of received packets: the same as aioquic does."""

from __future__ import annotations

import pytest
from aioquic.quic.packet import QuicErrorCode
from aioquic.quic.recovery import MAX_ACK_RANGES
from aioquic.tls import Epoch

from alknet.core.quic.engine import Engine
from tests.core.quic.hostile import varint
from tests.core.quic.hotpath.duels import (
    ANY_LENGTH,
    PING,
    forked,
    hear,
    is_short,
    ready_once,
    stream,
)

SPIN = 0x20


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
        2**62 - 50: (2**62 - 251, 2**62 - 2**16 + 3, 2**62 - 2**24 + 3, 2**62 - 2**32 + 3),
        2**62 - 300: (2**62 - 257, 2**62 - 256, 2**62 - 255, 2**62 - 172, 2**62 - 171),
    }.items()
    for number in numbers
]


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_packet_numbers_are_recovered_alike(length: int) -> None:
    start = ready_once().server
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
