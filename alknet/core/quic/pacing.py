"""Pacing in bursts (RFC 9002 sec. 7.7): as smooth as the timers of the system can be.

aioquic's pacer spreads single packets over the round trip. On a fast path that means timers far
below a millisecond, which epoll rounds up: each packet then waits about a millisecond, the round
trip seems longer, and the rate that is computed from it sinks further. It also charges a packet
of 100 bytes like a full one, so calls suffer most.
"""

from __future__ import annotations

from typing import cast

from aioquic.quic.recovery import QuicPacketPacer

__all__ = ["BurstPacer"]

# Worth two rounds of the event loop's timer; at 1 Gbit/s a burst is 250 kB, less than one window.
BURST_S = 0.002
# The shortest wait that a timer keeps.
MIN_WAIT_S = 0.001
# RFC 9002 sec. 7.7: pace a little faster than the window, or it is never filled.
GAIN_NUMERATOR, GAIN_DENOMINATOR = 5, 4


class BurstPacer(QuicPacketPacer):
    """aioquic's pacer with a bucket that holds at least `BURST_S` of sending."""

    def next_send_time(self, now: float) -> float | None:  # type: ignore[override]  # as there
        """Return when the next burst may leave, or None for now."""
        at = cast("float | None", super().next_send_time(now))
        return None if at is None else max(at, now + MIN_WAIT_S)

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """Take over a new window and round trip."""
        paced = congestion_window * GAIN_NUMERATOR // GAIN_DENOMINATOR
        super().update_rate(paced, smoothed_rtt)
        self.bucket_max = max(self.bucket_max, BURST_S)
