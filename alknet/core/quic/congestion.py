"""Congestion control: NewReno (RFC 9002 sec. 7), with what aioquic's lacks.

Three things. A window that nobody fills does not grow (sec. 7.8): aioquic's grows with every
acknowledged call, until a burst of bulk finds it without any bound. The maximum datagram size may
change (`mtu`). And losses of packets that are longer than every path takes are counted, for they
may be the length's fault. docs/explanation/decisions.md has the figures beside CUBIC.
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

LOSS_REDUCTION = 0.5  # RFC 9002 sec. B.1
# Packets up to this size arrive wherever QUIC does.
SMALLEST_BYTES = 1200
# RFC 9002 sec. 7.2: ten packets, but no more than this unless two are longer.
INITIAL_PACKETS, INITIAL_BYTES = 10, 14_720


class CongestionControl(QuicCongestionControl):
    """NewReno.

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
        self._stash = 0
        # When a packet was last sent into a window that was at least half full.
        self._filled_at = -math.inf
        self._rtt_monitor: QuicRttMonitor | None = QuicRttMonitor()

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
        if sent_at <= self._recovery_began_at or sent_at > self._filled_at:
            return
        if self.ssthresh is None or self.congestion_window < self.ssthresh:
            self.congestion_window += packet.sent_bytes
            return
        self._stash += packet.sent_bytes
        if self._stash >= self.congestion_window:
            self._stash -= self.congestion_window
            self.congestion_window += self._max_datagram_size

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
        """Halve the window, once for all that was in flight together."""
        latest = 0.0
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes
            self.full_losses += packet.sent_bytes > SMALLEST_BYTES
            self.packets_lost += 1
            latest = packet.sent_time or 0.0
        if latest > self._recovery_began_at:
            self._recovery_began_at = now
            self.congestion_window = max(
                int(self.congestion_window * LOSS_REDUCTION),
                K_MINIMUM_WINDOW * self._max_datagram_size,
            )
            self.ssthresh = self.congestion_window
            self._rtt_monitor = None

    def on_persistent_congestion(self) -> None:
        """Nothing has come through for long (sec. 7.6): begin anew."""
        self.congestion_window = K_MINIMUM_WINDOW * self._max_datagram_size
        self._recovery_began_at = 0.0

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        """Leave slow start when the round trip grows: a queue is building up (HyStart)."""
        monitor = self._rtt_monitor
        if monitor is not None and monitor.is_rtt_increasing(now=now, rtt=rtt):
            self.ssthresh = self.congestion_window
            self._rtt_monitor = None


register_congestion_control(NAME, CongestionControl)
