"""What makes the calls of one operation to others: they run here, each within its own deadline."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from alknet.call.children import ChildError
from alknet.call.codes import CallError, ErrorCode
from alknet.call.context import Caller, CallInfo
from alknet.call.spec import OpType

if TYPE_CHECKING:
    from alknet.call.dispatch import Admitted, OperationDispatcher
    from alknet.call.operations import Operation

__all__ = ["Composer"]

_CALLED = frozenset({OpType.QUERY, OpType.MUTATION})
_SUBSCRIBED = frozenset({OpType.SUBSCRIPTION})


class Composer:
    """Makes the calls of *operation* to others; see `alknet.call.composition`."""

    __slots__ = ("_dispatcher", "_operation")

    def __init__(self, dispatcher: OperationDispatcher, operation: Operation[..., Any]) -> None:
        self._dispatcher = dispatcher
        self._operation = operation

    async def call(
        self,
        parent: CallInfo,
        operation: str,
        input: object,  # noqa: A002  the wire's word
    ) -> msgspec.Raw:
        """Run a query or mutation; see `alknet.call.context.Context.call`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        admitted = self._admit(parent, operation, input, _CALLED)
        try:
            with trio.CancelScope(deadline=_deadline(admitted)):
                return msgspec.Raw(await admitted.run())
        except CallError as exc:
            raise ChildError(exc, operation) from None
        raise _too_slow(operation)

    @asynccontextmanager
    async def subscribe(
        self,
        parent: CallInfo,
        operation: str,
        input: object,  # noqa: A002
    ) -> AsyncGenerator[AsyncIterator[msgspec.Raw]]:
        """Run a subscription; see `alknet.call.context.Context.subscribe`."""
        admitted = self._admit(parent, operation, input, _SUBSCRIBED)
        async with admitted.stream() as items:
            yield _Items(items, _deadline(admitted), operation)

    def _admit(
        self,
        parent: CallInfo,
        operation: str,
        value: object,
        kinds: frozenset[OpType],
    ) -> Admitted:
        if not isinstance(value, msgspec.Raw):
            value = msgspec.Raw(b"{}" if value is None else msgspec.json.encode(value))
        try:
            admitted = self._dispatcher.admit_child(self._operation, parent, operation, value)
        except CallError as exc:
            raise ChildError(exc, operation) from None
        if admitted.op_type not in kinds:
            how = "subscribe to it" if admitted.op_type == OpType.SUBSCRIPTION else "call it"
            why = f"the operation is a {admitted.op_type}: {how}"
            raise ChildError(CallError(ErrorCode.INVALID_OPERATION_TYPE, why), operation)
        return admitted


class _Items:
    def __init__(self, items: AsyncIterator[bytes], deadline: float, operation: str) -> None:
        self._items = items
        self._deadline = deadline
        self._operation = operation

    def __aiter__(self) -> _Items:
        return self

    async def __anext__(self) -> msgspec.Raw:
        try:
            with trio.CancelScope(deadline=self._deadline):
                return msgspec.Raw(await anext(self._items))
        except CallError as exc:
            raise ChildError(exc, self._operation) from None
        raise _too_slow(self._operation)


def _deadline(admitted: Admitted) -> float:
    timeout_s = admitted.timeout_s
    return math.inf if timeout_s is None else trio.current_time() + timeout_s


def _too_slow(operation: str) -> ChildError:
    error = CallError(ErrorCode.TIMEOUT, "the operation took longer than it may")
    return ChildError(error, operation)


_: type[Caller] = Composer
