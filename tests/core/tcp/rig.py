"""Both ends of a TLS handshake in one test."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trio.testing import memory_stream_pair

from alknet.core.limits import Limits
from alknet.core.tcp.connection import StreamConnection
from alknet.core.tcp.handshake import accept_tls, dial_tls
from alknet.core.tcp.listener import connect_tcp, listen_tcp, serve
from alknet.core.tls.credentials import NodeCredentials
from alknet.core.tls.errors import HandshakeFailed
from alknet.core.tls.trust import PinnedKey, Trust

ALPN = "alknet/test"


def credentials(seed: str) -> NodeCredentials:
    return NodeCredentials(Ed25519PrivateKey.from_private_bytes(seed.encode().ljust(32, b".")))


SERVER = credentials("server")
CLIENT = credentials("client")
STRANGER = credentials("stranger")


@dataclass
class Outcome:
    """What each end got."""

    client: StreamConnection | HandshakeFailed | None = None
    server: StreamConnection | HandshakeFailed | None = None

    @property
    def connections(self) -> tuple[StreamConnection, StreamConnection]:
        assert isinstance(self.client, StreamConnection), self.client
        assert isinstance(self.server, StreamConnection), self.server
        return self.client, self.server

    @property
    def failures(self) -> tuple[HandshakeFailed, HandshakeFailed]:
        assert isinstance(self.client, HandshakeFailed), self.client
        assert isinstance(self.server, HandshakeFailed), self.server
        return self.client, self.server


async def shake_hands(
    *,
    shown: NodeCredentials | None = CLIENT,
    trust: Trust | None = None,
    alpn: str = ALPN,
    alpns: Sequence[str] = (ALPN,),
    server: NodeCredentials = SERVER,
    server_name: str | None = None,
) -> Outcome:
    """Over memory streams: no clock, no kernel."""
    outcome = Outcome()
    near, far = memory_stream_pair()

    async def dial() -> None:
        try:
            outcome.client = await dial_tls(
                near,
                alpn=alpn,
                credentials=shown,
                trust=trust or PinnedKey(server.node_id),
                server_name=server_name,
            )
        except HandshakeFailed as exc:
            outcome.client = exc

    async def accept() -> None:
        try:
            outcome.server = await accept_tls(far, server, alpns)
        except HandshakeFailed as exc:
            outcome.server = exc

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial)
            nursery.start_soon(accept)
    return outcome


@dataclass
class TcpServer:
    """A node's TCP port on 127.0.0.1 that greets who gets in, and echoes."""

    port: int
    failures: list[HandshakeFailed] = field(default_factory=list)
    accepted: list[StreamConnection] = field(default_factory=list)
    failed: trio.Event = field(default_factory=trio.Event)

    async def connect(self) -> trio.SocketStream:
        return await connect_tcp("127.0.0.1", self.port, Limits())


@asynccontextmanager
async def tcp_server(
    node: NodeCredentials = SERVER,
    alpns: Sequence[str] = (ALPN,),
    default_alpn: str | None = None,
    handle: Callable[[StreamConnection], Awaitable[None]] | None = None,
) -> AsyncGenerator[TcpServer]:
    handler = handle or greet_and_echo
    listeners = await listen_tcp([("127.0.0.1", 0)])
    server = TcpServer(listeners[0].socket.getsockname()[1])

    async def on_stream(stream: trio.SocketStream) -> None:
        try:
            connection = await accept_tls(stream, node, alpns, default_alpn)
        except HandshakeFailed as exc:
            server.failures.append(exc)
            server.failed.set()
            return
        server.accepted.append(connection)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.wait_closed)
            await handler(connection)
            connection.close()

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listeners, on_stream, Limits)
            yield server
            nursery.cancel_scope.cancel()


async def greet_and_echo(connection: StreamConnection) -> None:
    stream = await connection.accept_stream()
    await stream.send_all(f"hello over {connection.alpn}\n".encode())
    try:
        while data := await stream.receive_some():
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass
