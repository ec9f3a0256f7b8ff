"""What the parts of alknet promise one another: streams, connections, handlers, providers.

A *carrier* (QUIC, TLS on TCP, memory, a Unix socket) gives `Connection` objects. The router hands
each to the `ProtocolHandler` of its ALPN, inside a scope of its own. Handlers see this module
only; they never ask which carrier they run on, but what it can do (`Carrier`).

Errors of streams and connections are Trio's, whose classes say whose fault it is:
`trio.ClosedResourceError` (we closed it), `trio.BrokenResourceError` (the other side or the
network did; the subclasses here carry the code), `trio.BusyResourceError` (two tasks at once).
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec
import trio

from alknet.core.identity import ANONYMOUS, ApiKey, Identity, NodeId, Peer
from alknet.core.transport import TransportStatus
from alknet.errors import Unavailable

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from alknet.vault.locked import LockedBuffer

__all__ = [
    "CARRIER_MEMORY",
    "CARRIER_QUIC",
    "CARRIER_TCP",
    "CARRIER_UNIX",
    "MAX_REASON_BYTES",
    "Carrier",
    "CloseCode",
    "CloseReason",
    "Connection",
    "ConnectionEnded",
    "HasFarewell",
    "IdentityProvider",
    "IdentityStore",
    "OwnershipProvider",
    "ProtocolHandler",
    "SecretProvider",
    "Stream",
    "StreamReset",
    "TooStale",
    "cut_utf8",
]


class Carrier(msgspec.Struct, frozen=True):
    """What the transport under a connection can do.

    Attributes:
        name: ``quic``, ``tcp``, ``memory`` or ``unix``; for people, never for decisions.
        many_streams: Streams can be opened at will by both sides. If not, the connection is one
            bidirectional stream: the dialler's first `Connection.open_stream` and the acceptor's
            first `Connection.accept_stream` give it.
        datagrams: Unreliable datagrams can be sent.
        close_code: `Connection.close` delivers its code and reason to the other side. If not,
            a protocol that needs them sends them itself before closing.
    """

    name: str
    many_streams: bool
    datagrams: bool
    close_code: bool


# The longest close reason, on every carrier: what fits one QUIC packet with room to spare.
MAX_REASON_BYTES = 512

CARRIER_QUIC = Carrier("quic", many_streams=True, datagrams=True, close_code=True)
CARRIER_TCP = Carrier("tcp", many_streams=False, datagrams=False, close_code=False)
CARRIER_UNIX = Carrier("unix", many_streams=False, datagrams=False, close_code=False)
CARRIER_MEMORY = Carrier("memory", many_streams=True, datagrams=True, close_code=True)


class CloseCode(enum.IntEnum):
    """Application close codes of a connection, the same for every ALPN of ours."""

    OK = 0
    INTERNAL = 1
    PROTOCOL = 2
    LIMIT = 3
    SHUTDOWN = 4
    REVOKED = 5
    AUTH_REQUIRED = 6
    HANDLER_ERROR = 7


class CloseReason(msgspec.Struct, frozen=True):
    """Why a connection ended.

    Attributes:
        code: An application code (see `CloseCode`), or a transport's own when *is_transport*.
        reason: Text for people, at most 512 bytes; may come from the peer.
        by_peer: The other side ended it.
        is_transport: The transport ended it (time-out, TLS alert, protocol error, lost link).
    """

    code: int
    reason: str
    by_peer: bool
    is_transport: bool = False

    def __str__(self) -> str:
        who = "peer" if self.by_peer else "us"
        kind = "transport" if self.is_transport else "application"
        name = "" if self.is_transport else f" {_code_name(self.code)}"
        reason = self.reason or "no reason given"
        return f"closed by {who} ({kind} code {self.code:#x}{name}): {reason}"


def cut_utf8(text: str, longest: int) -> str:
    """Cut *text* to at most *longest* bytes of UTF-8, never inside a character."""
    return text.encode(errors="replace")[:longest].decode(errors="ignore")


def _code_name(code: int) -> str:
    try:
        return CloseCode(code).name.lower()
    except ValueError:
        return "unknown"


class ConnectionEnded(trio.BrokenResourceError):
    """The connection ended, not by our `close`. Retrying needs a new connection.

    Attributes:
        close: Who ended it and why.
    """

    def __init__(self, close: CloseReason) -> None:
        super().__init__(str(close))
        self.close = close


class StreamReset(trio.BrokenResourceError):
    """The peer reset its sending side (RESET_STREAM) or refused our bytes (STOP_SENDING).

    Attributes:
        code: The application error code that the peer gave.
    """

    def __init__(self, code: int, what: str = "reset") -> None:
        super().__init__(f"stream {what} by the peer with code {code:#x}")
        self.code = code


class Stream(trio.abc.HalfCloseableStream):
    """A byte stream inside a connection, ordered and reliable, with back-pressure both ways.

    `send_all` returns once the bytes are accepted into a bounded buffer, not once they arrived;
    cancelled, it may have accepted some, all or none of them. `receive_some` cancelled takes
    nothing. `aclose` is idempotent: it finishes the sending side if it is open, tells the
    peer to stop sending, and never waits for the network beyond one checkpoint. A unidirectional
    stream raises `trio.ClosedResourceError` on the side that it does not have.
    """

    @property
    @abstractmethod
    def stream_id(self) -> int:
        """The number of the stream in its connection (RFC 9000 sec. 2.1); 0 if there is but one."""

    def send_now(self, data: bytes) -> bool:
        """Accept all of *data* without waiting, or nothing; return whether it was accepted.

        False says only that `send_all` is needed: it may have to wait, or raises. For a few bytes
        that would else cost a task a wake-up; many small pieces are better joined.

        Raises:
            trio.BusyResourceError: Another task is in `send_all`.
        """
        return False

    @abstractmethod
    def reset(self, code: int) -> None:
        """Abandon the sending side: unsent bytes are dropped, the peer sees *code*.

        Idempotent; does nothing after `send_eof` was acknowledged. On a carrier of one stream
        the connection goes with it.
        """

    @abstractmethod
    def stop_sending(self, code: int) -> None:
        """Say that nothing more will be read; the peer's `send_all` raises `StreamReset`.

        Idempotent. Unread bytes are dropped and their flow-control credit returned.
        """

    def notify_stopped(self, callback: Callable[[], object] | None) -> None:
        """Call *callback* once the peer refuses our bytes, now if it has; None takes it back.

        The next `send_all` then raises `StreamReset`; this is for those who have nothing to send
        yet. Never called on carriers where a peer cannot refuse.
        """

    def offer(self, taker: Callable[[bytes], bool] | None) -> None:
        """Let *taker* have what arrives, piece by piece, before who waits in `receive_some`.

        That saves waking a task for a few bytes. *taker* is called where they arrive, in order, and
        only while a task waits: it must not wait, nor send by `send_now`. True says that it has
        taken the piece, which nobody else gets; False leaves it to `receive_some`, and what it
        raises `receive_some` raises. None takes it back.

        A carrier need not: there everything comes by `receive_some`.
        """


class Connection(ABC):
    """An authenticated connection that speaks one ALPN.

    The endpoint that made it owns it: it ends when `close` or `aclose` is called, when its
    handler returns or crashes, or when either end or the network goes away.

    Attributes:
        alpn: The protocol agreed in the TLS handshake.
        carrier: What the transport can do.
        is_dialer: We opened the connection.
        peer_key: The peer's key, whose possession it has proven; None for a stranger.
        remote_address: ``ip:port``, a path, or what the carrier can say.
        local_address: The same for our side.
        server_name: The SNI that the dialler sent, if any.
        identity: Who the peer is; the endpoint replaces it when the peer's record changes, by
            `become`.
        identity_changed: Called by `become`: what the peer has running may be too much for it now.
        draining: Set when the node wants to stop: finish what runs, take nothing new, return.
        farewell: On a carrier without close codes: makes the last bytes, by which the peer learns
            why we close with another code than 0 (see `HasFarewell`). They are left out where
            they would stand amid others.
    """

    def __init__(
        self,
        *,
        alpn: str,
        carrier: Carrier,
        is_dialer: bool,
        peer_key: NodeId | None,
        remote_address: str,
        local_address: str = "",
        server_name: str | None = None,
    ) -> None:
        self.alpn = alpn
        self.carrier = carrier
        self.is_dialer = is_dialer
        self.peer_key = peer_key
        self.remote_address = remote_address
        self.local_address = local_address
        self.server_name = server_name
        self.identity: Identity = ANONYMOUS
        self.draining = trio.Event()
        self.farewell: Callable[[CloseReason], bytes] | None = None
        self.identity_changed: Callable[[], object] | None = None

    def __repr__(self) -> str:
        side = "to" if self.is_dialer else "from"
        return (
            f"<{type(self).__name__} {self.alpn} {side} {self.remote_address} "
            f"over {self.carrier.name} as {self.identity.id}>"
        )

    def become(self, identity: Identity) -> None:
        """Make *identity* the peer's, and have judged anew what runs for it."""
        self.identity = identity
        if self.identity_changed is not None:
            self.identity_changed()

    @abstractmethod
    async def accept_stream(self) -> Stream:
        """Wait for the peer's next bidirectional stream. Cancelled, it takes none.

        Raises:
            ConnectionEnded: The connection ended (also with code 0).
            trio.ClosedResourceError: We closed it.
        """

    @abstractmethod
    async def accept_uni_stream(self) -> Stream:
        """Wait for the peer's next unidirectional stream, which can only be read.

        Cancelled, it takes none. Raises like `accept_stream`; on a carrier of one stream it waits
        until the connection ends.
        """

    @abstractmethod
    async def open_stream(self, *, unidirectional: bool = False) -> Stream:
        """Open a stream; waits while the peer's stream limit is reached.

        Cancelled, no stream was opened. The peer sees the stream with its first bytes.

        Raises:
            ConnectionEnded: The connection ended.
            trio.ClosedResourceError: We closed it.
            LocalError: The carrier has one stream, and it is taken or not unidirectional.
        """

    @property
    @abstractmethod
    def max_datagram_size(self) -> int:
        """The longest datagram in bytes that fits the path now; 0 if the peer takes none."""

    @abstractmethod
    def send_datagram(self, data: bytes) -> None:
        """Send *data* unreliably; it may be lost, never split.

        Raises:
            LocalError: It is longer than `max_datagram_size`, or the carrier has no datagrams.
            ConnectionEnded: The connection ended.
            trio.ClosedResourceError: We closed it.
        """

    @abstractmethod
    async def receive_datagram(self) -> bytes:
        """Wait for the next datagram. Cancelled, it takes none. Raises like `accept_stream`."""

    @abstractmethod
    def close(self, code: int = 0, reason: str = "") -> None:
        """Begin to close: streams break now, the peer is told, nothing waits. Idempotent.

        Args:
            code: 0 ... 2^62-1, see `CloseCode`.
            reason: At most 512 bytes of UTF-8 (cut if longer), readable by the peer: no secrets.
        """

    async def aclose(self, code: int = 0, reason: str = "") -> None:
        """Close and wait until the peer was told; with code 0, first flush what streams accepted.

        `close` drops bytes that are still in send buffers. This waits, for a time that the
        carrier bounds, until they were acknowledged (QUIC) or handed to the kernel.
        Cancelled, the connection closes all the same, unflushed.
        """
        self.close(code, reason)
        await self.wait_closed()

    @abstractmethod
    async def wait_closed(self) -> CloseReason:
        """Wait until the connection has ended and say why. Cancelled, nothing happens."""

    @property
    @abstractmethod
    def close_reason(self) -> CloseReason | None:
        """Why the connection ended, or None while it lives."""

    def transport_status(self) -> TransportStatus:
        """Say how the transport is doing; what it cannot tell is None."""
        return TransportStatus()


