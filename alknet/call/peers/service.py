"""What attaches peers: those that say that they serve calls, and those that this node dials."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.peers.attached import AttachedPeer
from alknet.call.peers.environment import PeerEnvironment
from alknet.call.session import CallSession
from alknet.core.contracts import CloseCode

__all__ = ["Follow", "PeerService", "run_attached"]

log = logging.getLogger(__name__)

SILENT_S = 5.0
"""An older session of a peer that has come back is given up when nothing comes on it for so long:
any network has acknowledged a request by then, so the process that was there has been killed."""

LATE_S = 0.5
"""After that, for what has come while this process itself stood still and read nothing."""

Follow = Callable[[AttachedPeer, CallSession], Awaitable[None]]
"""Keeps `AttachedPeer.operations` what the peer says on a session, until cancelled.

It ends by itself where there is nothing to follow: then the peer stays attached. One that breaks
the rules has its connection closed by it.
"""


async def run_attached(
    environment: PeerEnvironment,
    name: str,
    session: CallSession,
    *,
    follow: Follow,
    task_status: trio.TaskStatus[AttachedPeer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Let the peer *name* be called by *session*, until that has ended.

    Cancelled, the session is detached and goes on.
    """
    with environment.attach(name, session) as attached:
        key = attached.node_id
        about = {"peer": name, "key": None if key is None else key.short}
        log.info("peer.attached", extra=about)
        task_status.started(attached)
        session.wait_unneeded = environment.wait_unneeded
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow, attached, session, name=f"operations of {name}")
                for older in attached.sessions:
                    if older is not session:
                        nursery.start_soon(_end_if_silent, older, name, name=f"older {name}")
                await session.connection.wait_closed()
                nursery.cancel_scope.cancel()
        finally:
            session.wait_unneeded = None
            log.info("peer.detached", extra=about)


async def _end_if_silent(older: CallSession, name: str) -> None:
    """End a session of a peer that has come back, unless somebody is there yet.

    Whoever was killed has said no goodbye, and its calls would wait for the idle time-out. One that
    lives acknowledges at least, however busy it is, and ends what it has.
    """
    status = older.connection.transport_status
    heard = status().packets_received
    with trio.move_on_after(SILENT_S) as scope, suppress(CallError):
        await older.call("node/ping")
    if not scope.cancelled_caught or heard is None:
        return
    await trio.sleep(LATE_S)
    if status().packets_received == heard:
        log.info("peer.silent", extra={"peer": name})
        older.end(CloseCode.OK, "the peer has connected again, and is silent here")


class PeerService:
    """Attaches the peers that call ``peers/offer``, for the life of the session they do it on.

    Attributes:
        environment: Where they are attached.
    """

    def __init__(self, environment: PeerEnvironment, *, follow: Follow) -> None:
        self.environment = environment
        self._follow = follow
        self._sessions: set[CallSession] = set()

    def offered(self, session: object) -> None:
        """Attach the peer on the other side of *session*; once more has no effect.

        Args:
            session: As a dispatcher is told it (`CallInfo.session`).

        Raises:
            CallError: FORBIDDEN, for it is no known peer: a token makes nobody a peer.
        """
        if not isinstance(session, CallSession):
            raise _no_peer()
        kind, _, name = session.connection.identity.id.partition(":")
        if kind != "peer":
            raise _no_peer()
        if session not in self._sessions:
            self._sessions.add(session)
            session.spawn(self._run, name, session, name=f"peer {name}")

    async def _run(self, name: str, session: CallSession) -> None:
        try:
            await run_attached(self.environment, name, session, follow=self._follow)
        finally:
            self._sessions.discard(session)


def _no_peer() -> CallError:
    why = "only a peer that this node knows by its key can offer operations"
    return CallError(ErrorCode.FORBIDDEN, why)
