"""When our calls give up: one heap per session, and no timer per call.

A cancel scope with a deadline for each call costs more than all else that a caller does. Nearly
every call is answered long before, so its deadline only has to be remembered.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator

import trio

from alknet.call.pending import PendingCall

__all__ = ["Deadlines"]

MOST_STALE = 8
"""Entries of answered calls that may lie about, beside as many as there are live ones."""


class Deadlines:
    """The deadlines of the calls that wait.

    Attributes:
        next: The soonest, in `trio.current_time`; perhaps of a call that was answered since.
        is_watched: `watch` was started.
    """

    __slots__ = ("_entries", "_numbers", "_scope", "_unanswered", "is_watched", "next")

    def __init__(self, unanswered: Callable[[], int]) -> None:
        """Make an empty heap; *unanswered* says how many calls wait, at most."""
        self.next = math.inf
        self.is_watched = False
        self._unanswered = unanswered
        self._entries: list[tuple[float, int, PendingCall]] = []
        self._numbers = itertools.count()
        self._scope: trio.CancelScope | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, deadline: float, pending: PendingCall) -> None:
        """Let *pending* be among the `expired` from *deadline* on, unless it is over by then."""
        entries = self._entries
        if len(entries) > 2 * self._unanswered() + MOST_STALE:
            entries[:] = [entry for entry in entries if not entry[2].is_over]
            heapq.heapify(entries)
        heapq.heappush(entries, (deadline, next(self._numbers), pending))
        if deadline < self.next:
            self.next = deadline
            if self._scope is not None:
                self._scope.deadline = deadline

    def expired(self, now: float) -> Iterator[PendingCall]:
        """Take out the calls whose time is over and that have no answer."""
        entries = self._entries
        while entries and (entries[0][2].is_over or entries[0][0] <= now):
            pending = heapq.heappop(entries)[2]
            if not pending.is_over:
                yield pending
        self.next = entries[0][0] if entries else math.inf

    async def watch(self, expire: Callable[[], None]) -> None:
        """Call *expire* whenever `next` has come, until cancelled."""
        while True:
            with trio.CancelScope(deadline=self.next) as self._scope:
                await trio.sleep_forever()
            expire()
