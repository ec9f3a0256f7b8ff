"""A connection that is closed while tasks are on its sending side, whoever of them runs first."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from alknet.core.contracts import CARRIER_UNIX, CloseReason, Stream
from alknet.core.tcp.connection import StreamConnection
from alknet.core.tcp.handshake import accept_tls, dial_tls
from alknet.core.tls.trust import PinnedKey
from tests.core.tcp.rig import ALPN, CLIENT, SERVER

# Trio runs those who are woken together in either order, by lot.
ROUNDS = 12


def words(reason: CloseReason) -> bytes:
    return b"bye"


async def plain(near: trio.SocketStream, far: trio.SocketStream) -> StreamConnection:
    return StreamConnection(
        near,
        alpn=ALPN,
        carrier=CARRIER_UNIX,
        is_dialer=False,
        peer_key=None,
        remote_address="socketpair",
    )


async def tls(near: trio.SocketStream, far: trio.SocketStream) -> StreamConnection:
    made: list[StreamConnection] = []

    async def accept() -> None:
        made.append(await accept_tls(near, SERVER, (ALPN,)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await dial_tls(far, alpn=ALPN, credentials=CLIENT, trust=PinnedKey(SERVER.node_id))
    return made[0]


def fill(stream: trio.SocketStream) -> None:
    """Leave no room for another byte: the other end does not read."""
    try:
        while True:
            os.write(stream.socket.fileno(), bytes(65_536))
    except BlockingIOError:
        return


async def wait_for_room(stream: Stream) -> None:
    await stream.wait_send_all_might_not_block()


async def finish(stream: Stream) -> None:
    await stream.send_eof()


@pytest.mark.parametrize("farewell", [words, None])
@pytest.mark.parametrize(
    ("make", "operation"), [(plain, wait_for_room), (tls, wait_for_room), (tls, finish)]
)
async def test_a_close_waits_for_who_is_about_to_leave_the_sending_side(
    autojump_clock: MockClock,
    make: Callable[[trio.SocketStream, trio.SocketStream], Awaitable[StreamConnection]],
    operation: Callable[[Stream], Awaitable[None]],
    farewell: Callable[[CloseReason], bytes] | None,
) -> None:
    async def operate(stream: Stream) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await operation(stream)

    for _ in range(ROUNDS):
        near, far = (trio.SocketStream(end) for end in trio.socket.socketpair())
        connection = await make(near, far)
        connection.farewell = farewell
        stream = await connection.accept_stream()
        fill(near)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.wait_closed)
            nursery.start_soon(operate, stream)
            await wait_all_tasks_blocked()
            connection.close(5, "revoked")
        assert connection.close_reason == CloseReason(5, "revoked", by_peer=False)
        await far.aclose()
