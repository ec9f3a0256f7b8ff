"""A reload takes over all that it says it does, and goes on saying what it cannot."""

from __future__ import annotations

import socket

import msgspec
import trio

from alknet.core.address import Address
from alknet.core.limits import Limits
from alknet.core.tcp.listener import connect_tcp, listen_tcp, serve
from alknet.testing.nodes import open_node


async def test_connections_get_the_limits_of_their_time() -> None:
    (listener,) = await listen_tcp([("127.0.0.1", 0)])
    port = listener.socket.getsockname()[1]
    limits = Limits()
    seen: list[int] = []

    async def on_stream(stream: trio.SocketStream) -> None:
        seen.append(int(stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, [listener], on_stream, lambda: limits)
        for idle_s in (30.0, 7.0):
            limits = Limits(idle_timeout_s=idle_s)
            async with await connect_tcp("127.0.0.1", port, limits) as stream:
                await stream.receive_some()
        nursery.cancel_scope.cancel()
    assert seen == [30_000, 7_000]


async def test_what_needs_a_restart_is_said_until_there_is_one() -> None:
    async with open_node() as node:
        before = node.config
        moved = msgspec.structs.replace(before, listen=(Address("127.0.0.1", 4433),))
        assert node.apply(moved) == ["node.listen"]
        more = msgspec.structs.replace(moved, limits=Limits(call_timeout_s=5))
        assert node.apply(more) == ["node.listen"]
        assert node.apply(before) == []
