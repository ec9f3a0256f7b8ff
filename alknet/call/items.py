"""Items that came and were not taken yet, counted against the connection's buffers."""

from __future__ import annotations

from collections import deque

import msgspec
import trio

from alknet.call.codes import CallError
from alknet.call.outbox import Budget

__all__ = ["ItemQueue"]


class ItemQueue:
    """The items of one direction of a call, and then its end. The reader of a stream fills it.

    Attributes:
        is_over: No item will come.
        queued_bytes: Of the items that wait.
    """

    __slots__ = ("_budget", "_end", "_items", "_news", "_space", "is_over", "queued_bytes")

    def __init__(self, budget: Budget) -> None:
        self.is_over = False
        self.queued_bytes = 0
        self._budget = budget
        self._items: deque[msgspec.Raw] = deque()
        self._end: CallError | None = None
        self._news = trio.lowlevel.ParkingLot()
        self._space = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def error(self) -> CallError | None:
        """What it was ended with, if not in good order."""
        return self._end

    def put(self, item: msgspec.Raw) -> None:
        """Queue *item*; never waits."""
        self._items.append(item)
        self._hold(len(item))
        self._news.unpark_all()

    def settle(self) -> None:
        """End it: what is queued can still be taken."""
        self.is_over = True
        self._news.unpark_all()
        self._space.unpark_all()

    def fail(self, error: CallError) -> None:
        """End it with an error, which comes after what is queued."""
        self._end = error
        self.settle()

    def drop(self) -> None:
        """Throw away what is queued: nobody will take it."""
        self._items.clear()
        self._hold(-self.queued_bytes)
        self._space.unpark_all()

    async def take(self) -> msgspec.Raw | None:
        """Wait for the next item; None after the last. Cancelled, none is taken.

        Raises:
            CallError: What it was ended with.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._items:
            if self._end is not None:
                raise self._end
            if self.is_over:
                return None
            await self._news.park()
        item = self._items.popleft()
        self._hold(-len(item))
        self._space.unpark_all()
        return item

    async def wait_space(self, items: int, size: int) -> None:
        """Wait until fewer than *items* and *size* bytes are queued. Cancelled, nothing happens."""
        while not self.is_over and (len(self._items) >= items or self.queued_bytes >= size):
            await self._space.park()

    def _hold(self, n: int) -> None:
        self.queued_bytes += n
        self._budget.add(n)
