"""What the endpoint's tests share: identities in a dict, and handlers that do as they are told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from alknet.core.contracts import Connection, TooStale
from alknet.core.identity import ApiKey, Identity, NodeId, Peer
from alknet.errors import Denied, Unavailable

ALICE = NodeId(b"\x0a" * 32)
BOB = NodeId(b"\x0b" * 32)


class TableIdentities:
    """An `IdentityProvider` over a dict; a disabled peer's key maps to None."""

    def __init__(self, peers: dict[NodeId, Identity | None] | None = None) -> None:
        self._peers = peers or {}
        self._version = 1
        self._changed = trio.Event()
        self.is_stale = False
        self.is_too_stale = False

    def set(self, key: NodeId, identity: Identity | None) -> None:
        self._peers[key] = identity
        self._bump()

    def forget(self, key: NodeId) -> None:
        del self._peers[key]
        self._bump()

    def touch(self) -> None:
        self._bump()

    def _bump(self) -> None:
        self._version += 1
        self._changed.set()
        self._changed = trio.Event()

    @property
    def version(self) -> int:
        return self._version

    async def wait_changed(self, version: int) -> int:
        while self._version == version:
            await self._changed.wait()
        return self._version

    def check_fresh(self) -> None:
        if self.is_too_stale:
            raise TooStale("the store is stale")
        if self.is_stale:
            raise Unavailable("the store is stale")

    def identify_key(self, key: NodeId) -> Identity | None:
        self.check_fresh()
        if key not in self._peers:
            return None
        identity = self._peers[key]
        if identity is None:
            raise Denied("this peer is disabled", is_failed_authentication=True)
        return identity

    def identify_token(self, token: str) -> Identity:
        raise Denied("unknown token", is_failed_authentication=True)

    def token_expires_at(self, identity: Identity) -> float | None:
        return None

    def peer(self, name: str) -> Peer | None:
        return None

    def peers(self) -> Sequence[Peer]:
        return ()

    def api_keys(self) -> Sequence[ApiKey]:
        return ()


class Handler:
    """A `ProtocolHandler` that runs a function."""

    def __init__(
        self,
        handle: Callable[[Connection], Awaitable[object]],
        *,
        alpns: Sequence[str] = ("test/1",),
        requires_identity: bool = False,
    ) -> None:
        self._handle = handle
        self.alpns = alpns
        self.requires_identity = requires_identity

    async def handle(self, connection: Connection) -> None:
        await self._handle(connection)


async def echo(connection: Connection) -> None:
    """Send back what comes on each stream, one stream after the other."""
    while True:
        stream = await connection.accept_stream()
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()


async def ask(connection: Connection, data: bytes = b"ping") -> bytes:
    """One question to `echo`."""
    stream = await connection.open_stream()
    await stream.send_all(data)
    await stream.send_eof()
    return b"".join([chunk async for chunk in stream])