@runtime_checkable
class ProtocolHandler(Protocol):
    """A service: what to do with connections that speak one of *alpns*.

    Attributes:
        alpns: The ALPN names that this handler serves; each belongs to one handler of a node.
        requires_identity: Connections without a known, enabled peer are closed with
            `CloseCode.AUTH_REQUIRED` before `handle` sees them.

    A handler may also have ``lifespan()``, an async context manager entered before the first
    connection and left after the last (see `HasLifespan`).
    """

    @property
    def alpns(self) -> Sequence[str]: ...
    @property
    def requires_identity(self) -> bool: ...

    async def handle(self, connection: Connection) -> None:
        """Serve one connection, in a scope of its own, until done.

        Returning flushes what was sent and closes the connection with code 0; an exception closes
        it with `CloseCode.HANDLER_ERROR` and a correlation id. It is cancelled at once when the
        transport fails, a few seconds after either side closed the connection if it has not
        noticed, and at the end of a drain. When ``connection.draining`` is set it should take
        nothing new, finish and return.
        """


@runtime_checkable
class HasLifespan(Protocol):
    """A handler with something to start before the first connection and stop after the last."""

    def lifespan(self) -> AbstractAsyncContextManager[None]:
        """Enter before connections are taken; leave after the last handler returned."""


