"""Floods that keep within every limit: what they cost in passes, packets, tasks and memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from aioquic.quic.packet import QuicFrameType
from trio.testing import MockClock

from alknet.core.datagram import MAX_BATCH
from alknet.core.limits import Limits
from alknet.core.quic.connection import QuicConnection
from alknet.core.quic.endpoint import QuicEndpoint
from benchmarks.attacks import initials, short_strays
from tests.core.quic.hostile import ROUND_TRIP, Scene, attack, varint
from tests.core.quic.pairs import ALPN
from tests.core.quic.test_floods import PING, ack, stream_frame
from tests.core.quic.worlds import exchange, world

MANY = 1_000
FEW = Limits(streams_per_connection=16)


@contextmanager
def counted_passes(monkeypatch: pytest.MonkeyPatch, endpoint: QuicEndpoint) -> Iterator[list[None]]:
    """Count how often *endpoint* serves a connection: each is a look at its events and timers."""
    passes: list[None] = []
    serve = endpoint._serve

    def counting(connection: QuicConnection, now: float) -> int:
        passes.append(None)
        return serve(connection, now)

    with monkeypatch.context() as patch:
        patch.setattr(endpoint, "_serve", counting)
        yield passes


@pytest.mark.parametrize("frames", [PING, ack(0, 1)], ids=["pings", "acknowledgements"])
async def test_a_flood_costs_a_pass_for_each_batch(
    frames: bytes, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with attack() as scene:
        await trio.sleep(1)
        with counted_passes(monkeypatch, scene.here.server.endpoint) as passes:
            for _ in range(MANY):
                scene.attacker.say(frames)
            await trio.sleep(0.5)
        # A delayed acknowledgement may take one more.
        assert MANY / MAX_BATCH <= len(passes) <= 2 * MANY / MAX_BATCH + 4
        assert scene.attacker.end is None


async def test_strays_cost_no_pass_and_a_trickle_of_packets(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world() as here:
        honest = await here.connect()
        await trio.sleep(1)
        with counted_passes(monkeypatch, here.server.endpoint) as passes:
            sent = len(here.net.trace)
            for data in short_strays():
                here.net.carry(data, ("203.0.113.5", 5_000), here.server.address)
            await trio.sleep(0.1)
            answers = [p for p in list(here.net.trace)[sent:] if p.target[0] == "203.0.113.5"]
        assert not passes
        assert len(answers) <= 110
        await exchange(*honest, b"unharmed")


async def test_streams_opened_and_reset_as_fast_as_they_are_let_hold_no_more_than_the_limit(
    autojump_clock: MockClock,
) -> None:
    """The application takes each and leaves it: a place for each that has gone, and no more."""
    async with attack(FEW) as scene, trio.open_nursery() as nursery:
        nursery.start_soon(_take_and_leave, scene.far)
        await trio.sleep(ROUND_TRIP)
        tasks = trio.lowlevel.current_statistics().tasks_living
        before, said, most = scene.far.engine.packets_sent, 0, 0
        for number in range(MANY):
            while number >= scene.attacker.engine._remote_max_streams_bidi:
                await trio.sleep(ROUND_TRIP)
                scene.attacker.answer()
                most = max(most, len(scene.far._streams), len(scene.far.engine._streams))
            scene.attacker.engine._get_or_create_stream_for_send(4 * number)
            reset = varint(QuicFrameType.RESET_STREAM, 4 * number, 7, 1)
            scene.attacker.say(stream_frame(4 * number, 0, b"x") + reset)
            said += 1
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert most <= FEW.streams_per_connection + 1
        # What goes back: the end of each stream, limits and acknowledgements, many to a packet.
        assert scene.far.engine.packets_sent - before <= said
        assert scene.attacker.end is None
        nursery.cancel_scope.cancel()


async def _take_and_leave(connection: QuicConnection) -> None:
    while True:
        stream = await connection.accept_stream()
        stream.reset(0)
        await stream.aclose()


async def test_handshakes_that_fall_silent_leave_nothing(autojump_clock: MockClock) -> None:
    """A slow loris: no task while they last, three times their bytes, and nothing afterwards."""
    async with world() as here:
        honest = await here.connect()
        endpoint = here.server.endpoint
        tasks = trio.lowlevel.current_statistics().tasks_living
        data = initials(40, ALPN)
        for number, datagram in enumerate(data):
            here.net.carry(datagram, ("203.0.113.5", 5_000 + number), here.server.address)
        await trio.sleep(0.5)
        assert len(endpoint.connections) == 1 + len(data)
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        await trio.sleep(here.server.endpoint.limits.handshake_timeout_s + 10)
        assert len(endpoint.connections) == 1
        sent = sum(p.size for p in here.net.trace if p.target[0] == "203.0.113.5")
        assert sent <= 3 * sum(map(len, data))
        await exchange(*honest, b"unharmed")


async def test_a_connection_kept_busy_with_nothing_holds_no_more_however_long_it_lasts(
    autojump_clock: MockClock,
) -> None:
    """A PING a second. (What waits for an acknowledgement has its own bound and test.)"""
    async with attack() as scene:
        await _keep(scene, 100)
        before = _held(scene)
        await _keep(scene, 500)
        pairs = list(zip(before, _held(scene), strict=True))
        assert all(after <= held + 8 for held, after in pairs), pairs
        assert scene.attacker.end is None


async def _keep(scene: Scene, seconds: int) -> None:
    for _ in range(seconds):
        scene.attacker.say(PING)
        scene.attacker.answer()
        await trio.sleep(1)


def _held(scene: Scene) -> tuple[int, ...]:
    engine = scene.far.engine
    return (
        sum(len(space.ack_queue) for space in engine._spaces.values()),
        len(engine._network_paths),
        len(engine._host_cids),
        len(scene.here.server.endpoint._timers),
    )
