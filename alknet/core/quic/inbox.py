"""Datagrams that wait for their turn, by whose they are. Sans-IO.

The socket's queue is one for all: without this, who sends much would be served much, and whoever
sends a packet a second would wait behind it. Each flow has a share of what may wait, and loses its
own datagrams past it, nobody else's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from alknet.core.datagram import NetworkPath

__all__ = ["LEAST_SHARE", "MAX_SHARE", "MAX_WAITING", "Datagram", "Inbox"]

Datagram = tuple[bytes, NetworkPath]
K = TypeVar("K", bound=Hashable)

# Datagrams that wait in all, 3 MB of common ones, divided among those who have some waiting; one
# alone may have half, a large window of packets. The least share is a small one, so that nobody is
# shut out by many others.
MAX_WAITING = 2_048
MAX_SHARE, LEAST_SHARE = 1_024, 8


class Inbox(Generic[K]):
    """A queue for each flow, in the order of their turns."""

    def __init__(self, counters: Counter[str]) -> None:
        """Count in *counters* what is dropped: ``overrun``."""
        self._counters = counters
        self._queues: dict[K, deque[Datagram]] = {}

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    @property
    def flow_count(self) -> int:
        """Flows that have something waiting."""
        return len(self._queues)

    def __contains__(self, flow: K) -> bool:
        return flow in self._queues

    def put(self, flow: K, datagrams: Sequence[Datagram], *, at_most: int = MAX_SHARE) -> None:
        """Queue *datagrams* behind those of *flow*, up to its share; the rest is lost."""
        queue = self._queues.setdefault(flow, deque())
        share = max(LEAST_SHARE, min(at_most, MAX_WAITING // len(self._queues)))
        room = max(0, share - len(queue))
        queue.extend(datagrams[:room])
        if len(datagrams) > room:
            self._counters["overrun"] += len(datagrams) - room

    def pop(self) -> tuple[K, deque[Datagram]]:
        """Take out the flow whose turn it is, and all that it has waiting."""
        flow = next(iter(self._queues))
        return flow, self._queues.pop(flow)

    def put_back(self, flow: K, queue: deque[Datagram]) -> None:
        """Let what is left of *flow* after its turn wait behind all others."""
        if queue:
            self._queues[flow] = queue

    def forget(self, flow: K) -> None:
        """Drop what waits of a flow that is no more."""
        self._queues.pop(flow, None)
