"""Congestion control: CUBIC (RFC 9438), with what aioquic's controllers lack.

Three things. A window that nobody fills does not grow (RFC 9002 sec. 7.8): aioquic's grow with each
acknowledged call, until a burst of bulk finds it without any bound. The maximum datagram size may
change (`mtu`). And losses of packets that are longer than every path takes are counted, for they
may be the length's fault. docs/explanation/decisions.md has the figures beside theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from aioquic.quic.congestion.base import (
    K_MINIMUM_WINDOW,
    QuicCongestionControl,
    QuicRttMonitor,
    register_congestion_control,
)
from aioquic.quic.packet_builder import QuicSentPacket

__all__ = ["NAME", "CongestionControl"]

NAME = "alknet"
"""For `QuicConfiguration.congestion_control_algorithm`."""

# RFC 9438 sec. 4.1 and 4.6: how fast the cubic function grows, in packets, and what a loss leaves.
CUBIC_C, BETA = 0.4, 0.7
# Sec. 4.3: with it the estimate grows as Reno's window would, which a loss halves.
RENO_ALPHA = 3 * (1 - BETA) / (1 + BETA)
# Sec. 4.2: no faster than this in one round trip.
MOST_GROWTH = 1.5
# Packets up to this size arrive wherever QUIC does.
SMALLEST_BYTES = 1200
# RFC 9002 sec. 7.2: ten packets, but no more than this unless two are longer.
INITIAL_PACKETS, INITIAL_BYTES = 10, 14_720


class CongestionControl(QuicCongestionControl):
    """CUBIC.

    Attributes:
        full_losses: Packets lost that were longer than 1200 bytes.
        packets_lost: All that congestion control was told of, for people.
    """

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self.full_losses = 0
        self.packets_lost = 0
        self._max_datagram_size = max_datagram_size
        self._recovery_began_at = 0.0
        # The last window that was too large, and what Reno would have made of it since.
        self._too_large = 0.0
        self._reno_window = 0.0
        # When the present stretch without loss began, and how long the cubic function takes from
        # there to the window that was too large; None between a loss and the next growth.
        self._epoch_at: float | None = None
        self._climb_s = 0.0
        self._fraction = 0.0  # of a byte by which the window has grown
        self._rtt = 0.0
        # When a packet was last sent into a window that was at least half full.
        self._filled_at = -math.inf
        self._rtt_monitor: QuicRttMonitor | None = QuicRttMonitor()

    def successor(self, max_datagram_size: int, now: float) -> CongestionControl:
        """Return a controller for another path, which answers for what is in flight already.

        Whether that arrives or not is no news about the new path (RFC 9000 sec. 9.4).
        """
        other = CongestionControl(max_datagram_size=max_datagram_size)
        other.bytes_in_flight = self.bytes_in_flight
        other.full_losses, other.packets_lost = self.full_losses, self.packets_lost
        other._recovery_began_at = now
        return other

    def resize(self, max_datagram_size: int) -> None:
        """The path takes datagrams of another size; slow start begins with as many (sec. 7.2)."""
        self._max_datagram_size = max_datagram_size
        if self.ssthresh is None:
            initial = max(INITIAL_BYTES, 2 * max_datagram_size)
            initial = min(INITIAL_PACKETS * max_datagram_size, initial)
            self.congestion_window = max(self.congestion_window, initial)
        self.congestion_window = max(self.congestion_window, K_MINIMUM_WINDOW * max_datagram_size)

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        """A packet has arrived: grow, if the window is what holds us back."""
        self.bytes_in_flight -= packet.sent_bytes
        sent_at = packet.sent_time
        assert sent_at is not None
        if sent_at <= self._recovery_began_at:
            return
        if sent_at > self._filled_at:
            self._epoch_at = None  # time in which nobody needed more does not count
        elif self.ssthresh is None or self.congestion_window < self.ssthresh:
            self.congestion_window += packet.sent_bytes
        else:
            self._avoid_congestion(packet.sent_bytes, now)

    def _avoid_congestion(self, acknowledged: int, now: float) -> None:
        window = self.congestion_window
        if self._epoch_at is None:
            self._begin_epoch(now)
            assert self._epoch_at is not None
        elapsed = now - self._epoch_at
        size = self._max_datagram_size
        alpha = RENO_ALPHA if self._reno_window < self._too_large else 1.0
        self._reno_window += alpha * size * acknowledged / window
        if self._cubic(elapsed) < self._reno_window:
            self.congestion_window = max(window, int(self._reno_window))
            return
        target = min(max(self._cubic(elapsed + self._rtt), window), MOST_GROWTH * window)
        self._fraction += (target - window) * acknowledged / window
        whole = int(self._fraction)
        self._fraction -= whole
        self.congestion_window += whole

    def _begin_epoch(self, now: float) -> None:
        window = self.congestion_window
        self._epoch_at = now
        self._reno_window = window
        self._fraction = 0.0
        self._too_large = max(self._too_large, window)
        packets = (self._too_large - window) / self._max_datagram_size
        self._climb_s = (packets / CUBIC_C) ** (1 / 3)

    def _cubic(self, elapsed: float) -> float:
        """Return the window of that time after the epoch began (sec. 4.2)."""
        packets = CUBIC_C * (elapsed - self._climb_s) ** 3
        return self._too_large + packets * self._max_datagram_size

    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        """A packet is in flight."""
        self.bytes_in_flight += packet.sent_bytes
        if 2 * self.bytes_in_flight >= self.congestion_window:
            assert packet.sent_time is not None
            self._filled_at = packet.sent_time

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        """Packets are out of the count, for no fault of the path."""
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        """Make the window smaller, once for all that was in flight together."""
        latest = 0.0
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes
            self.full_losses += packet.sent_bytes > SMALLEST_BYTES
            self.packets_lost += 1
            latest = packet.sent_time or 0.0
        if latest > self._recovery_began_at:
            self._recovery_began_at = now
            self._epoch_at = None
            window = self.congestion_window
            # Fast convergence (sec. 4.7): who has come less far than before leaves room.
            less = window < self._too_large
            self._too_large = window * (1 + BETA) / 2 if less else window
            self.congestion_window = max(
                int(window * BETA),
                K_MINIMUM_WINDOW * self._max_datagram_size,
            )
            self.ssthresh = self.congestion_window
            self._rtt_monitor = None

    def on_persistent_congestion(self) -> None:
        """Nothing has come through for long (sec. 7.6): begin anew."""
        self.congestion_window = K_MINIMUM_WINDOW * self._max_datagram_size
        self._recovery_began_at = 0.0
        self._epoch_at = None

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        """Leave slow start when the round trip grows: a queue is building up (HyStart)."""
        self._rtt = rtt
        monitor = self._rtt_monitor
        if monitor is not None and monitor.is_rtt_increasing(now=now, rtt=rtt):
            self.ssthresh = self.congestion_window
            self._rtt_monitor = None


register_congestion_control(NAME, CongestionControl)
