"""Turns: a connection with much to send holds up neither the others nor the reader."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from alknet.core.contracts import Stream
from alknet.core.datagram import Address
from alknet.core.quic.connection import QuicConnection
from alknet.core.quic.endpoint import ROUND_PACKETS
from alknet.core.quic.hotpath.send import MAX_PACKETS_PER_PASS
from tests.core.quic.fakenet import FakeNet
from tests.core.quic.worlds import World, world

MUCH = 1024 * 1024


@dataclass
class Scene:
    """A server with streams to send on, and whose each packet was that it sent, into the void."""

    here: World
    streams: list[Stream]
    sent: list[QuicConnection] = field(default_factory=list)

    def note(self, data: bytes, source: Address, _target: Address) -> bool:
        if source == self.here.server.address:
            if (entry := self.here.client._table.routes.get(data[1:9])) is not None:
                self.sent.append(entry.connection)
            return False
        return True


@asynccontextmanager
async def serving(*, bulk: int, others: int) -> AsyncGenerator[Scene]:
    """Yield a server whose first *bulk* connections may send `MUCH` at once."""
    async with world(net=FakeNet()) as here:
        acceptors = [(await here.connect())[1] for _ in range(bulk + others)]
        scene = Scene(here, [await acceptor.open_stream() for acceptor in acceptors])
        await trio.sleep(2)
        for acceptor in acceptors[:bulk]:
            _unleash(acceptor)
        here.net.filter = scene.note
        yield scene


def _unleash(connection: QuicConnection) -> None:
    """Take all bounds from what the connection sends, so that turns alone are left."""
    engine = connection.engine
    engine._loss._cc.congestion_window = 4 * MUCH
    engine._loss._pacer.update_rate(4 * MUCH, 0.001)
    engine.send_buffer_bytes = 4 * MUCH
    engine._remote_max_data = 4 * MUCH
    for stream in engine._streams.values():
        stream.max_stream_data_remote = 4 * MUCH


async def test_others_wait_for_one_turn_of_a_bulk_connection(autojump_clock: MockClock) -> None:
    async with serving(bulk=1, others=50) as scene, trio.open_nursery() as nursery:
        nursery.start_soon(scene.streams[0].send_all, bytes(MUCH))
        for stream in scene.streams[1:]:
            nursery.start_soon(stream.send_all, b"x" * 100)
        await wait_all_tasks_blocked()
        sent = scene.sent
        assert len(set(sent)) == 51
        bulk = max(set(sent), key=sent.count)
        assert sent.count(bulk) > 4 * MAX_PACKETS_PER_PASS
        last = max(at for at, connection in enumerate(sent) if connection is not bulk)
        assert sent[:last].count(bulk) <= MAX_PACKETS_PER_PASS + 1  # a probe of the path's MTU


async def test_bulk_connections_take_turns(autojump_clock: MockClock) -> None:
    async with serving(bulk=3, others=0) as scene, trio.open_nursery() as nursery:
        for stream in scene.streams:
            nursery.start_soon(stream.send_all, bytes(MUCH))
        await wait_all_tasks_blocked()
        turns = [scene.sent[0]]
        for connection in scene.sent:
            if connection is not turns[-1]:
                turns.append(connection)
        assert len(scene.sent) > 9 * MAX_PACKETS_PER_PASS
        assert len(turns) >= 9
        assert len(set(turns[:3])) == 3
        assert turns[:6] == turns[:3] * 2


async def test_other_tasks_and_the_reader_run_after_each_round(autojump_clock: MockClock) -> None:
    async with serving(bulk=16, others=0) as scene, trio.open_nursery() as nursery:
        counters = scene.here.server.endpoint.counters
        scene.here.net.delay = 0.0
        stranger = scene.here.net.host("198.51.100.1")
        for stream in scene.streams:
            nursery.start_soon(stream.send_all, bytes(MUCH))
        before, longest, strays, idle = 0, 0, 0, 0
        seen_after: list[int] = []
        while True:
            await trio.lowlevel.checkpoint()
            longest = max(longest, len(scene.sent) - before)
            idle = idle + 1 if len(scene.sent) == before else 0
            if idle > 20:
                break
            before = len(scene.sent)
            if counters["empty"] == strays:  # handled: send another, and see when it is
                seen_after.append(before)
                strays += 1
                stranger.send(b"", scene.here.server.address)
        assert before > 8 * ROUND_PACKETS
        # The reader has a round of its own, beside the flusher's.
        assert longest <= 2 * (ROUND_PACKETS + MAX_PACKETS_PER_PASS)
        waits = [later - earlier for earlier, later in itertools.pairwise(seen_after)]
        assert len(waits) >= 4
        assert max(waits) <= 4 * (ROUND_PACKETS + MAX_PACKETS_PER_PASS)
        nursery.cancel_scope.cancel()
