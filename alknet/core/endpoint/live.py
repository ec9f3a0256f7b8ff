"""The connections that live now, and whether they still may.

A connection is entered here *before* its key is looked up, and all are judged anew whenever the
`IdentityProvider` changes. So a revocation either is seen by the look-up or finds the connection
in the list: none falls between.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec
import trio

from alknet.core.contracts import CloseCode, Connection, IdentityProvider, TooStale
from alknet.core.endpoint.admission import Place
from alknet.core.identity import ANONYMOUS, OWNER, Identity
from alknet.core.transport import TransportStatus
from alknet.errors import Denied, Unavailable

__all__ = ["ConnectionStatus", "LiveConnection", "LiveConnections"]

log = logging.getLogger(__name__)


class ConnectionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``alknet status``.

    Attributes:
        id: ``c1``, ``c2`` … in the order in which they came.
        identity: Id of the identity that it has now.
        peer: Short text of the peer's key, None for a stranger.
        age_s: Seconds since it was entered.
        calls: Calls of both directions that run now; None where there are none to count.
        transport: How its transport is doing.
    """

    id: str
    alpn: str
    carrier: str
    identity: str
    peer: str | None
    address: str
    is_dialer: bool
    age_s: float
    calls: int | None
    transport: TransportStatus


class LiveConnection:
    """A connection and what the endpoint knows about it.

    Attributes:
        place: Its share of the admission counters, once admitted.
        scope: Cancelled to end its handler; unused for connections that others serve.
        is_owner: It came through the control socket.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        opened_at: float,
        *,
        is_owner: bool,
    ) -> None:
        self.connection = connection
        self.id = name
        self.opened_at = opened_at
        self.is_owner = is_owner
        self.place: Place | None = None
        self.scope = trio.CancelScope()

    @property
    def peer(self) -> str | None:
        """Short text of the peer's key."""
        key = self.connection.peer_key
        return None if key is None else key.short

    def become(self, identity: Identity) -> None:
        """Make *identity* the connection's, also in the counters."""
        if self.place is not None:
            self.place.move_to(identity)
        self.connection.become(identity)


class LiveConnections:
    """The list, and the task that keeps it honest (`follow`)."""

    def __init__(self, identities: IdentityProvider) -> None:
        self._identities = identities
        # Taken before any look-up: a change that comes before `follow` first runs is not missed.
        self._judged_version = identities.version
        self._entries: dict[Connection, LiveConnection] = {}
        self._numbers = itertools.count(1)
        self._empty = trio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[LiveConnection]:
        return iter(tuple(self._entries.values()))

    @contextmanager
    def registered(
        self, connection: Connection, *, now: float, is_owner: bool = False
    ) -> Iterator[LiveConnection]:
        """Keep *connection* in the list while the block runs."""
        entry = LiveConnection(connection, f"c{next(self._numbers)}", now, is_owner=is_owner)
        if not self._entries:
            self._empty = trio.Event()
        self._entries[connection] = entry
        try:
            yield entry
        finally:
            del self._entries[connection]
            if not self._entries:
                self._empty.set()

    def find(self, connection: Connection) -> LiveConnection | None:
        """Return the entry of *connection* if it is in the list."""
        return self._entries.get(connection)

    async def wait_empty(self) -> None:
        """Wait until no connection is left. Cancelled, nothing happens."""
        await self._empty.wait()

    def identify(self, entry: LiveConnection) -> Identity:
        """Look up whose connection it is now.

        Raises:
            Denied: The key is a disabled peer's.
            Unavailable: The store is too stale to tell.
        """
        if entry.is_owner:
            return OWNER
        key = entry.connection.peer_key
        return ANONYMOUS if key is None else self._identities.identify_key(key) or ANONYMOUS

    async def follow(self) -> None:
        """Judge all connections anew after each change of the identities; runs until cancelled."""
        while True:
            self._judged_version = await self._identities.wait_changed(self._judged_version)
            for entry in self:
                self._judge(entry)

    def snapshot(
        self, now: float, calls: Mapping[Connection, int] | None = None
    ) -> list[ConnectionStatus]:
        """List the connections for people, oldest first; *now* is of the same clock as before.

        Args:
            calls: How many calls run on which connections.
        """
        return [_status(entry, now, (calls or {}).get(entry.connection)) for entry in self]

    def _judge(self, entry: LiveConnection) -> None:
        before = entry.connection.identity
        try:
            identity = self.identify(entry)
        except Denied as exc:
            _revoke(entry, exc.reason)
        except TooStale as exc:
            _end(entry, f"unavailable: {exc}")
        except Unavailable:
            return  # unknown is not gone: it keeps what it has until the store can tell again
        else:
            if identity.is_anonymous and not before.is_anonymous:
                _revoke(entry, "this key is no longer a peer's")
            elif identity.id != before.id and not before.is_anonymous:
                # What was called and attached by its name would go to another.
                _revoke(entry, "this key is another peer's now")
            elif identity != before:
                entry.become(identity)
                log.info(
                    "connection.identity_changed",
                    extra={"connection": entry.id, "was": before.id, "now": identity.id},
                )


def _revoke(entry: LiveConnection, reason: str) -> None:
    log.info("connection.revoked", extra={"connection": entry.id, "reason": reason})
    entry.connection.close(CloseCode.REVOKED, reason)


def _end(entry: LiveConnection, reason: str) -> None:
    log.warning("connection.ended", extra={"connection": entry.id, "reason": reason})
    entry.connection.close(CloseCode.INTERNAL, reason)


def _status(entry: LiveConnection, now: float, calls: int | None) -> ConnectionStatus:
    connection = entry.connection
    return ConnectionStatus(
        id=entry.id,
        alpn=connection.alpn,
        carrier=connection.carrier.name,
        identity=connection.identity.id,
        peer=entry.peer,
        address=connection.remote_address,
        is_dialer=connection.is_dialer,
        age_s=now - entry.opened_at,
        calls=calls,
        transport=connection.transport_status(),
    )
