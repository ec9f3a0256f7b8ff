"""The peers as one operation sees them: those, and of those the operations, that it declares."""

from __future__ import annotations

import math
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import msgspec
import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.peers.environment import PeerEnvironment
from alknet.call.peers.reference import PeerRef
from alknet.call.reach import ANY_PEER, Reach
from alknet.call.session import Bidi, CallOptions, Subscription, Upload
from alknet.call.visibility import no_such_operation, operation_name
from alknet.core.identity import NodeId

if TYPE_CHECKING:
    from alknet.call.context import CallInfo

__all__ = ["ScopedPeerEnv"]


class ScopedPeerEnv:
    """Makes the calls of operations to peers, within their declared reach.

    The peer checks the rights of *this node*: what the caller may do here does not travel. Who
    asked first does, as data (``forwarded_for``), with the trace context and what is left of the
    parent's time.
    """

    def __init__(self, environment: PeerEnvironment, node_id: NodeId) -> None:
        self.environment = environment
        self._path = (str(node_id),)

    async def call(
        self,
        parent: CallInfo,
        reach: Reach,
        ref: PeerRef,
        operation: str,
        input: object,  # noqa: A002  the wire's word
    ) -> msgspec.Raw:
        """Run a query or mutation of a peer; see `PeerEnvironment.call`.

        Raises:
            CallError: NOT_FOUND also for what *reach* does not declare.
        """
        name = _check_reach(reach, ref, operation)
        return await self.environment.call(ref, name, input, **self._options(parent))

    def subscribe(
        self,
        parent: CallInfo,
        reach: Reach,
        ref: PeerRef,
        operation: str,
        input: object,  # noqa: A002
    ) -> AbstractAsyncContextManager[Subscription]:
        """Run a subscription of a peer; raises like `call`."""
        name = _check_reach(reach, ref, operation)
        return self.environment.subscribe(ref, name, input, **self._options(parent))

    def upload(
        self,
        parent: CallInfo,
        reach: Reach,
        ref: PeerRef,
        operation: str,
        input: object,  # noqa: A002
    ) -> AbstractAsyncContextManager[Upload]:
        """Run an upload to a peer; raises like `call`."""
        name = _check_reach(reach, ref, operation)
        return self.environment.upload(ref, name, input, **self._options(parent))

    def bidi(
        self,
        parent: CallInfo,
        reach: Reach,
        ref: PeerRef,
        operation: str,
        input: object,  # noqa: A002
    ) -> AbstractAsyncContextManager[Bidi]:
        """Run a bidirectional operation of a peer; raises like `call`."""
        name = _check_reach(reach, ref, operation)
        return self.environment.bidi(ref, name, input, **self._options(parent))

    def _options(self, parent: CallInfo) -> CallOptions:
        left_s = trio.current_effective_deadline() - trio.current_time()
        if left_s <= 0:
            raise CallError(ErrorCode.TIMEOUT, "no time is left for a call to a peer")
        return CallOptions(
            timeout_s=None if left_s == math.inf else left_s,
            forwarded_for=parent.forwarded_for or parent.identity,
            traceparent=parent.traceparent,
            path=self._path,
        )


def _check_reach(reach: Reach, ref: PeerRef, operation: str) -> str:
    name = operation_name(operation)
    if not reach.allows_peer(ref.name or ANY_PEER, name):
        raise no_such_operation(name)
    return name
