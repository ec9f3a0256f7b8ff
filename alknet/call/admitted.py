"""A call that may run: its handler, between the input that was decoded and the JSON that leaves."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from alknet.call.boundary import HandlerBoundary
from alknet.call.codes import CallError, ErrorCode
from alknet.call.context import Context
from alknet.call.operations import Operation
from alknet.call.overlay import LayeredEntry, LayeredItems
from alknet.call.registry import Entry
from alknet.call.schema import Mismatch, Shape
from alknet.call.visibility import CheckedResource, check_scopes, no_such_operation
from alknet.core.identity import Identity

if TYPE_CHECKING:
    from alknet.call.contracts import AdmittedCall

__all__ = ["Admitted", "CommandCall", "LayeredCall"]

log = logging.getLogger(__name__)


class Admitted:
    """A call that may run, once.

    Attributes:
        context: What its handler will see.
        timeout_s: From the request's arrival; None for no deadline. The caller of `run` and
            `stream` enforces it, by a cancel scope around them.
        used_token: The request's token was accepted.
    """

    __slots__ = (
        "_items",
        "_operation",
        "_resource",
        "_value",
        "context",
        "timeout_s",
        "used_token",
    )

    def __init__(
        self,
        operation: Operation[..., Any],
        context: Context,
        value: object,
        *,
        timeout_s: float | None,
        used_token: bool,
        resource: CheckedResource | None = None,
    ) -> None:
        """Make one; *resource* is that which *value* names, if the operation is on one."""
        self.context = context
        self.timeout_s = timeout_s
        self.used_token = used_token
        self._operation = operation
        self._value = value
        self._resource = resource
        shape = operation.item
        self._items = None if shape is None else _InputItems(shape, None)

    def __repr__(self) -> str:
        return f"<Admitted {self.context!r}>"

    @property
    def op_type(self) -> str:
        """Of ``query``, ``mutation``, ``upload`` (`run`), ``subscription``, ``bidi`` (`stream`)."""
        return self._operation.spec.op_type

    @property
    def identity(self) -> Identity:
        """Whom the call runs as."""
        return self.context.identity

    @property
    def large_output(self) -> bool:
        """The operation says that its output may be large."""
        return self._operation.spec.large_output

    def readmit(self, identity: Identity) -> None:
        """Let it go on as *identity*, which is its caller with other rights than before.

        Raises:
            CallError: `FORBIDDEN`, they are not enough.
        """
        if self._resource is None:
            check_scopes(self._operation, identity)
        else:
            self._resource.check(self._operation, identity)
        self.context.go_on_as(identity)

    def feed(self, items: AsyncIterator[msgspec.Raw]) -> None:
        """Give an upload or bidirectional call its input items; without, it has none.

        An item that does not fit ends the call with INVALID_INPUT, even if the handler goes on.
        """
        shape = self._operation.item
        assert shape is not None
        self._items = _InputItems(shape, items)

    async def run(self) -> bytes:
        """Run a query, mutation or upload and return its output as JSON.

        Cancelled, the handler is cancelled, and has ended when this raises `trio.Cancelled`.

        Raises:
            CallError: The handler failed, or returned what it had not declared.
        """
        operation = self._operation
        try:
            if self._items is not None:
                return await self._run_upload(self._items)
            output = await operation.start(self.context, self._value)
            return operation.output.encode(output)
        except BaseException as exc:  # boundary: a crash ends its call, no more
            if (error := self._boundary().judge(exc)) is None:
                raise
            raise error from None
        finally:
            self.context.close_secrets()

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[AsyncIterator[bytes]]:
        """Run a subscription or bidirectional call inside the block; its items come as JSON.

        The handler is closed when the block is left, and nothing of it runs after. Iterating
        raises CallError like `run`.
        """
        items = self._operation.iterate(self.context, self._value, self._items)
        try:
            yield _Items(items, self._operation.output, self._boundary(), self._items)
        finally:
            try:
                await self._close(items)
            finally:
                self.context.close_secrets()

    async def _run_upload(self, items: _InputItems) -> bytes:
        operation = self._operation
        try:
            output = await operation.start(self.context, self._value, items)
        except Exception:  # raised again: a bad item is the reason to tell, where it is one
            items.check()
            raise
        items.check()
        return operation.output.encode(output)

    def _boundary(self) -> HandlerBoundary:
        return HandlerBoundary(self._operation, self.context)

    async def _close(self, items: AsyncGenerator[object, None]) -> None:
        boundary = self._boundary()
        try:
            with boundary.guard():
                await items.aclose()
        except BaseExceptionGroup as group:
            # A nursery around a yield wraps the GeneratorExit that closing is made of.
            _, rest = group.split(GeneratorExit)
            if rest is not None:
                raise rest from None
        except CallError as exc:
            # The caller has its last event or is gone: this is for the log alone.
            log.warning("call.close_failed", extra={**boundary.log_fields(), "code": exc.code})


class LayeredCall(Admitted):
    """A call of an operation of a layer: it ends with that, by `ABORTED`."""

    __slots__ = ("_running",)

    def __init__(
        self,
        entry: LayeredEntry,
        context: Context,
        value: object,
        timeout_s: float | None,
        *,
        used_token: bool,
        resource: CheckedResource | None = None,
    ) -> None:
        super().__init__(
            entry.operation,
            context,
            value,
            timeout_s=timeout_s,
            used_token=used_token,
            resource=resource,
        )
        self._running = entry.running

    async def run(self) -> bytes:
        with self._running.call():
            output = await super().run()
        return output  # noqa: RET504  to a type checker the block may swallow what it raises

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[AsyncIterator[bytes]]:
        async with super().stream() as items:
            yield LayeredItems(items, self._running)


class CommandCall(Admitted):
    """A call of what ``node.toml`` makes an operation of, which can change or go meanwhile."""

    __slots__ = ("_lookup",)

    def __init__(
        self,
        operation: Operation[..., Any],
        context: Context,
        value: object,
        *,
        timeout_s: float | None,
        used_token: bool,
        lookup: Callable[[str], Entry | None],
    ) -> None:
        """Make one; *lookup* finds the operation as it is now, by its name."""
        super().__init__(operation, context, value, timeout_s=timeout_s, used_token=used_token)
        self._lookup = lookup

    def readmit(self, identity: Identity) -> None:
        entry = self._lookup(self.context.operation)
        if entry is None or entry.operation.spec.internal:
            raise no_such_operation(self.context.operation)
        check_scopes(entry.operation, identity)
        self.context.go_on_as(identity)


class _Items:
    """The items of a subscription as JSON. `Admitted.stream` closes what is behind it."""

    def __init__(
        self,
        items: AsyncGenerator[object, None],
        shape: Shape,
        boundary: HandlerBoundary,
        inputs: _InputItems | None,
    ) -> None:
        self._items = items
        self._shape = shape
        self._boundary = boundary
        self._inputs = inputs

    def __aiter__(self) -> _Items:
        return self

    async def __anext__(self) -> bytes:
        with self._boundary.guard():
            item = await self._next()
            data = b"" if item is _END else self._shape.encode(item)
        if item is _END:
            raise StopAsyncIteration
        return data

    async def _next(self) -> object:
        if self._inputs is None:
            return await anext(self._items, _END)
        try:
            item = await anext(self._items, _END)
        except Exception:  # raised again: a bad item is the reason to tell, where it is one
            self._inputs.check()
            raise
        self._inputs.check()
        return item


class _InputItems:
    """The items that a caller sends, decoded, for the handler to iterate."""

    def __init__(self, shape: Shape, items: AsyncIterator[msgspec.Raw] | None) -> None:
        self._shape = shape
        self._items = items
        self._count = 0
        self._fault: CallError | None = None

    def __aiter__(self) -> _InputItems:
        return self

    async def __anext__(self) -> object:
        self.check()
        if self._items is None:
            raise StopAsyncIteration
        data = await anext(self._items)
        try:
            item: object = self._shape.decode_untrusted(data)
        except Mismatch as exc:
            where = f" at {exc.path}" if exc.path else ""
            self._fault = CallError(
                ErrorCode.INVALID_INPUT,
                f"invalid input item {self._count}{where}: {exc.message}",
                details={"path": exc.path, "item": self._count},
            )
            raise self._fault from None
        self._count += 1
        return item

    def check(self) -> None:
        """Raise CallError if an item was not what it must be."""
        if self._fault is not None:
            raise self._fault


_END = object()

if TYPE_CHECKING:
    _admitted: type[AdmittedCall] = Admitted
