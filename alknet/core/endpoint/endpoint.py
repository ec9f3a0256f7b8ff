"""The endpoint: every authenticated connection of a node passes here on its way to a handler.

Transports do the handshake (counted by `Endpoint.admit_handshake`), then hand the connection to
`Endpoint.serve_connection`, which runs in *their* task: registered, identified, admitted, routed
and supervised. What is asked on the way, in that order, and how a no is told:

    ====================================  =====================
    the ALPN has a handler                ``protocol``
    the node takes connections            ``shutdown``
    the key is not a disabled peer's      ``revoked``
    the identities can be looked up       ``internal``
    the limits allow it                   ``limit``
    an identity, if the handler wants it  ``auth_required``
    ====================================  =====================
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial

import trio

from alknet.core.budget import MemoryBudget
from alknet.core.contracts import (
    CloseCode,
    Connection,
    IdentityProvider,
    ProtocolHandler,
)
from alknet.core.endpoint.admission import Admission
from alknet.core.endpoint.live import ConnectionStatus, LiveConnection, LiveConnections
from alknet.core.endpoint.supervise import close_and_tell, supervise
from alknet.core.identity import Identity
from alknet.core.limits import Limits
from alknet.core.log import bind
from alknet.core.router import Router
from alknet.core.source import source_of
from alknet.core.tcp.connection import StreamConnection
from alknet.core.tcp.turns import HandshakeTurns, Turn
from alknet.errors import AlknetError, Denied, Unavailable

__all__ = ["AcceptTls", "Endpoint"]

log = logging.getLogger(__name__)

# Cancelled handlers get this long to unwind before their lifespans end regardless.
UNWIND_WITHIN_S = 2.0

AcceptTls = Callable[[trio.abc.Stream, Sequence[str], Turn], Awaitable[Connection]]
"""The server's side of TLS over any byte stream; given the ALPNs to choose from, and turns."""


