"""The next deadline of each of many owners, in one heap. Sans-IO: time comes in.

Deadlines of a QUIC connection mostly move later, so an owner that already has an earlier entry
is left alone: it surfaces, and its owner says anew when it wants to be called. An owner's
entries are therefore a stack of falling times, and each of them is wanted again once those above
it have surfaced: the heap holds nothing that is of no use, however long a connection lives.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

__all__ = ["Deadlines", "Timer"]

T = TypeVar("T")

# Below this many entries of forgotten timers, rebuilding the heap is not worth its while.
MIN_DEAD = 64


class Timer(Generic[T]):
    """One owner's entries, the earliest last."""

    __slots__ = ("owner", "times")

    def __init__(self, owner: T) -> None:
        self.owner: T | None = owner
        self.times: list[float] = []


class Deadlines(Generic[T]):
    """A heap of timers; see the module."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer[T]]] = []
        self._serial = 0
        self._dead = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_at(self) -> float | None:
        """When to call `due`, or None while there is nothing to wait for."""
        return self._heap[0][0] if self._heap else None

    def arm(self, timer: Timer[T], when: float) -> bool:
        """Have *timer* surface at *when* at the latest; return whether `next_at` is sooner now."""
        if timer.owner is None or (timer.times and timer.times[-1] <= when):
            return False
        timer.times.append(when)
        self._serial += 1
        entry = (when, self._serial, timer)
        heapq.heappush(self._heap, entry)
        return self._heap[0] is entry

    def forget(self, timer: Timer[T]) -> None:
        """Never let *timer* surface again. Idempotent."""
        timer.owner = None
        self._dead += len(timer.times)
        timer.times.clear()
        if self._dead > MIN_DEAD and self._dead * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].owner is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    def due(self, now: float, at_most: int) -> list[T]:
        """Take out and return the owners whose time has come, each once, the earliest first.

        There are no more than *at_most*; `next_at` is in the past if others wait.
        """
        owners: dict[T, None] = {}
        while self._heap and self._heap[0][0] <= now and len(owners) < at_most:
            _, _, timer = heapq.heappop(self._heap)
            if timer.owner is None:
                self._dead -= 1
                continue
            timer.times.pop()
            owners[timer.owner] = None
        return list(owners)
