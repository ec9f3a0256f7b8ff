"""How many bytes a node may hold for its connections: unread ones and ones on their way out.

Each connection has bounds of its own, but ten thousand of them at once have none. A budget is
soft: it never refuses bytes that a peer was allowed to send. From three quarters on, windows stop
growing and shrink as data is read; at the limit each connection is left with the floor of its
windows, which is what it needs to make progress. Over TCP, whose windows are the kernel's, what
shrinks is how much is taken from it ahead of the reader, and encrypted ahead of the socket.
"""

from __future__ import annotations

import sys

__all__ = ["UNMETERED", "Account", "MemoryBudget"]

# From this share on windows shrink: a quarter is left for what peers were already allowed to send.
TIGHT_NUMERATOR, TIGHT_DENOMINATOR = 3, 4


class MemoryBudget:
    """Bytes that all connections of a node hold together.

    Attributes:
        total: How many they should.
        used: How many they do.
    """

    __slots__ = ("total", "used")

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0

    @property
    def is_tight(self) -> bool:
        """Nobody's windows may grow."""
        return self.used * TIGHT_DENOMINATOR >= self.total * TIGHT_NUMERATOR

    @property
    def is_exhausted(self) -> bool:
        """Everybody gets the floor, no more."""
        return self.used >= self.total


UNMETERED = MemoryBudget(sys.maxsize)
"""For connections that are in nobody's budget: those of clients, and of the node's owner."""


class Account:
    """What one connection holds of a `MemoryBudget`."""

    __slots__ = ("_budget", "_sending", "_unread")

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._unread = 0
        self._sending: dict[int, int] = {}

    @property
    def held(self) -> int:
        """Bytes charged for now."""
        return self._unread + sum(self._sending.values())

    @property
    def sending(self) -> tuple[int, ...]:
        """The streams with bytes that wait to be acknowledged."""
        return tuple(self._sending)

    @property
    def is_tight(self) -> bool:
        """Hold no more than what is needed to make progress."""
        return self._budget.is_tight

    def move_to(self, budget: MemoryBudget) -> None:
        """Charge all of it to *budget* from now on."""
        self._budget.used -= self.held
        self._budget = budget
        budget.used += self.held

    def add_unread(self, count: int) -> None:
        """*count* more bytes wait for a reader; fewer, if it is negative."""
        self._unread += count
        self._budget.used += count

    def set_sending(self, stream_id: int, count: int) -> None:
        """*count* bytes of a stream wait to be acknowledged, or over TCP to be taken."""
        self._budget.used += count - self._sending.get(stream_id, 0)
        if count:
            self._sending[stream_id] = count
        else:
            self._sending.pop(stream_id, None)

    def clear(self) -> None:
        """The connection is over and holds nothing any more. Idempotent."""
        self._budget.used -= self.held
        self._unread = 0
        self._sending.clear()
