"""The input items of an upload or bidirectional call, at the callee.

Where the connection is one stream, the caller needs credit for each item. It begins with one and
doubles while items are taken, as far as the items fit into the room that they may fill. Elsewhere
the reader of the call's stream waits when the queue is full, and flow control holds the caller
back; the credit only says that input is wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from alknet.call.codes import CallError, ErrorCode
from alknet.call.items import ItemQueue
from alknet.call.outbox import Budget
from alknet.call.proto import MAX_CREDIT, Credit

if TYPE_CHECKING:
    from alknet.call.streams import CallStream

__all__ = ["InputItems"]

SHARE = 4
"""The part of a connection's buffers that one call's unread input may fill, as a divisor: past it
this call ends, and not the connection."""


class InputItems:
    """What the caller has sent and the operation has not taken; an async iterator of JSON.

    Attributes:
        has_ended: ``call.input_end`` came.
        queue: The items that wait.
    """

    __slots__ = (
        "_allowed",
        "_call_id",
        "_largest",
        "_most_bytes",
        "_most_items",
        "_stream",
        "_window",
        "has_ended",
        "queue",
    )

    def __init__(self, call_id: str, stream: CallStream, budget: Budget, most_items: int) -> None:
        """Make an empty queue.

        Args:
            most_items: The largest window on a connection of one stream.
        """
        self.has_ended = False
        self.queue = ItemQueue(budget)
        self._call_id = call_id
        self._stream = stream
        self._most_items = most_items
        self._most_bytes = budget.cap // SHARE
        self._largest = 1
        self._window = 1
        self._allowed = 0

    @property
    def is_used_up(self) -> bool:
        """The input is whole, and the operation has taken all of it."""
        return self.has_ended and not len(self.queue)

    def begin(self) -> None:
        """Tell the caller that items are wanted, before anything else is said about the call."""
        self._grant(1 if self._stream.is_only else MAX_CREDIT)

    def receive(self, item: msgspec.Raw) -> None:
        """Queue an item that came.

        Raises:
            CallError: It may not come; the call ends.
        """
        self._check_open()
        if not self._allowed:
            raise CallError(ErrorCode.INVALID_INPUT, "more input items than were asked for")
        if self.queue.queued_bytes and self.queue.queued_bytes + len(item) > self._most_bytes:
            why = "the operation takes its input more slowly than it comes"
            raise CallError(ErrorCode.RESOURCE_EXHAUSTED, why)
        self._allowed -= 1
        self._largest = max(self._largest, len(item))
        self.queue.put(item)

    def end(self) -> None:
        """Note that the input is whole. Raises like `receive` if it was said before."""
        self._check_open()
        self.has_ended = True
        self.queue.settle()

    def close(self) -> None:
        """Forget what was not taken: the call is over."""
        if not self.is_used_up:
            self.has_ended = True
            self.queue.fail(CallError(ErrorCode.ABORTED, "the call is over"))
            self.queue.drop()

    def __aiter__(self) -> InputItems:
        return self

    async def __anext__(self) -> msgspec.Raw:
        item = await self.queue.take()
        if item is None:
            raise StopAsyncIteration
        if self._stream.is_only and not self.has_ended:
            self._widen()
        return item

    def _widen(self) -> None:
        fitting = max(1, self._most_bytes // (2 * self._largest))
        ahead = self._allowed + len(self.queue)
        if 2 * ahead <= self._window:
            self._window = min(2 * self._window, fitting, self._most_items)
            if self._window > ahead:
                self._grant(self._window - ahead)

    def _grant(self, n: int) -> None:
        self._allowed += n
        self._stream.send(Credit(self._call_id, n))

    def _check_open(self) -> None:
        if self.has_ended:
            raise CallError(ErrorCode.INVALID_INPUT, "input after call.input_end")
