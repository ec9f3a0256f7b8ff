"""Every carrier of connections, as a pair of connected ends for the contract suite.

To add one: write an async context manager that takes `Limits` and yields (dialler, acceptor), with
whatever drives them running, and list it in `CARRIERS` under the name of its `Carrier`.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.core.contracts import (
    CARRIER_MEMORY,
    CARRIER_QUIC,
    CARRIER_TCP,
    CARRIER_UNIX,
    Connection,
)
from alknet.core.limits import Limits
from alknet.core.tcp.connection import StreamConnection
from alknet.core.tcp.handshake import accept_tls, dial_tls
from alknet.core.tcp.listener import connect_tcp, listen_tcp
from alknet.core.tls.credentials import NodeCredentials
from alknet.core.tls.trust import PinnedKey
from alknet.testing.memory import memory_connection_pair
from tests.core.quic.pairs import quic_connection_pair

ALPN = "contract/1"
DIALER = NodeCredentials(Ed25519PrivateKey.from_private_bytes(b"d" * 32))
ACCEPTOR = NodeCredentials(Ed25519PrivateKey.from_private_bytes(b"a" * 32))

Pair = Callable[[Limits], AbstractAsyncContextManager[tuple[Connection, Connection]]]


@asynccontextmanager
async def tcp_pair(limits: Limits) -> AsyncGenerator[tuple[Connection, Connection]]:
    (listener,) = await listen_tcp([("127.0.0.1", 0)])
    async with listener:
        port = listener.socket.getsockname()[1]
        near = await connect_tcp("127.0.0.1", port, limits)
        far = await listener.accept()
    made: dict[str, Connection] = {}

    async def accept() -> None:
        made["acceptor"] = await accept_tls(far, ACCEPTOR, [ALPN])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        made["dialer"] = await dial_tls(
            near, alpn=ALPN, credentials=DIALER, trust=PinnedKey(ACCEPTOR.node_id)
        )
    async with _driven(made["dialer"], made["acceptor"]) as pair:
        yield pair


@asynccontextmanager
async def quic_pair(limits: Limits) -> AsyncGenerator[tuple[Connection, Connection]]:
    async with quic_connection_pair(
        limits=limits, alpn=ALPN, dialer=DIALER, acceptor=ACCEPTOR
    ) as pair:
        yield pair


@asynccontextmanager
async def unix_pair(limits: Limits) -> AsyncGenerator[tuple[Connection, Connection]]:
    ends: list[Connection] = []
    for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM):
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        connection = StreamConnection(
            stream,
            alpn=ALPN,
            carrier=CARRIER_UNIX,
            is_dialer=not ends,
            peer_key=(DIALER if ends else ACCEPTOR).node_id,
            remote_address="unix",
        )
        ends.append(connection)
    async with _driven(ends[0], ends[1]) as pair:
        yield pair


@asynccontextmanager
async def memory_pair(limits: Limits) -> AsyncGenerator[tuple[Connection, Connection]]:
    async with memory_connection_pair(
        alpn=ALPN, dialer_key=DIALER.node_id, acceptor_key=ACCEPTOR.node_id, limits=limits
    ) as pair:
        yield pair


@asynccontextmanager
async def _driven(
    dialer: Connection, acceptor: Connection
) -> AsyncGenerator[tuple[Connection, Connection]]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dialer.wait_closed)
        nursery.start_soon(acceptor.wait_closed)
        try:
            yield dialer, acceptor
        finally:
            dialer.close()
            acceptor.close()


CARRIERS: dict[str, Pair] = {
    "quic": quic_pair,
    "tcp": tcp_pair,
    "unix": unix_pair,
    "memory": memory_pair,
}

CAPABILITIES = {
    carrier.name: carrier for carrier in (CARRIER_TCP, CARRIER_UNIX, CARRIER_MEMORY, CARRIER_QUIC)
}
ALL = list(CARRIERS)
MANY_STREAMS = [name for name in ALL if CAPABILITIES[name].many_streams]
ONE_STREAM = [name for name in ALL if not CAPABILITIES[name].many_streams]
DATAGRAMS = [name for name in ALL if CAPABILITIES[name].datagrams]
NO_DATAGRAMS = [name for name in ALL if not CAPABILITIES[name].datagrams]
CLOSE_CODE = [name for name in ALL if CAPABILITIES[name].close_code]
NO_CLOSE_CODE = [name for name in ALL if not CAPABILITIES[name].close_code]