@runtime_checkable
class HasFarewell(Protocol):
    """A handler whose protocol can say why a connection closes, where the carrier cannot.

    It speaks for the endpoint too, which refuses connections and ends them for reasons of its own.
    """

    def farewell(self, reason: CloseReason) -> bytes:
        """Return the last bytes to send on the connection's only stream."""


class TooStale(Unavailable):
    """Identities have been out of reach for so long that what they granted before ends, too."""


class IdentityProvider(Protocol):
    """Who a key or a token is: synchronous, from memory.

    `version` grows with each change that could alter an answer; live connections and calls are
    judged anew then.
    """

    @property
    def version(self) -> int: ...

    async def wait_changed(self, version: int) -> int:
        """Wait until `version` differs from *version* and return it. Cancelled, nothing happens."""

    def check_fresh(self) -> None:
        """Raise if what is in memory is too old to grant anything from.

        Raises:
            Unavailable: The store behind is too stale to be trusted; `TooStale` if for so long
                that running calls and connections end.
        """

    def identify_key(self, key: NodeId) -> Identity | None:
        """Return the enabled peer that lists *key*, or None for an unknown one.

        Raises:
            Denied: The key belongs to a disabled peer.
            Unavailable: The store behind is too stale to be trusted.
        """

    def identify_token(self, token: str) -> Identity:
        """Return the identity that *token* stands for; compared in constant time.

        Raises:
            Denied: Unknown, malformed, revoked or expired (one message for all four).
            Unavailable: The store behind is too stale to be trusted.
        """

    def token_expires_at(self, identity: Identity) -> float | None:
        """Return when a ``key:`` identity expires, in wall-clock seconds, or None for never."""

    def peer(self, name: str) -> Peer | None: ...
    def peers(self) -> Sequence[Peer]: ...
    def api_keys(self) -> Sequence[ApiKey]: ...