class Endpoint:
    """Admits, routes, supervises and drains connections, whatever carries them.

    Attributes:
        router: Who serves what.
        draining: Set when a drain begins; listeners close then.
        budget: The bytes that connections hold which others have made to this node.
    """

    def __init__(
        self,
        router: Router,
        identities: IdentityProvider,
        limits: Limits | None = None,
        *,
        accept_tls: AcceptTls | None = None,
        now: Callable[[], float] = trio.current_time,
    ) -> None:
        self.router = router
        self.draining = trio.Event()
        self._admission = Admission(limits or Limits())
        self.budget = MemoryBudget(self.limits.buffered_bytes_total)
        self._live = LiveConnections(identities)
        self._accept_tls = accept_tls
        self._turns = HandshakeTurns()
        self._now = now
        # When the last connection of each peer ended; as many as peers had a connection so far.
        self._left_at: dict[str, float] = {}
        self._is_serving = False
        self._is_hurried = False
        self._patience = trio.CancelScope()
        self._drained = trio.Event()

    @property
    def limits(self) -> Limits:
        """The limits in force; replacing them refuses nothing that is already in."""
        return self._admission.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._admission.limits = limits
        self.budget.total = limits.buffered_bytes_total

    @property
    def handshakes(self) -> int:
        """Handshakes in progress, over all transports."""
        return self._admission.handshakes

    @property
    def is_accepting(self) -> bool:
        """Connections are taken."""
        return self._is_serving and not self.draining.is_set()

    def connections(self, calls: Mapping[Connection, int] | None = None) -> list[ConnectionStatus]:
        """List what lives now, oldest first, with the number of *calls* where it is known."""
        return self._live.snapshot(self._now(), calls)

    def away_for_s(self) -> Mapping[str, float]:
        """Return since when each peer has no connection, by the id of its identity.

        In seconds; those that never had one since the start are missing.
        """
        now = self._now()
        here = {entry.connection.identity.id for entry in self._live}
        return {one: now - left for one, left in self._left_at.items() if one not in here}

    # Life of the endpoint.

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Enter the handlers' lifespans and take connections until drained.

        Cancelled, all handlers are cancelled and have ended before the lifespans do.
        """
        async with self.router.lifespans(), trio.open_nursery() as nursery:
            nursery.start_soon(self._live.follow)
            self._is_serving = True
            task_status.started()
            try:
                await self._drained.wait()
            finally:
                self._is_serving = False
                await self._cancel_remaining()
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[trio.Nursery]:
        """Serve while the block runs, then drain. An exception or a cancel skips the drain.

        Yields:
            A nursery for listeners; it is cancelled after the drain.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self.serve)
            yield nursery
            await self.drain()
            nursery.cancel_scope.cancel()

    async def drain(self, timeout_s: float | None = None) -> None:
        """Stop in order; returns when no handler runs and `serve` is about to return.

        Args:
            timeout_s: How long handlers may take, `Limits.drain_timeout_s` if None.

        Cancelled, nothing new is taken and handlers know of the drain; it can be called again.
        Once it has returned, another call has nothing left to wait for.
        """
        if self._drained.is_set():
            return
        # 1. Take nothing new: work cannot come to an end while more of it arrives.
        self.draining.set()
        # 2. Tell the handlers, all at once: they say goodbye to their peers and finish.
        for entry in self._live:
            entry.connection.draining.set()
        # 3. Wait for them while sockets and stores are still there, for they use both.
        wait_s = self.limits.drain_timeout_s if timeout_s is None else timeout_s
        with trio.move_on_after(0 if self._is_hurried else wait_s) as self._patience:
            await self._live.wait_empty()
        # 4. Cancel what is left; their peers hear `shutdown`.
        await self._cancel_remaining()
        # 5. Let `serve` go: lifespans end last, in reverse order.
        self._drained.set()

    def hurry(self) -> None:
        """Wait for handlers no longer: they are cancelled now, or as soon as a drain begins."""
        self._is_hurried = True
        self._patience.cancel()

    # What transports call.

    def admit_handshake(self, remote_address: str) -> AbstractContextManager[None]:
        """Count a handshake with *remote_address* while the block runs.

        Raises:
            Unavailable: On entering: too many, or the node stops.
        """
        return self._handshake(source_of(remote_address))

    async def serve_connection(self, connection: Connection) -> None:
        """Serve one connection after its handshake, until it has ended. Never raises for its sake.

        Cancelled, the handler is cancelled and the connection closes with `CloseCode.SHUTDOWN`.
        """
        await self._serve(connection, source_of(connection.remote_address))

    async def serve_owner(self, connection: Connection) -> None:
        """Serve a connection of the control socket, whose other end is this node's owner.

        Like `serve_connection`; nothing else may call it.
        """
        await self._serve(connection, None, is_owner=True)

    async def serve_stream(
        self, stream: trio.abc.Stream, *, remote_address: str, relay: Identity | None = None
    ) -> None:
        """Do the server's side of TLS on a byte stream, then serve it as a connection.

        Args:
            stream: Becomes the endpoint's, which closes it.
            remote_address: Where it comes from, as far as anyone knows.
            relay: The peer that relays it, against whom it is then counted.

        Never raises for the other side's sake. Cancelled, the stream is closed.
        """
        source = source_of(remote_address, relay)
        try:
            with self._handshake(source), trio.fail_after(self.limits.handshake_timeout_s):
                connection = await self._handshake_tls(stream, source)
        except (AlknetError, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self._log_failed_handshake(remote_address, str(exc))
        except trio.TooSlowError:
            self._log_failed_handshake(remote_address, "timed out")
        except Exception:  # boundary: what a stranger sends must not end the node
            log.exception("handshake.crashed", extra={"address": remote_address})
        else:
            connection.remote_address = remote_address
            if isinstance(connection, StreamConnection):
                connection.charge_to(self.budget)
            await self._serve(connection, source)
        finally:
            await trio.aclose_forcefully(stream)

    @contextmanager
    def track(self, connection: Connection) -> Iterator[None]:
        """Keep a connection that this node dialled in the list while the block runs.

        It gets its identity, is closed when that is revoked, told of a drain and closed at its end;
        who dialled it serves it. It counts, but no limit refuses it.

        Raises:
            Denied: The key is a disabled peer's.
            Unavailable: The node stops, or the identities cannot be looked up now.
        """
        if self.draining.is_set():
            raise Unavailable("the node stops")
        with self._registered(connection) as entry:
            identity = self._live.identify(entry)
            entry.place = self._admission.enter(source_of(connection.remote_address), identity)
            entry.connection.identity = identity
            try:
                with bind(connection=entry.id, peer=entry.peer):
                    yield
            finally:
                entry.place.release()

    def report_failed_authentication(self, connection: Connection) -> bool:
        """Count a token that was refused on *connection*.

        Not for unknown keys, a stale store or a time-out: none of these is a guess.

        Returns:
            It was one too many: the handler must close with ``limit``, once it has answered.
        """
        entry = self._live.find(connection)
        if entry is None or entry.place is None:
            return False
        is_too_many = self._admission.failed_authentication(entry.place, self._now())
        if is_too_many:
            log.warning("connection.too_many_failed_authentications")
        return is_too_many

    # From a connection to its handler.

    async def _serve(
        self, connection: Connection, source: str | None, *, is_owner: bool = False
    ) -> None:
        with (
            self._registered(connection, is_owner=is_owner) as entry,
            bind(connection=entry.id, peer=entry.peer),
        ):
            try:
                await self._admit_and_run(entry, source)
            except Exception:  # boundary: a transport's fault ends its own connection, not the node
                log.exception("connection.crashed")

    async def _admit_and_run(self, entry: LiveConnection, source: str | None) -> None:
        try:
            handler = self._admit(entry, source)
        except _Refused as refused:
            await self._refuse(entry.connection, refused)
        else:
            await self._run(entry, handler)

    @contextmanager
    def _registered(
        self, connection: Connection, *, is_owner: bool = False
    ) -> Iterator[LiveConnection]:
        with self._live.registered(connection, now=self._now(), is_owner=is_owner) as entry:
            try:
                yield entry
            finally:
                if connection.identity.id.startswith("peer:"):
                    self._left_at[connection.identity.id] = self._now()

    def _admit(self, entry: LiveConnection, source: str | None) -> ProtocolHandler:
        """Ask the questions of the module's table, in order; `_Refused` with the first no."""
        connection = entry.connection
        handler = self.router.handler(connection.alpn)
        if handler is None:
            raise _Refused(CloseCode.PROTOCOL, "no handler for this protocol")
        connection.farewell = self.router.farewell(connection.alpn)
        if not self.is_accepting:
            raise _Refused(CloseCode.SHUTDOWN, "the node stops")
        identity = self._identify(entry, source)
        try:
            entry.place = self._admission.admit(source, identity, self._now())
        except Unavailable as exc:
            raise _Refused(CloseCode.LIMIT, str(exc)) from exc
        connection.identity = identity
        return handler

    def _identify(self, entry: LiveConnection, source: str | None) -> Identity:
        try:
            return self._live.identify(entry)
        except Denied as exc:
            self._admission.failed_key(source, self._now())
            raise _Refused(CloseCode.REVOKED, exc.reason) from exc
        except Unavailable as exc:
            raise _Refused(CloseCode.INTERNAL, f"unavailable: {exc}") from exc

    async def _run(self, entry: LiveConnection, handler: ProtocolHandler) -> None:
        connection = entry.connection
        assert entry.place is not None
        try:
            if handler.requires_identity and connection.identity.is_anonymous:
                refused = _Refused(CloseCode.AUTH_REQUIRED, "identity required")
                await self._refuse(connection, refused)
                return
            # Each command of the owner is a connection; only others' are events of the node's life.
            level = logging.DEBUG if entry.is_owner else logging.INFO
            log.log(level, "connection.accepted", extra=_about(connection))
            with entry.scope:
                await supervise(connection, handler)
            log.log(level, "connection.ended", extra={"reason": str(connection.close_reason)})
        finally:
            entry.place.release()

    async def _refuse(self, connection: Connection, refused: _Refused) -> None:
        log.info("connection.refused", extra=_about(connection) | {"reason": str(refused)})
        await close_and_tell(connection, refused.code, str(refused))

    @contextmanager
    def _handshake(self, source: str) -> Iterator[None]:
        if not self.is_accepting:
            raise Unavailable("the node stops")
        with self._admission.handshake(source):
            yield

    async def _handshake_tls(self, stream: trio.abc.Stream, source: str) -> Connection:
        if self._accept_tls is None:
            raise Unavailable("this endpoint was made without TLS")
        turn = partial(self._turns.of, source)
        return await self._accept_tls(stream, self.router.alpns, turn)

    def _log_failed_handshake(self, remote_address: str, error: str) -> None:
        log.info("handshake.failed", extra={"address": remote_address, "error": error})

    async def _cancel_remaining(self) -> None:
        for entry in self._live:
            entry.scope.cancel()
            if entry.connection.is_dialer:
                entry.connection.close(CloseCode.SHUTDOWN, "the node stops")
        with trio.move_on_after(UNWIND_WITHIN_S, shield=True):
            await self._live.wait_empty()


class _Refused(Exception):
    """A connection that does not get to a handler."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def _about(connection: Connection) -> dict[str, object]:
    return {
        "alpn": connection.alpn,
        "carrier": connection.carrier.name,
        "address": connection.remote_address,
        "identity": connection.identity.id,
    }
