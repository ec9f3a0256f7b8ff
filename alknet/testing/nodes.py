"""Whole nodes for tests: on free ports of loopback, known to one another, gone with the block."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call.operations import Operation
from alknet.call.session import CallSession
from alknet.client import open_session
from alknet.core.address import Address
from alknet.core.config import NodeConfig
from alknet.core.contracts import ProtocolHandler
from alknet.core.endpoint.dial import TRANSPORTS
from alknet.core.identity import NodeId, Peer
from alknet.core.limits import Limits
from alknet.node import Node

__all__ = ["NodePair", "open_node", "open_node_pair", "open_peer_session"]

LOOPBACK = Address("127.0.0.1", 0)


@asynccontextmanager
async def open_node(
    *,
    operations: Iterable[Operation[..., Any]] = (),
    handlers: Iterable[ProtocolHandler] = (),
    key: Ed25519PrivateKey | None = None,
    peers: Sequence[Peer] = (),
    limits: Limits | None = None,
    default_alpn: str | None = None,
) -> AsyncGenerator[Node]:
    """Run a real node on free UDP and TCP ports of 127.0.0.1, without a home.

    Args:
        operations: What it serves beside the built-in operations.
        handlers: What it serves beside ``alknet/call``.
        key: Who it is; a fresh key if None.
        peers: Whom it knows from the start.
        limits: All of its limits.
        default_alpn: Who serves TCP clients that offer no ALPN.

    Leaving the block drains it. Cancelled, it stops at once.
    """
    config = NodeConfig(
        listen=(LOOPBACK,),
        peers=tuple(peers),
        limits=limits or Limits(),
        default_alpn=default_alpn,
    )
    async with Node(key, config=config, operations=operations, handlers=handlers) as node:
        yield node


@asynccontextmanager
async def open_peer_session(
    node: Node,
    *,
    name: str = "tester",
    scopes: Sequence[str] = (),
    transports: Sequence[str] = TRANSPORTS,
    limits: Limits | None = None,
) -> AsyncGenerator[CallSession]:
    """Call *node* as a peer that it is told of first: a fresh key with *scopes*.

    The peer is forgotten when the block ends, by which its connection closes.
    """
    key = Ed25519PrivateKey.generate()
    peer = Peer(
        name=name,
        fingerprints=(NodeId.from_public_key(key.public_key()).fingerprint,),
        scopes=tuple(scopes),
    )
    await node.identities.put_peer(peer)
    try:
        async with open_session(
            node.ticket, key=key, transports=transports, limits=limits
        ) as session:
            yield session
    finally:
        await node.identities.remove_peer(name)


@dataclass(frozen=True)
class NodePair:
    """Two nodes that know each other: *left* as ``left``, *right* as ``right``."""

    left: Node
    right: Node
    _keys: tuple[Ed25519PrivateKey, Ed25519PrivateKey]

    @asynccontextmanager
    async def session(
        self, *, transports: Sequence[str] = TRANSPORTS
    ) -> AsyncGenerator[CallSession]:
        """Call the right node as the left one."""
        async with open_session(
            self.right.ticket, key=self._keys[0], transports=transports
        ) as session:
            yield session


@asynccontextmanager
async def open_node_pair(
    *, operations: Iterable[Operation[..., Any]] = (), scopes: Sequence[str] = ("*",)
) -> AsyncGenerator[NodePair]:
    """Run two nodes with the same *operations*; each grants the other *scopes*."""
    keys = (Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate())
    left, right = (
        Peer(
            name=name,
            fingerprints=(NodeId.from_public_key(key.public_key()).fingerprint,),
            scopes=tuple(scopes),
        )
        for name, key in zip(("left", "right"), keys, strict=True)
    )
    shared = tuple(operations)
    async with (
        open_node(key=keys[0], peers=[right], operations=shared) as left_node,
        open_node(key=keys[1], peers=[left], operations=shared) as right_node,
    ):
        yield NodePair(left_node, right_node, keys)
