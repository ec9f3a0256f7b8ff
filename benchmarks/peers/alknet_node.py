"""alknet as its users run it: a node, a peer that it knows, ``node/ping``.

Options: ``quic``, ``tcp``, and ``quic-bulk``, ``tcp-bulk`` for bytes on a stream of an ALPN of
their own; ``quic-bulk-1200`` keeps to short datagrams. The client shows its key and the node
looks it up, always.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call.builtin import Pong
from alknet.call.operations import operation, scopes
from alknet.call.session import CallSession
from alknet.client import connect, open_session
from alknet.core.collector import calm_collector
from alknet.core.contracts import Connection, ConnectionEnded
from alknet.core.identity import NodeId, Peer
from alknet.core.limits import Limits
from alknet.testing.nodes import open_node
from benchmarks.driver import Link, Tally
from benchmarks.peers.trio_frames import bulk_link, serve_stream

RUNTIME = "trio"
BULK_ALPN = "bench-bulk/1"
# All connections are of one peer, from one address; nothing measured here is about limits.
LIMITS = Limits(
    connections_per_address=10_000, connections_per_identity=10_000, calls_per_connection=10_000
)
SHORT_LIMITS = msgspec.structs.replace(LIMITS, udp_payload_bytes=1200)
PONG = Pong("x" * 52, 0.0)
ITEM = "x" * (64 * 1024)
KEY = Ed25519PrivateKey.from_private_bytes(b"b" * 32)
CLIENT = Peer(
    name="bench",
    fingerprints=(NodeId.from_public_key(KEY.public_key()).fingerprint,),
    scopes=("*",),
)


@operation("bench/pour", access=scopes("bench:pour"))
async def pour() -> AsyncIterator[str]:
    """Yield items of 64 KiB as long as somebody takes them."""
    while True:
        yield ITEM


@operation("bench/ping", access=scopes("bench:ping"))
async def ping() -> Pong:
    """Answer as ``node/ping`` does, under a name that peers import."""
    return PONG


class BulkHandler:
    """Serves bulk on every stream of a connection."""

    alpns = (BULK_ALPN,)
    requires_identity = True

    async def handle(self, connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            with suppress(ConnectionEnded):
                while True:
                    nursery.start_soon(serve_stream, await connection.accept_stream())


@asynccontextmanager
async def serve(_directory: str, option: str) -> AsyncGenerator[dict[str, Any]]:
    calm_collector()  # as `alknet up` does
    async with open_node(
        operations=[pour, ping], handlers=[BulkHandler()], peers=[CLIENT], limits=_limits(option)
    ) as node:
        yield {"ticket": str(node.ticket)}


@asynccontextmanager
async def dial(address: dict[str, Any], option: str) -> AsyncGenerator[Link]:
    transport, _, bulk = option.partition("-")
    limits = _limits(option)
    ticket, transports = address["ticket"], [transport]
    if bulk:
        async with connect(
            ticket, alpn=BULK_ALPN, key=KEY, transports=transports, limits=limits
        ) as connection:
            yield bulk_link(await connection.open_stream())
    else:
        async with open_session(ticket, key=KEY, transports=transports, limits=LIMITS) as session:
            yield SessionLink(session)


def _limits(option: str) -> Limits:
    return SHORT_LIMITS if option.endswith("1200") else LIMITS


class SessionLink(Link):
    """Calls in a session; bulk beside them is a subscription."""

    def __init__(self, session: CallSession) -> None:
        self._session = session

    async def call(self) -> None:
        await self._session.call("node/ping", {})

    async def pour(self, tally: Tally) -> None:
        async with self._session.subscribe("bench/pour", {}) as items:
            async for item in items:
                tally.received += len(bytes(item))
                if tally.is_over:
                    return
