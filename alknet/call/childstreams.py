"""What an operation holds of a child that lasts: its items, and where its input goes.

A child's items are made when they are asked for, in the task that asks. An upload runs in a task
of its own beside its caller, which it holds back: no item waits between the two.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec
import trio

from alknet.call.children import ChildError
from alknet.call.codes import CallError, ErrorCode
from alknet.errors import LocalError

if TYPE_CHECKING:
    from alknet.call.admitted import Admitted

__all__ = [
    "ChildBidi",
    "ChildInputs",
    "ChildItems",
    "ChildUpload",
    "deadline_of",
    "json_of",
    "too_slow",
]

WAITING = 1
"""Input items that wait for a bidirectional child: with one, a task can send, then iterate."""


class ChildItems:
    """The items of a subscription, an async iterator of JSON. One task iterates."""

    def __init__(self, items: AsyncIterator[bytes], admitted: Admitted) -> None:
        self._items = items
        self._deadline = deadline_of(admitted)
        self._operation = admitted.context.operation

    def __aiter__(self) -> ChildItems:
        return self

    async def __anext__(self) -> msgspec.Raw:
        try:
            with trio.CancelScope(deadline=self._deadline):
                return msgspec.Raw(await anext(self._items))
        except CallError as exc:
            raise ChildError(exc, self._operation) from None
        raise too_slow(self._operation)


class ChildUpload:
    """An upload: items go in, and one output comes out."""

    def __init__(self, admitted: Admitted) -> None:
        self._admitted = admitted
        self._operation = admitted.context.operation
        self._inputs = ChildInputs(admitted, waiting=0)
        self._is_over = trio.Event()
        self._output: msgspec.Raw | None = None
        self._error: ChildError | None = None

    async def run(self) -> None:
        """Run the child, once. Cancelled, it is cancelled, and who waits for it is too."""
        try:
            with trio.CancelScope(deadline=deadline_of(self._admitted)):
                self._output = msgspec.Raw(await self._admitted.run())
            if self._output is None:
                self._error = too_slow(self._operation)
        except CallError as exc:
            self._error = ChildError(exc, self._operation)
        finally:
            self._inputs.close(self._error)
            self._is_over.set()

    async def send(self, item: object) -> None:
        """Give the child one input item, once it takes it; see `alknet.call.session.Upload`."""
        await self._inputs.send(item)

    async def finish(self) -> msgspec.Raw:
        """Say that the input is whole, and return the output. Raises CallError if it failed."""
        self._inputs.finish()
        await self._is_over.wait()
        if self._error is not None:
            raise self._error
        assert self._output is not None
        return self._output


class ChildBidi(ChildItems):
    """A bidirectional call: items go in, and items come out.

    The child runs while it is iterated over: send in another task, unless it answers each item
    with one.
    """

    def __init__(
        self, items: AsyncIterator[bytes], admitted: Admitted, inputs: ChildInputs
    ) -> None:
        super().__init__(items, admitted)
        self._inputs = inputs

    async def __anext__(self) -> msgspec.Raw:
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            self._inputs.close()
            raise
        except ChildError as exc:
            self._inputs.close(exc)
            raise

    async def send(self, item: object) -> None:
        """Give the child one input item; see `alknet.call.session.Upload.send`."""
        await self._inputs.send(item)

    async def finish(self) -> None:
        """Say that the input is whole; items still come. The second time has no effect."""
        await trio.lowlevel.checkpoint()
        self._inputs.finish()


class ChildInputs:
    """What goes into a child, from before it runs until it has ended."""

    def __init__(self, admitted: Admitted, waiting: int = WAITING) -> None:
        self._send, self._receive = trio.open_memory_channel[msgspec.Raw](waiting)
        self._error: ChildError | None = None
        self._has_finished = False
        admitted.feed(self._receive)

    async def send(self, item: object) -> None:
        """Give the child *item*; see `ChildUpload.send`."""
        if self._has_finished:
            raise LocalError("an item after the input was finished")
        encoded = json_of(item)
        try:
            await self._send.send(encoded)
        except trio.BrokenResourceError:
            if self._error is not None:
                raise self._error from None
            why = "the operation has answered and takes no more items"
            raise trio.BrokenResourceError(why) from None

    def finish(self) -> None:
        """Say that the input is whole. Idempotent."""
        self._has_finished = True
        self._send.close()

    def close(self, error: ChildError | None = None) -> None:
        """Take nothing more, for the child has ended, with *error* if it failed."""
        self._error = error
        self._receive.close()


def json_of(value: object) -> msgspec.Raw:
    """Return *value* as JSON: it is, or msgspec makes it so."""
    return value if isinstance(value, msgspec.Raw) else msgspec.Raw(msgspec.json.encode(value))


def deadline_of(admitted: Admitted) -> float:
    """Return when a child that starts now must have ended, by its own declaration."""
    timeout_s = admitted.timeout_s
    return math.inf if timeout_s is None else trio.current_time() + timeout_s


def too_slow(operation: str) -> ChildError:
    """Return the error of a child that its own deadline ended."""
    error = CallError(ErrorCode.TIMEOUT, "the operation took longer than it may")
    return ChildError(error, operation)
