"""A server that closes right after the handshake: the dialler gets its code, not a failed dial."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call.codes import CallError
from alknet.client import connect, open_session
from alknet.core.contracts import Connection, ConnectionEnded
from alknet.core.identity import NodeId, Peer
from alknet.testing.nodes import open_node


class Slamming:
    alpns = ("slam/1",)
    requires_identity = False

    async def handle(self, connection: Connection) -> None:
        connection.close(99, "not today")


async def test_the_code_of_an_early_close_reaches_the_dialler() -> None:
    async with open_node(handlers=[Slamming()]) as node:
        for _ in range(20):
            async with connect(node.ticket, alpn="slam/1", transports=["quic"]) as connection:
                with pytest.raises(ConnectionEnded) as caught:
                    await connection.accept_stream()
                assert (caught.value.close.code, caught.value.close.reason) == (99, "not today")


async def test_a_disabled_peer_is_always_told_that_it_is_denied() -> None:
    key = Ed25519PrivateKey.generate()
    fingerprint = NodeId.from_public_key(key.public_key()).fingerprint
    gone = Peer(name="gone", fingerprints=(fingerprint,), enabled=False)
    async with open_node(peers=[gone]) as node:
        for _ in range(20):
            with pytest.raises(CallError, match="FORBIDDEN"):
                async with open_session(node.ticket, key=key, transports=["quic"]) as session:
                    await session.call("node/ping")