class IdentityStore(IdentityProvider, Protocol):
    """An `IdentityProvider` that can be written. Writes are durable when they return.

    Cancelled, a write was either made whole or not at all.
    """

    async def put_peer(self, peer: Peer) -> None:
        """Add a peer.

        Raises:
            Conflict: The name or one of the fingerprints is taken.
            StoreError: The backing file could not be written.
        """

    async def update_peer(self, peer: Peer, *, was: Peer | None = None) -> None:
        """Replace the record of the same name.

        Args:
            peer: The record as it shall be.
            was: The record from which *peer* was made; without it, what others changed
                meanwhile is overwritten.

        Raises:
            NotFound: There is none.
            Conflict: A fingerprint belongs to another peer, the record is read-only, or it is
                not *was* any more.
            StoreError: The backing file could not be written.
        """

    async def rename_peer(self, name: str, new_name: str) -> None:
        """Give a peer another name.

        Raises like `update_peer`, and Conflict if the name is taken.
        """

    async def remove_peer(self, name: str) -> None:
        """Forget a peer. Raises NotFound, Conflict (read-only) or StoreError."""

    async def put_api_key(self, key: ApiKey) -> None:
        """Add or replace the API key of that prefix. Raises StoreError."""

    async def remove_api_key(self, prefix: str) -> None:
        """Revoke an API key. Raises NotFound or StoreError."""


class OwnershipProvider(Protocol):
    """Who owns which runtime resource: synchronous, from memory.

    Both raise Unavailable while the store behind is too stale to be trusted.
    """

    def owns(self, identity_id: str, resource_type: str, resource_id: str) -> bool: ...
    def owned(self, identity_id: str, resource_type: str) -> Sequence[str]: ...


class SecretProvider(Protocol):
    """Where handlers' secrets come from: the vault."""

    async def get(self, path: str) -> LockedBuffer:
        """Return the newest value at *path*, which the caller closes. Cancelled, no effect.

        Raises:
            NotFound: There is none, or it has expired.
            Unavailable: The vault is locked.
            StoreError: The value cannot be read.
        """
        ...
