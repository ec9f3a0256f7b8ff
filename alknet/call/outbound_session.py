"""What a node does with the peers that it dials: calls in both directions, as with any other."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.handler import ALPN, CallHandler
from alknet.call.outbound import Outbound, OutboundStatus
from alknet.call.peers.announce import OFFER_OPERATION
from alknet.call.peers.environment import PeerEnvironment
from alknet.call.peers.service import Follow, run_attached
from alknet.call.pending import WATCH
from alknet.call.session import CallSession
from alknet.core.backoff import Backoff
from alknet.core.endpoint.dial import dial
from alknet.core.endpoint.endpoint import Endpoint
from alknet.core.endpoint.netwatch import AddressWatch
from alknet.core.nodeid import NodeId
from alknet.core.outbound import OutboundSource, OutboundTarget
from alknet.core.tls.credentials import NodeCredentials
from alknet.core.tls.trust import PinnedKey
from alknet.errors import Denied, Unavailable

__all__ = ["OutboundSessions", "OutboundStatus"]

log = logging.getLogger(__name__)

# The longest wait before a peer that could not take our offer gets it again.
OFFER_AGAIN_S = 30.0


class OutboundSessions:
    """Dials the peers of a source, serves them and is called by them, as long as it runs.

    Args:
        source: Says which.
        endpoint: Keeps the connections in its list, and closes those of revoked peers.
        credentials: Who we are.
        calls: Serves calls of the peers.
        environment: Where the peers are attached.
        follow: Keeps what they offer up to date.
    """

    def __init__(
        self,
        source: OutboundSource,
        *,
        endpoint: Endpoint,
        credentials: NodeCredentials,
        calls: CallHandler,
        environment: PeerEnvironment,
        follow: Follow,
    ) -> None:
        self._endpoint = endpoint
        self._credentials = credentials
        self._calls = calls
        self._environment = environment
        self._follow = follow
        self._watch: AddressWatch | None = None
        # By the name of the peer: the session of now, and whether it has taken our offer by that.
        self._offers: dict[str, tuple[CallSession, bool]] = {}
        self._outbound = Outbound(
            source,
            dial=self.dial,
            serve=self.serve,
            wait_network_changed=self._wait_network_changed,
        )

    def status(self) -> Sequence[OutboundStatus]:
        """Return how each connection is doing, by the name of its peer."""
        return [
            msgspec.structs.replace(one, is_called=self._is_called(one.peer))
            for one in self._outbound.status()
        ]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connections until cancelled; then all are closed."""
        with AddressWatch() as self._watch:
            await self._outbound.run(task_status=task_status)

    @asynccontextmanager
    async def dial(self, target: OutboundTarget, key: NodeId) -> AsyncGenerator[CallSession]:
        """Open a session with the holder of *key*; leaving the block closes its connection.

        Cancelled, all attempts and the connection are closed.

        Raises:
            DialError: Nobody answered with that key.
            Denied: The peer was disabled meanwhile.
            Unavailable: The node stops, or its identities cannot be looked up.
        """
        if self._endpoint.draining.is_set():
            raise Unavailable("the node stops")
        async with dial(
            target.addresses,
            alpn=ALPN,
            trust=PinnedKey(key),
            credentials=self._credentials,
            limits=self._calls.limits,
        ) as connection:
            connection.farewell = self._calls.farewell
            with self._endpoint.track(connection):
                async with self._calls.open_session(connection) as session:
                    yield session

    async def serve(self, name: str, session: CallSession) -> None:
        """Let the peer be called, and say that we can be, until the session ends.

        Cancelled, the peer is detached, and the session goes on.

        Raises:
            Denied: The peer does not know us: it serves us as a stranger, and will not call us.
        """
        try:
            refused = await self._serve(name, session)
        finally:
            if self._offers.get(name, (None, False))[0] is session:
                del self._offers[name]
        if refused is not None:
            raise Denied(f"peer {name!r} does not know this node: {refused.message}")

    async def _serve(self, name: str, session: CallSession) -> CallError | None:
        refused: CallError | None = None
        async with trio.open_nursery() as nursery:

            async def offer() -> None:
                nonlocal refused
                error = await _offer(name, session)
                if error is not None and _is_stranger(error):
                    refused = error
                    nursery.cancel_scope.cancel()
                elif session.close_reason is None:
                    self._offers[name] = session, error is None

            nursery.start_soon(offer, name=f"offer to {name}")
            await run_attached(self._environment, name, session, follow=self._follow)
            nursery.cancel_scope.cancel()
        return refused

    def _is_called(self, name: str) -> bool | None:
        if name not in self._offers:
            return None
        session, is_taken = self._offers[name]
        # Who has refused us and takes us later does not say so: it begins to watch.
        calls = session.serving.calls.values()
        return is_taken or any(call.operation == WATCH for call in calls)

    async def _wait_network_changed(self) -> None:
        assert self._watch is not None
        await self._watch.wait_changed()


def _is_stranger(error: CallError) -> bool:
    """Whether the peer does not know us: one that does may want no operations of us."""
    is_known = (error.details or {}).get("reason") == "may_not_offer"
    return error.code == ErrorCode.FORBIDDEN and not is_known


async def _offer(name: str, session: CallSession) -> CallError | None:
    """Say that we serve calls, until the peer has heard it, or return why it does not want to.

    Cancelled, it has heard it or not.
    """
    backoff = Backoff(longest_s=OFFER_AGAIN_S)
    while session.close_reason is None:
        try:
            await session.call(OFFER_OPERATION, {})
        except CallError as exc:
            if not exc.retryable:
                log.info("outbound.offer_refused", extra={"peer": name, "error": str(exc)})
                return exc
            await trio.sleep(backoff.next_s())
        else:
            return None
    return None
