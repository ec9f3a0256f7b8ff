"""How much may be on its way: windows that follow the reader, buffers that follow the path.

A receive window starts small, so that idle and unproven connections cost little. When its reader
takes a whole window in less than two round trips, the window is what holds the sender back, and it
doubles. A send buffer holds twice what the path takes in its shortest round trip: enough to keep
it busy, and little enough that what is said beside a bulk stream does not wait behind it.
"""

from __future__ import annotations

from alknet.core.budget import MemoryBudget
from alknet.core.limits import Limits

__all__ = [
    "FLOOR_CONNECTION_BYTES",
    "FLOOR_STREAM_BYTES",
    "MIN_SEND_BYTES",
    "TIGHT_SEND_BYTES",
    "DeliveryRate",
    "ReceiveWindow",
    "first_windows",
    "send_buffer",
]

KIB = 1024
# Where windows start. Eight times what a sender may have in flight at first (RFC 9002 sec. 7.2):
# they have doubled before its congestion window gets there.
FIRST_STREAM_BYTES = 128 * KIB
FIRST_CONNECTION_BYTES = 256 * KIB
# What each connection keeps when memory is short: a round trip's worth of a slow path.
FLOOR_STREAM_BYTES = 16 * KIB
FLOOR_CONNECTION_BYTES = 32 * KIB
# A peer that nobody knows may have this much unread in all, as long as we did not dial it.
UNPROVEN_CONNECTION_BYTES = 1024 * KIB
# A send buffer is never smaller while memory lasts: on a busy machine it is the event loops that
# make round trips long, and 64 KiB leave a bulk stream a quarter of its rate on loopback.
MIN_SEND_BYTES = 256 * KIB
TIGHT_SEND_BYTES = 64 * KIB
# A path with a shorter round trip is governed by how often the event loop turns.
MIN_RTT_S = 0.001
# How much a lower measurement counts: a pause of the application is not a slower path.
DECAY = 1 / 8


class ReceiveWindow:
    """How far ahead of its reader a peer may send.

    Attributes:
        size: Bytes.
    """

    __slots__ = ("_mark", "_marked_at", "size")

    def __init__(self, size: int, now: float) -> None:
        self.size = size
        self._mark = 0
        self._marked_at = now

    def follow(self, consumed: int, now: float, rtt: float, most: int) -> bool:
        """*consumed* bytes were read in all; return whether the window has doubled."""
        if consumed - self._mark < self.size // 2:
            return False
        took = now - self._marked_at
        self._mark, self._marked_at = consumed, now
        if took >= rtt or self.size >= most:
            return False
        self.size = min(2 * self.size, most)
        return True

    def shrink(self, floor: int, *, is_exhausted: bool) -> None:
        """Memory is short: go half way to *floor*, or there at once."""
        least = min(self.size, floor)
        self.size = least if is_exhausted else max(least, self.size // 2)


class DeliveryRate:
    """Bytes a second that arrive at the peer: the highest lately.

    Attributes:
        per_s: The estimate.
    """

    __slots__ = ("_at", "_delivered", "per_s")

    def __init__(self) -> None:
        self.per_s = 0.0
        self._at = 0.0
        self._delivered = 0

    def sample(self, delivered: int, now: float, rtt: float) -> bool:
        """*delivered* bytes in all are not in flight any more; return whether that was news."""
        elapsed = now - self._at
        if elapsed < max(rtt, MIN_RTT_S):
            return False
        measured = (delivered - self._delivered) / elapsed
        self._at, self._delivered = now, delivered
        if measured >= 0:  # else the path has changed, and its count begins anew
            gain = 1 if measured > self.per_s else DECAY
            self.per_s += (measured - self.per_s) * gain
        return True


def first_windows(limits: Limits, budget: MemoryBudget) -> tuple[int, int]:
    """Return the windows of a new connection's streams, and its own."""
    if budget.is_tight:
        return (
            min(FLOOR_STREAM_BYTES, limits.stream_receive_window_bytes),
            min(FLOOR_CONNECTION_BYTES, limits.connection_receive_window_bytes),
        )
    return (
        min(FIRST_STREAM_BYTES, limits.stream_receive_window_bytes),
        min(FIRST_CONNECTION_BYTES, limits.connection_receive_window_bytes),
    )


def send_buffer(rate: DeliveryRate, shortest_rtt: float, limit: int, budget: MemoryBudget) -> int:
    """Return how many bytes of one stream may wait to be acknowledged."""
    if budget.is_exhausted:
        return min(limit, FLOOR_STREAM_BYTES)
    if budget.is_tight:
        return min(limit, TIGHT_SEND_BYTES)
    wanted = 2 * rate.per_s * max(shortest_rtt, MIN_RTT_S)
    return min(limit, max(MIN_SEND_BYTES, int(wanted)))
