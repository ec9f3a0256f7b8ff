"""What a stream sends without waiting, and whom a piece that arrives wakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock

from alknet.core.contracts import Stream
from alknet.core.tcp.connection import StreamConnection
from alknet.core.tcp.handshake import dial_tls
from alknet.core.tls.trust import PinnedKey
from tests.core.tcp.rig import ALPN, CLIENT, SERVER, tcp_server


@asynccontextmanager
async def connected() -> AsyncGenerator[tuple[StreamConnection, Stream, Stream]]:
    """The dialler's connection, its stream and the acceptor's, both driven."""
    send, receive = trio.open_memory_channel[Stream](1)

    async def hand_over(connection: StreamConnection) -> None:
        await send.send(await connection.accept_stream())
        await connection.wait_closed()

    async with tcp_server(handle=hand_over) as server, trio.open_nursery() as nursery:
        near = await dial_tls(
            await server.connect(), alpn=ALPN, credentials=CLIENT, trust=PinnedKey(SERVER.node_id)
        )
        nursery.start_soon(near.wait_closed, name="the watcher")
        yield near, await near.open_stream(), await receive.receive()
        await near.aclose()


async def read(stream: Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = await stream.receive_some(count - len(data))
        assert part
        data += part
    return data


async def test_what_is_sent_at_once_arrives_in_order_with_the_rest() -> None:
    async with connected() as (_, near, far):
        assert near.send_now(b"one")
        await near.send_all(b"two")
        assert near.send_now(b"six")
        assert await read(far, 9) == b"onetwosix"


async def test_a_full_socket_loses_nothing_that_was_taken() -> None:
    async with connected() as (_, near, far):
        taken = 0
        while near.send_now(taken.to_bytes(4) * 4_000):
            taken += 1
        assert taken > 1
        wanted = b"".join(number.to_bytes(4) * 4_000 for number in range(taken))
        with trio.fail_after(60):  # the connection's driver sends the rest
            assert await read(far, len(wanted)) == wanted
            while not near.send_now(b"again"):  # it may not have seen yet that all is sent
                await trio.sleep(0.001)
            assert await read(far, 5) == b"again"


async def test_more_than_a_record_is_left_to_who_may_wait() -> None:
    async with connected() as (_, near, far):
        assert not near.send_now(bytes(20_000))
        assert near.send_now(b"nothing before this")
        assert await read(far, 19) == b"nothing before this"


async def test_an_ended_stream_takes_nothing() -> None:
    async with connected() as (connection, near, _):
        connection.close(0)
        assert not near.send_now(b"late")


class Steps(trio.abc.Instrument):
    """Counts the steps of tasks by their names."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.of[task.name] += 1


async def test_a_piece_that_arrives_wakes_its_reader_alone(mock_clock: MockClock) -> None:
    mock_clock.rate = 1
    async with connected() as (_, near, far):

        async def echo() -> None:
            await far.send_all(b"")  # behind the handshake's last words
            while data := await far.receive_some():
                assert far.send_now(bytes(data))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            for _ in range(3):  # until the watchers have left it to the readers
                assert near.send_now(b"warm")
                await read(near, 4)
            mock_clock.rate = 0  # however busy the machine is: no watcher has waited long enough
            steps = Steps()
            trio.lowlevel.add_instrument(steps)
            for _ in range(20):
                assert near.send_now(b"ping")
                await read(near, 4)
            trio.lowlevel.remove_instrument(steps)
            mock_clock.rate = 1
            nursery.cancel_scope.cancel()
        assert steps.of["the watcher"] <= 1  # it may just have been looking
        assert sum(steps.of.values()) < 4 * 20


async def test_the_end_is_noticed_when_the_reader_has_left() -> None:
    async with connected() as (connection, near, far):
        await far.send_all(b"last")
        assert await read(near, 4) == b"last"
        await far.aclose()
        with trio.fail_after(60):
            assert (await connection.wait_closed()).by_peer
