"""The last words of a carrier without close codes: whole, once, and never amid other bytes."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from alknet.core.contracts import CloseReason
from alknet.core.tcp.connection import StreamConnection
from tests.core.tcp.rig import shake_hands


def words(reason: CloseReason) -> bytes:
    return f"<{reason.code} {reason.reason}>".encode()


async def pair() -> tuple[StreamConnection, StreamConnection]:
    client, server = (await shake_hands()).connections
    server.farewell = words
    return client, server


async def read_all(connection: StreamConnection) -> bytes:
    stream = await connection.open_stream()
    with trio.fail_after(5):
        return b"".join([chunk async for chunk in stream])


async def test_the_peer_learns_why_after_what_was_sent_before(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    client, server = await pair()
    stream = await server.accept_stream()
    await stream.send_all(b"data;")
    nursery.start_soon(server.aclose, 5, "revoked")
    assert await read_all(client) == b"data;<5 revoked>"


async def test_a_connection_that_nobody_served_says_why(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    client, server = await pair()
    nursery.start_soon(server.aclose, 3, "too many")
    assert await read_all(client) == b"<3 too many>"


async def test_a_close_in_good_order_needs_no_words(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    client, server = await pair()
    nursery.start_soon(server.aclose, 0, "done")
    assert await read_all(client) == b""


async def test_nothing_is_said_amid_data(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    client, server = await pair()
    stream = await server.accept_stream()
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.send_all(b"half a frame")  # how much of it leaves, nobody knows
    nursery.start_soon(server.aclose, 5, "revoked")
    assert not (await read_all(client)).endswith(b">")
