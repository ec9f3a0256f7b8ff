"""``alknet/call`` as a service of a node: a session per connection, and tokens that end calls."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import trio

from alknet.call.codes import ErrorCode
from alknet.call.contracts import Dispatcher
from alknet.call.inbound import REVOKED, InboundCall, failed
from alknet.call.pending import WATCH, PendingWatch
from alknet.call.proto import Aborted, ConnectionClose, encode_event, encode_frame
from alknet.call.session import CallSession
from alknet.core.clock import WallClock, wall_clock
from alknet.core.contracts import (
    CloseCode,
    CloseReason,
    Connection,
    IdentityProvider,
    ProtocolHandler,
    TooStale,
)
from alknet.core.identity import Identity
from alknet.core.limits import Limits
from alknet.core.scopes import open_background
from alknet.errors import Denied, Unavailable

__all__ = ["ALPN", "CallHandler"]

ALPN = "alknet/call"
LOOKING_ON = frozenset({WATCH, "node/status", "node/tasks"})
"""Calls by which nodes and their owners look on: whoever counts what runs does not mean them."""

SERVED_POLL_S = 0.02
"""Between two looks at whether calls run, while the node drains: too short to be waited for."""


class CallHandler:
    """Serves calls on every connection that speaks `ALPN`, strangers' too.

    Strangers reach public operations, and others with a token. Calls that run under a token end
    when the token is revoked (noticed when `IdentityProvider.version` changes) or expires. When a
    peer or token has fewer rights than before, its calls end that these do not admit to.

    Attributes:
        alpns: The one name.
        requires_identity: False: the operations decide.
        sessions: Those that live.
        limits: For connections that come from now on.
    """

    alpns: Sequence[str] = (ALPN,)
    requires_identity = False

    def __init__(
        self,
        dispatcher: Dispatcher,
        limits: Limits,
        *,
        identities: IdentityProvider | None = None,
        on_failed_authentication: Callable[[Connection], object] | None = None,
        clock: WallClock = wall_clock,
    ) -> None:
        """Make a handler.

        Args:
            identities: Who a token is; without it, running calls outlive their tokens.
            on_failed_authentication: Told of each refused token, to count it by address; returns
                True if that was one too many and the connection must close.
            clock: What token expiries are compared with.
        """
        self.dispatcher = dispatcher
        self.limits = limits
        self.sessions: set[CallSession] = set()
        self._identities = identities
        self._on_failed_authentication = on_failed_authentication
        self._clock = clock

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Watch for revoked tokens while the node serves."""
        async with trio.open_nursery() as nursery:
            if self._identities is not None:
                nursery.start_soon(self._follow, self._identities, name="token revocation")
            yield
            nursery.cancel_scope.cancel()

    async def handle(self, connection: Connection) -> None:
        """Serve one connection until it ends. Cancelled, its calls are cancelled."""
        with self._entered(connection) as session:
            await session.run()

    @asynccontextmanager
    async def open_session(self, connection: Connection) -> AsyncGenerator[CallSession]:
        """Serve a connection that this node dialled, for as long as the block, which calls by it.

        Leaving the block closes the connection. Cancelled, the session is cancelled too, and the
        connection is left to its owner.
        """
        with self._entered(connection) as session:
            async with open_background(end=lambda: session.end(CloseCode.OK)) as nursery:
                await nursery.start(session.run)
                yield session

    def calls_by_connection(self) -> dict[Connection, int]:
        """Return how many calls run on each connection, in both directions.

        Those by which others only look on (`LOOKING_ON`), the one that asks now included, are none.
        """
        return {
            session.connection: _served(session)
            + sum(not isinstance(one, PendingWatch) for one in session.calling.pending.values())
            for session in self.sessions
        }

    def calls_served(self) -> int:
        """Return how many calls of others run here, counted in the same way."""
        return sum(map(_served, self.sessions))

    async def wait_served(self) -> None:
        """Wait until no call runs here for anyone. Cancelled, no effect."""
        while any(session.serving.calls for session in self.sessions):  # noqa: ASYNC110  rarely
            await trio.sleep(SERVED_POLL_S)

    def judge_again(self) -> None:
        """Have all calls end that today's rules would refuse; the others go on."""
        for session in list(self.sessions):
            for call in list(session.serving.calls.values()):
                call.go_on_as(call.identity)

    def farewell(self, reason: CloseReason) -> bytes:
        """Return the frame that tells *reason* on a carrier which cannot."""
        return encode_frame(encode_event(ConnectionClose(reason.code, reason.reason)))

    @contextmanager
    def _entered(self, connection: Connection) -> Iterator[CallSession]:
        session = CallSession(
            connection,
            self.dispatcher,
            limits=self.limits,
            on_failed_authentication=self._on_failed_authentication,
            token_ends_at=self._token_ends_at,
        )
        self.sessions.add(session)
        connection.identity_changed = partial(_rights_changed, session)
        try:
            yield session
        finally:
            connection.identity_changed = None
            self.sessions.discard(session)

    async def _follow(self, identities: IdentityProvider) -> None:
        version = identities.version
        while True:
            version = await identities.wait_changed(version)
            for session in list(self.sessions):
                for call in list(session.serving.calls.values()):
                    if call.auth_token is not None:
                        _judge_token(identities, call, call.auth_token)
                        call.expire_at(self._token_ends_at(call.identity))

    def _token_ends_at(self, identity: Identity) -> float:
        expires_at = None
        if self._identities is not None:
            expires_at = self._identities.token_expires_at(identity)
        if expires_at is None:
            return math.inf
        return trio.current_time() + expires_at - self._clock()


def _served(session: CallSession) -> int:
    return sum(call.operation not in LOOKING_ON for call in session.serving.calls.values())


def _rights_changed(session: CallSession) -> None:
    identity = session.connection.identity
    for call in list(session.serving.calls.values()):
        if call.auth_token is None and call.identity.id == identity.id:
            call.go_on_as(identity)


def _judge_token(identities: IdentityProvider, call: InboundCall, token: str) -> None:
    """End a call whose token is revoked, has too few rights now, or was unknowable for too long."""
    try:
        identity = identities.identify_token(token)
    except Denied:
        call.end(Aborted(call.id, REVOKED))
    except TooStale as exc:
        call.end(failed(call.id, ErrorCode.UNAVAILABLE, str(exc)))
    except Unavailable:
        return  # a store that cannot say is no revocation; new calls are refused meanwhile
    else:
        if identity != call.identity:
            call.go_on_as(identity)


_: type[ProtocolHandler] = CallHandler
