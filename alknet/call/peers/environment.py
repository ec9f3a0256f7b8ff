"""All peers that a node can call, and the calls to them: one environment per node.

What moves, and what does not: a call that certainly has not started (it was not sent, or the peer
refused it before any handler saw it: `CallError.has_not_started`) may go to another peer that
offers the operation, `MOST_TRIES` in all. One that may have started fails instead; whether to
repeat it is its caller's to say. `PeerRef.specific` never leaves its peer, only a session of it
that has ended.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from random import random  # noqa: TID251  it spreads calls; no secret rests on it
from typing import TYPE_CHECKING, TypeVar, Unpack

import msgspec
import trio

from alknet.call.changes import Changes
from alknet.call.codes import CallError, ErrorCode
from alknet.call.peers.attached import AttachedPeer, Listing
from alknet.call.peers.candidates import OfferIndex
from alknet.call.peers.health import Ejector
from alknet.call.peers.policies import Draw
from alknet.call.peers.reference import PeerRef
from alknet.call.peers.repeating import retrier_for
from alknet.call.retrying import RetryBudget, RetryOptions
from alknet.call.session import Bidi, CallOptions, CallSession, Subscription, Upload
from alknet.core.identity import NodeId

if TYPE_CHECKING:
    from alknet.call.peers.imports import ImportedOperation

__all__ = ["PeerEnvironment"]

log = logging.getLogger(__name__)

MOST_TRIES = 8
"""Peers that one call is offered to: with half of a fleet shutting down, one call in 256 fails."""

SMALL_BYTES = 16 * 1024
"""Outputs up to this size are of small calls, whose time says how fast a peer is."""

S = TypeVar("S", Subscription, Upload, Bidi)


class PeerEnvironment:
    """The attached peers of a node, by name.

    Attributes:
        node_id: The node that they are attached to; None for one without a key.
        changes: Rings when a peer comes or goes, is ejected or readmitted, or changes what it
            offers.
        wait_unneeded: Waits until no handler runs that might still call a peer: connections to
            peers drain after that.
        retry_budget: What all calls share that are to be tried again.
    """

    def __init__(self, node_id: NodeId | None = None, *, draw: Draw = random) -> None:
        """Make an empty one; `run` keeps it healthy.

        Args:
            node_id: Stands in the ``path`` of calls that this node's operations make.
            draw: Where choices and the times of probes get their luck from.
        """
        self.node_id = node_id
        self.changes = Changes()
        self.wait_unneeded: Callable[[], Awaitable[None]] | None = None
        self._draw = draw
        self._peers: dict[str, AttachedPeer] = {}
        self._index = OfferIndex()
        self._ejector = Ejector(self._peers.__len__, self._set_available, self._draw)
        self._last_order = 0
        self.retry_budget = RetryBudget()

    def __repr__(self) -> str:
        return f"<PeerEnvironment of {len(self._peers)} peers, {self._ejector.ejected} ejected>"

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[AttachedPeer]:
        """Iterate over those attached at this moment, in order of attachment."""
        return iter(list(self._peers.values()))

    def get(self, name: str) -> AttachedPeer | None:
        """Return the peer *name*; None if it is not attached."""
        return self._peers.get(name)

    def offering(self, operation: str) -> Sequence[AttachedPeer]:
        """Return the healthy peers that offer *operation*, in order of attachment."""
        candidates = self._index.find(operation)
        return () if candidates is None else tuple(candidates.available)

    def offer_of(self, operation: str) -> ImportedOperation | None:
        """Return how one healthy peer that offers *operation* describes it; None if none does."""
        candidates = self._index.find(operation)
        if candidates is None or not candidates.available:
            return None
        return candidates.available[0].operations[operation]

    def offer(self, ref: PeerRef, operation: str) -> ImportedOperation | None:
        """Return how whom *ref* means describes *operation*; None if nobody offers it."""
        if ref.name is None:
            return self.offer_of(operation)
        peer = self._peers.get(ref.name)
        return None if peer is None else peer.operations.get(operation)

    @property
    def version(self) -> int:
        """Of `changes`."""
        return self.changes.version

    async def wait_changed(self, version: int) -> int:
        """Wait until `version` is not *version*, and return it. Cancelled, no effect."""
        return await self.changes.wait_changed(version)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Probe ejected peers until cancelled. While this does not run, nobody is ejected."""
        await self._ejector.run(task_status=task_status)

    @contextmanager
    def attach(self, name: str, session: CallSession) -> Iterator[AttachedPeer]:
        """Let the peer *name* be called by *session* for as long as the block.

        It gets the new calls from now on; an older session of the same peer ends those that it
        has, and takes over again if it outlives this one. With its last session the peer goes.
        """
        peer = self._peers.get(name)
        if peer is None:
            self._last_order += 1
            peer = AttachedPeer(name, self._last_order, self._operations_changed)
            self._peers[name] = peer
        peer.join(session)
        self._ejector.readmit(peer)
        self.changes.ring()
        try:
            yield peer
        finally:
            if peer.leave(session):
                self._detach(peer)
            self.changes.ring()

    # --- calls

    async def call(
        self,
        ref: PeerRef,
        operation: str,
        input: object = None,  # noqa: A002  the wire's word
        **options: Unpack[RetryOptions],
    ) -> msgspec.Raw:
        """Run a query or mutation of a peer and return its output as JSON.

        Cancelled, the peer is told to abort, and nothing of the call is left here.

        Args:
            ref: Which peer.
            operation: Its name at the peer, without a leading slash.
            input: As for `CallSession.call`.
            **options: As for `CallSession.call`.

        Raises:
            CallError: What the peer answered; NOT_FOUND if nobody attached offers the operation or
                has the name; UNAVAILABLE if all who offer it are ejected, or the connection is
                lost.
        """
        if "retry" in options:
            return await retrier_for(self, ref).call(operation, input, **options)
        tried: tuple[AttachedPeer, ...] = ()
        while True:
            peer, session = self._choose(ref, operation, tried)
            offered = peer.operations.get(operation)
            if offered is not None and offered.large_output:
                options["large_output"] = True
            peer.in_flight += 1
            began_at = trio.current_time()
            try:
                output = await session.calling.call(operation, input, options)
            except CallError as exc:
                self._judge(peer, session, exc, options)
                tried = self._pass_by(exc, ref, operation, (*tried, peer), session)
                _spend(options, trio.current_time() - began_at)
                continue
            finally:
                peer.in_flight -= 1
            peer.failures = 0
            if len(output) <= SMALL_BYTES:
                peer.took(trio.current_time() - began_at)
            return output

    def subscribe(
        self,
        ref: PeerRef,
        operation: str,
        input: object = None,  # noqa: A002
        **options: Unpack[CallOptions],
    ) -> AbstractAsyncContextManager[Subscription]:
        """Run a subscription of a peer: see `CallSession.subscribe`, and `call` for the rest.

        It may move before the block is entered, never after.
        """
        return self._open(
            ref, operation, lambda s: s.calling.subscribe(operation, input, options), options
        )

    def upload(
        self,
        ref: PeerRef,
        operation: str,
        input: object = None,  # noqa: A002
        **options: Unpack[CallOptions],
    ) -> AbstractAsyncContextManager[Upload]:
        """Run an upload to a peer: see `CallSession.upload`, and `subscribe` for the rest."""
        return self._open(
            ref, operation, lambda s: s.calling.upload(operation, input, options), options
        )

    def bidi(
        self,
        ref: PeerRef,
        operation: str,
        input: object = None,  # noqa: A002
        **options: Unpack[CallOptions],
    ) -> AbstractAsyncContextManager[Bidi]:
        """Run a bidirectional call of a peer: see `CallSession.bidi` and `subscribe`."""
        return self._open(
            ref, operation, lambda s: s.calling.bidi(operation, input, options), options
        )

    @asynccontextmanager
    async def _open(
        self,
        ref: PeerRef,
        operation: str,
        enter: Callable[[CallSession], AbstractAsyncContextManager[S]],
        options: CallOptions,
    ) -> AsyncGenerator[S]:
        tried: tuple[AttachedPeer, ...] = ()
        while True:
            peer, session = self._choose(ref, operation, tried)
            async with AsyncExitStack() as stack:
                stack.enter_context(_in_flight(peer))
                try:
                    opened = await stack.enter_async_context(enter(session))
                except CallError as exc:
                    self._judge(peer, session, exc, options)
                    tried = self._pass_by(exc, ref, operation, (*tried, peer), session)
                    continue
                try:
                    yield opened
                finally:
                    if (error := opened.error) is not None:
                        self._judge(peer, session, error, options)
                return

    # --- choosing

    def _choose(
        self, ref: PeerRef, operation: str, tried: tuple[AttachedPeer, ...]
    ) -> tuple[AttachedPeer, CallSession]:
        """Return whom to ask, by which session. Raises CallError if there is nobody."""
        if ref.name is not None:
            peer = self._peers.get(ref.name)
            if peer is None:
                raise _unsent(ErrorCode.NOT_FOUND, f"no peer named {ref.name!r} is attached")
            session = peer.session
        else:
            candidates = self._index.find(operation)
            if candidates is None:
                raise _unsent(ErrorCode.NOT_FOUND, f"no attached peer offers {operation!r}")
            if not candidates.available:
                why = f"every peer that offers {operation!r} has failed of late"
                raise _unsent(ErrorCode.UNAVAILABLE, why)
            peer = ref.policy.choose(candidates, self._draw)
            if tried:
                peer = candidates.after(peer, tried)
            session = peer.session
            while (session is None or session.is_leaving) and len(tried) < MOST_TRIES:
                if candidates.count_besides(tried) <= 1:
                    break
                tried = (*tried, peer)  # it is about to be detached
                peer = candidates.after(peer, tried)
                session = peer.session
        if session is None:
            # Who asked for any peer may not know this one.
            whom = f"whoever offers {operation!r}" if ref.name is None else repr(ref.name)
            raise _unsent(ErrorCode.UNAVAILABLE, f"the connection to {whom} has ended")
        return peer, session

    def _pass_by(
        self,
        error: CallError,
        ref: PeerRef,
        operation: str,
        tried: tuple[AttachedPeer, ...],
        session: CallSession,
    ) -> tuple[AttachedPeer, ...]:
        """Return whom the next try must pass by. Raises *error* if there must be none."""
        if not error.has_not_started or error.code not in _MOVE:
            raise error
        if ref.name is not None:
            if tried[-1].session in {None, session}:
                raise error
            return tried
        candidates = self._index.find(operation)
        others = 0 if candidates is None else candidates.count_besides(tried)
        if not others or len(tried) >= MOST_TRIES:
            raise error
        log.info("call.moved", extra={"peer": tried[-1].name, "operation": operation})
        return tried

    def _judge(
        self, peer: AttachedPeer, session: CallSession, error: CallError, options: CallOptions
    ) -> None:
        if error.by is not None:
            error.by = (peer.name, *error.by)
        # With a connection all of its calls are lost, which says nothing of the next connection.
        # A peer that was detached meanwhile is no choice any more, and in no index.
        is_over = session.close_reason is not None or session.connection.close_reason is not None
        if not is_over and self._peers.get(peer.name) is peer:
            self._ejector.failed(peer, error, options.get("timeout_s"))

    # --- changes

    def _operations_changed(self, peer: AttachedPeer, operations: Listing) -> None:
        before, is_available = peer.operations, peer.is_healthy
        self._index.withdraw(peer, before.keys() - operations.keys(), is_available=is_available)
        self._index.offer(peer, operations.keys() - before.keys(), is_available=is_available)
        peer.operations = operations
        self.changes.ring()

    def _set_available(self, peer: AttachedPeer, is_available: bool) -> None:
        self._index.set_available(peer, is_available=is_available)
        self.changes.ring()

    def _detach(self, peer: AttachedPeer) -> None:
        self._index.withdraw(peer, peer.operations, is_available=peer.is_healthy)
        del self._peers[peer.name]
        self._ejector.forget(peer)


@contextmanager
def _in_flight(peer: AttachedPeer) -> Iterator[None]:
    peer.in_flight += 1
    try:
        yield
    finally:
        peer.in_flight -= 1


def _spend(options: RetryOptions, seconds: float) -> None:
    """Leave the next try what the last one has left of the time."""
    timeout_s = options.get("timeout_s")
    if timeout_s is None:
        return
    if timeout_s <= seconds:
        raise _unsent(ErrorCode.TIMEOUT, "no peer has taken the call within the deadline")
    options["timeout_s"] = timeout_s - seconds


def _unsent(code: ErrorCode, why: str) -> CallError:
    error = CallError(code, why)
    error.is_unsent = True
    return error


# What another peer may not say. NOT_FOUND may be a matter of rights, of which all have a view.
_MOVE = frozenset({ErrorCode.UNAVAILABLE, ErrorCode.RESOURCE_EXHAUSTED, ErrorCode.FORBIDDEN})
