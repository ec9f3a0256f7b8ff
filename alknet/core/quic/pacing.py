"""Pacing in bursts (RFC 9002 sec. 7.7): as smooth as the timers of the system can be.

aioquic's pacer spreads single packets over the round trip. On a fast path that means timers far
below a millisecond, which epoll rounds up: each packet then waits about a millisecond, the round
trip seems longer, and the rate that is computed from it sinks further. It also charges a packet
of 100 bytes like a full one, so calls suffer most.
"""

from __future__ import annotations

from typing import cast

from aioquic.quic.recovery import K_MICRO_SECOND, K_SECOND, QuicPacketPacer

__all__ = ["BurstPacer"]

# Worth two rounds of the event loop's timer; at 1 Gbit/s a burst is 250 kB, less than one window.
BURST_S = 0.002
# The shortest wait that a timer keeps.
MIN_WAIT_S = 0.001
# RFC 9002 sec. 7.7: pace a little faster than the window, or it is never filled.
GAIN = 1.25
# On a slow path, a burst is no more than a quarter of the window or this.
MAX_BURST_PACKETS = 16


class BurstPacer(QuicPacketPacer):
    """aioquic's pacer with a bucket that holds at least `BURST_S` of sending."""

    def next_send_time(self, now: float) -> float | None:  # type: ignore[override]  # as there
        """Return when the next burst may leave, or None for now."""
        at = cast("float | None", super().next_send_time(now))
        return None if at is None else max(at, now + MIN_WAIT_S)

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """Take over a new window and round trip."""
        rate = congestion_window * GAIN / max(smoothed_rtt, K_MICRO_SECOND)
        size = self._max_datagram_size
        self.packet_time = max(K_MICRO_SECOND, min(size / rate, K_SECOND))
        burst = max(2 * size, min(congestion_window // 4, MAX_BURST_PACKETS * size))
        self.bucket_max = max(burst / rate, BURST_S)
        self.bucket_time = min(self.bucket_time, self.bucket_max)
