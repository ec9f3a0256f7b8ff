"""A server and a client endpoint on one fake network."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from alknet.core.limits import Limits
from alknet.core.quic.connection import QuicConnection
from alknet.core.quic.endpoint import QuicEndpoint
from alknet.core.quic.policy import client_policy
from tests.core.quic.fakenet import FakeNet
from tests.core.quic.pairs import ALPN, Server, new_credentials, quic_client, quic_server

Pair = tuple[QuicConnection, QuicConnection]


class World:
    """A server and a client endpoint on one fake network."""

    def __init__(self, net: FakeNet, server: Server, client: QuicEndpoint) -> None:
        self.net = net
        self.server = server
        self.client = client
        self.key = new_credentials()

    async def connect(self) -> Pair:
        policy = client_policy(self.server.trust, self.key)
        dialer = await self.client.connect(self.server.address, alpn=ALPN, policy=policy)
        return dialer, await self.server.accepted.receive()

    def is_empty(self) -> bool:
        """Nothing is left of any connection on either side."""
        return all(
            endpoint._table.is_empty
            and not endpoint._dirty
            and not endpoint._outbox
            and half_open(endpoint) == 0
            for endpoint in (self.server.endpoint, self.client)
        )


@asynccontextmanager
async def world(
    *, limits: Limits | None = None, net: FakeNet | None = None, admit: object = None
) -> AsyncGenerator[World]:
    net = net or FakeNet()
    async with (
        quic_server(limits=limits, socket=net.host("192.0.2.9"), admit=admit) as server,
        quic_client(limits=limits, socket=net.host()) as client,
    ):
        yield World(net, server, client)


def half_open(endpoint: QuicEndpoint) -> int:
    return 0 if endpoint._accepting is None else endpoint._accepting.half_open


async def exchange(sender: QuicConnection, receiver: QuicConnection, data: bytes) -> None:
    """Send *data* on a new stream and compare what arrives."""
    got = bytearray()

    async def read() -> None:
        async with await receiver.accept_stream() as stream:
            while part := await stream.receive_some():
                got.extend(part)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        async with await sender.open_stream() as stream:
            await stream.send_all(data)
    assert bytes(got) == data


async def read_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = await stream.receive_some(count - len(data))
        assert part
        data += part
    return data
