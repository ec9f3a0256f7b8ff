"""What makes the calls of one operation to others: they run here, each within its own deadline."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from alknet.call.callers import Caller, LocalCaller
from alknet.call.children import ChildError
from alknet.call.childstreams import (
    ChildBidi,
    ChildInputs,
    ChildItems,
    ChildUpload,
    deadline_of,
    json_of,
    too_slow,
)
from alknet.call.codes import CallError, ErrorCode
from alknet.call.context import Context
from alknet.call.overlay import Layer, Overlay, layer_of, open_layer
from alknet.call.peers.reference import PeerRef
from alknet.call.peers.scoped import ScopedPeerEnv
from alknet.call.session import CallSession
from alknet.call.spec import OpType
from alknet.core.scopes import open_background
from alknet.errors import LocalError

if TYPE_CHECKING:
    from alknet.call.admitted import Admitted
    from alknet.call.dispatch import OperationDispatcher
    from alknet.call.operations import Operation
    from alknet.call.retrying import RetryPolicy
    from alknet.call.survivors import Survivors

__all__ = ["Composer"]

_CALLED = frozenset({OpType.QUERY, OpType.MUTATION})
_SUBSCRIBED = frozenset({OpType.SUBSCRIPTION})
_UPLOADED = frozenset({OpType.UPLOAD})
_CONVERSED = frozenset({OpType.BIDI})


class Composer:
    """Makes the calls of *operation* to others; see `alknet.call.composition`."""

    __slots__ = ("_dispatcher", "_home", "_operation")

    def __init__(
        self,
        dispatcher: OperationDispatcher,
        operation: Operation[..., Any],
        home: Layer | None = None,
    ) -> None:
        """Make one for all calls of *operation*.

        Args:
            home: The layer that it is of; None for an operation of the node.
        """
        self._dispatcher = dispatcher
        self._operation = operation
        self._home = home

    @property
    def survivors(self) -> Survivors:
        """Where the calls run that may outlive the handler."""
        return self._dispatcher.survivors

    def at(self, peer: PeerRef, retry: RetryPolicy | None = None) -> Caller:
        """Return what makes the calls of the operation to *peer*, and again as *retry* says."""
        return ScopedPeerEnv(self._dispatcher.peers, self._operation.reach, peer, self, retry)

    @asynccontextmanager
    async def overlay(
        self, parent: Context, operations: Sequence[Operation[..., Any]]
    ) -> AsyncGenerator[Overlay]:
        """Add operations for the block; see `alknet.call.context.Context.overlay`."""
        async with open_layer() as layer:
            overlay = self._overlay(layer)
            overlay.add(*operations)
            parent.layers = (*parent.layers, layer)
            try:
                yield overlay
            finally:
                parent.layers = tuple(other for other in parent.layers if other is not layer)

    def session_overlay(self, parent: Context) -> Overlay:
        """Return what adds to the session; see `alknet.call.context.Context.session_overlay`."""
        session = parent.info.session
        if not isinstance(session, CallSession):
            raise LocalError("the call came by no session")
        layer = layer_of(session)
        if layer not in parent.layers:
            parent.layers = (*parent.layers, layer)
        return self._overlay(layer)

    def _overlay(self, layer: Layer) -> Overlay:
        dispatcher = self._dispatcher

        def compose(operation: Operation[..., Any], _parent: Context) -> Composer:
            return Composer(dispatcher, operation, layer)

        return Overlay(layer, self._operation, dispatcher.registry, compose)

    async def call(
        self,
        parent: Context,
        operation: str,
        input: object,  # noqa: A002  the wire's word
    ) -> msgspec.Raw:
        """Run a query or mutation; see `alknet.call.context.Context.call`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        admitted = self._admit(parent, operation, input, _CALLED)
        try:
            with trio.CancelScope(deadline=deadline_of(admitted)):
                return msgspec.Raw(await admitted.run())
        except CallError as exc:
            raise ChildError(exc, operation) from None
        raise too_slow(operation)

    @asynccontextmanager
    async def subscribe(
        self,
        parent: Context,
        operation: str,
        input: object,  # noqa: A002
    ) -> AsyncGenerator[ChildItems]:
        """Run a subscription; see `alknet.call.context.Context.subscribe`."""
        admitted = self._admit(parent, operation, input, _SUBSCRIBED)
        async with admitted.stream() as items:
            yield ChildItems(items, admitted)

    @asynccontextmanager
    async def upload(
        self,
        parent: Context,
        operation: str,
        input: object,  # noqa: A002
    ) -> AsyncGenerator[ChildUpload]:
        """Run an upload; see `alknet.call.context.Context.upload`."""
        upload = ChildUpload(self._admit(parent, operation, input, _UPLOADED))
        async with open_background() as nursery:
            nursery.start_soon(upload.run, name=f"upload {operation}")
            yield upload

    @asynccontextmanager
    async def bidi(
        self,
        parent: Context,
        operation: str,
        input: object,  # noqa: A002
    ) -> AsyncGenerator[ChildBidi]:
        """Run a bidirectional operation; see `alknet.call.context.Context.bidi`."""
        admitted = self._admit(parent, operation, input, _CONVERSED)
        inputs = ChildInputs(admitted)
        try:
            async with admitted.stream() as items:
                yield ChildBidi(items, admitted, inputs)
        finally:
            inputs.close()

    def _admit(
        self, parent: Context, operation: str, value: object, kinds: frozenset[OpType]
    ) -> Admitted:
        data = msgspec.Raw(b"{}") if value is None else json_of(value)
        try:
            admitted = self._dispatcher.admit_child(
                self._operation, parent, operation, data, self._home
            )
        except CallError as exc:
            raise ChildError(exc, operation) from None
        if admitted.op_type not in kinds:
            why = f"the operation is a {admitted.op_type}: {_HOW[OpType(admitted.op_type)]}"
            raise ChildError(CallError(ErrorCode.INVALID_OPERATION_TYPE, why), operation)
        return admitted


_HOW = {
    OpType.QUERY: "call it",
    OpType.MUTATION: "call it",
    OpType.SUBSCRIPTION: "subscribe to it",
    OpType.UPLOAD: "upload to it",
    OpType.BIDI: "use bidi",
}

_: type[LocalCaller] = Composer
