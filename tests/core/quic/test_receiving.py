"""Turns in receiving: who is known waits for a round at most, whatever others send."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from aioquic.quic.packet import QuicFrameType
from trio.testing import MockClock

from alknet.core.datagram import NetworkPath
from alknet.core.identity import Identity
from alknet.core.limits import Limits
from alknet.core.quic.connection import QuicConnection
from alknet.core.quic.endpoint import MAX_FIRED, QuicEndpoint
from alknet.core.quic.engine import COLD_UNITS, EVENT_UNITS, Engine
from alknet.core.quic.receiving import MAX_NEWCOMERS, ROUND_UNITS, STRAY_UNITS, TURN_UNITS
from benchmarks.attacks import initials, short_strays
from tests.core.quic.hostile import ROUND_TRIP, Attacker, attack, varint
from tests.core.quic.pairs import ALPN
from tests.core.quic.test_floods import PING, stream_frame
from tests.core.quic.worlds import exchange, world

STRANGER = ("203.0.113.5", 5_000)
FLOOD = 60
Batch = list[tuple[bytes, NetworkPath]]


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Engine, bytes]]]:
    """Note whose engine gets which datagram, in order."""
    got: list[tuple[Engine, bytes]] = []
    receive = Engine.receive_datagram

    def noting(engine: Engine, data: bytes, addr: NetworkPath, now: float) -> None:
        got.append((engine, data))
        receive(engine, data, addr, now)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "receive_datagram", noting)
        yield got


def from_other_ports(attacker: Attacker, count: int) -> Batch:
    """Packets that each go aioquic's own way."""
    return [(attacker.packet(PING), ("198.51.100.66", 6_000 + n)) for n in range(count)]


def written(dialer: QuicConnection, frames: bytes) -> tuple[bytes, NetworkPath]:
    """A packet of an honest client, with its address."""
    here = Attacker.__new__(Attacker)
    here.engine = dialer.engine
    return here.packet(frames), ("192.0.2.1", 49_152)


async def test_a_packet_behind_a_flood_is_handled_first(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with attack() as scene:
        await trio.sleep(1)
        endpoint, (dialer, acceptor) = scene.here.server.endpoint, scene.honest
        batch = [*from_other_ports(scene.attacker, FLOOD), written(dialer, PING)]
        with watched(monkeypatch) as got:
            endpoint._receive(batch)
            assert got[0][0] is acceptor.engine
            assert len(got) - 1 <= ROUND_UNITS / COLD_UNITS
            rounds = 0
            while endpoint._receiving.has_waiting:
                before = len(got)
                endpoint._receive_waiting()
                assert len(got) - before <= TURN_UNITS / COLD_UNITS + 1
                rounds += 1
        assert [data for _, data in got[1:]] == [data for data, _ in batch[:-1]]
        assert rounds >= (FLOOD - ROUND_UNITS / COLD_UNITS) / (TURN_UNITS / COLD_UNITS + 1)


async def test_a_packet_that_comes_while_a_flood_waits_is_handled_before_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with attack() as scene:
        await trio.sleep(1)
        endpoint, (dialer, acceptor) = scene.here.server.endpoint, scene.honest
        with watched(monkeypatch) as got:
            endpoint._receive(from_other_ports(scene.attacker, FLOOD))
            handled = len(got)
            endpoint._receive([*from_other_ports(scene.attacker, 20), written(dialer, PING)])
            assert [engine for engine, _ in got[handled:]] == [acceptor.engine]
        await trio.sleep(1)
        assert not endpoint._receiving.has_waiting


async def test_peers_are_handled_before_strangers(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with attack() as scene:
        await trio.sleep(1)
        endpoint, (dialer, acceptor) = scene.here.server.endpoint, scene.honest
        acceptor.become(Identity("peer:friend"))
        packets = [written(dialer, PING) for _ in range(3)]
        stranger = (scene.attacker.packet(PING), scene.attacker.socket.local_address)
        with watched(monkeypatch) as got:
            endpoint._receive([stranger, *packets])
        assert [engine for engine, _ in got] == [acceptor.engine] * 3 + [scene.far.engine]


async def test_streams_opened_and_reset_count_for_what_they_cost(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with attack() as scene, trio.open_nursery() as nursery:
        await trio.sleep(1)
        endpoint, source = scene.here.server.endpoint, scene.attacker.socket.local_address
        batch: Batch = []
        for number in range(FLOOD):
            scene.attacker.engine._get_or_create_stream_for_send(4 * number)
            reset = varint(QuicFrameType.RESET_STREAM, 4 * number, 7, 1)
            batch.append((scene.attacker.packet(stream_frame(4 * number, 0, b"x") + reset), source))
        with watched(monkeypatch) as got:
            endpoint._receive(batch)
            assert 4 <= len(got) <= ROUND_UNITS / (1 + EVENT_UNITS) + 1
        nursery.start_soon(_leave_all, scene.far)
        await trio.sleep(1)
        assert not endpoint._receiving.has_waiting
        nursery.cancel_scope.cancel()


async def _leave_all(connection: QuicConnection) -> None:
    while True:
        stream = await connection.accept_stream()
        stream.reset(0)
        await stream.aclose()


async def test_plain_packets_are_handled_by_the_batch(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with attack() as scene, trio.open_nursery() as nursery:
        await trio.sleep(1)
        endpoint, source = scene.here.server.endpoint, scene.attacker.socket.local_address
        scene.attacker.engine._get_or_create_stream_for_send(0)
        frames = [stream_frame(0, 10 * n, b"0123456789") for n in range(ROUND_UNITS - 10)]
        with watched(monkeypatch) as got:
            endpoint._receive([(scene.attacker.packet(frame), source) for frame in frames])
            assert len(got) == len(frames)
        assert not endpoint._receiving.has_waiting
        nursery.start_soon(_leave_all, scene.far)
        await trio.sleep(ROUND_TRIP)
        nursery.cancel_scope.cancel()


async def test_one_handshake_begins_between_two_looks_at_the_socket(
    autojump_clock: MockClock,
) -> None:
    async with world() as here:
        await here.connect()
        endpoint = here.server.endpoint
        endpoint._receive([(data, STRANGER) for data in initials(20, ALPN)])
        assert len(endpoint.connections) == 1
        for number in range(20):
            endpoint._receive_waiting()
            assert len(endpoint.connections) == 2 + number
        assert not endpoint._receiving.has_waiting


async def test_strays_are_looked_at_by_a_few(autojump_clock: MockClock) -> None:
    async with world() as here:
        honest = await here.connect()
        endpoint = here.server.endpoint
        _receive_strays(endpoint, 64)
        most = 0
        while endpoint._receiving.has_waiting:
            before = len(endpoint._receiving._inbox)
            endpoint._receive_waiting()
            most = max(most, before - len(endpoint._receiving._inbox))
        assert most == TURN_UNITS / STRAY_UNITS
        await exchange(*honest, b"unharmed")


def _receive_strays(endpoint: QuicEndpoint, count: int) -> None:
    endpoint._receive([(data, STRANGER) for data in short_strays()[:count]])


async def test_newcomers_wait_in_a_room_of_their_own(autojump_clock: MockClock) -> None:
    """A flood of them costs them their place, and no known connection its own."""
    async with world() as here:
        dialer, acceptor = await here.connect()
        endpoint = here.server.endpoint
        _receive_strays(endpoint, MAX_NEWCOMERS + 50)
        assert len(endpoint._receiving._inbox) == MAX_NEWCOMERS
        assert endpoint.counters["overrun"] == 50
        await exchange(dialer, acceptor, b"x" * 100_000)
        assert endpoint.counters["overrun"] == 50
        await here.connect()


async def test_nothing_waits_for_a_connection_that_has_ended(autojump_clock: MockClock) -> None:
    async with attack() as scene:
        await trio.sleep(1)
        endpoint = scene.here.server.endpoint
        endpoint._receive(from_other_ports(scene.attacker, FLOOD))
        assert endpoint._receiving.has_waiting
        endpoint.remove(scene.far)
        scene.far.on_abandoned()
        assert not endpoint._receiving.has_waiting


async def test_timers_that_come_due_together_fire_by_a_few(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a flood of handshakes do, which send their packets again."""
    async with world(limits=Limits(handshake_timeout_s=1.0)) as here:
        endpoint = here.server.endpoint
        data = initials(40, ALPN)
        endpoint._receive([(datagram, STRANGER) for datagram in data])
        for _ in data:
            endpoint._receive_waiting()
        fired: list[int] = []
        fire = endpoint._fire_due

        def noting() -> None:
            before = trio.current_time(), len(endpoint._timers)
            fire()
            fired.append(before[1] - len(endpoint._timers))

        with monkeypatch.context() as patch:
            patch.setattr(endpoint, "_fire_due", noting)
            await trio.sleep(20)
        assert len(fired) > len(data) / MAX_FIRED
        assert max(fired) <= MAX_FIRED
        assert endpoint.connections == ()
