"""When received packets are acknowledged (RFC 9000 sec. 13.2): late for calls, soon for bulk.

An acknowledgement of its own costs each side more than the small packet that it is about; held
back a few milliseconds, it rides on the answer. A bulk sender, though, is driven by them, and a
packet that arrives out of order is news that it waits for.
"""

from __future__ import annotations

from aioquic.quic.recovery import QuicPacketSpace

__all__ = ["ACK_DELAY_S", "AckPolicy"]

# How long one may wait for something to ride on. Less than the 25 ms that aioquic announces as
# max_ack_delay, by what a timer of a busy event loop may be late, and by the endpoint's ticks.
ACK_DELAY_S = 0.016
# RFC 9000 sec. 13.2.1 wants Initial and Handshake packets acknowledged at once: aioquic waits 1 ms.
# Stream bytes that are acknowledged in the next pass: seven packets of 1200 bytes, one jumbo.
BULK_BYTES = 8 * 1024
# What `_ranges` is while nothing arrives out of order: the first packet is no news either, so that
# what acknowledges the server's HANDSHAKE_DONE rides on the client's first request.
IN_ORDER = (1, 0)
# Packets that are, whatever is in them; as Chromium does on paths that are not slow.
MANY_PACKETS = 10


class AckPolicy:
    """Says before each send pass whether 1-RTT packets must be acknowledged in it."""

    __slots__ = ("_bytes", "_largest", "_ranges")

    def __init__(self) -> None:
        self._largest = -1
        self._bytes = 0
        self._ranges = IN_ORDER

    def is_due(self, space: QuicPacketSpace, received_bytes: int) -> bool:
        """Return whether what has arrived since the last acknowledgement can wait no more.

        Args:
            space: Of 1-RTT packets, with some to acknowledge.
            received_bytes: Of all streams so far.
        """
        return (
            received_bytes - self._bytes >= BULK_BYTES
            or space.largest_received_packet - self._largest >= MANY_PACKETS
            or _ranges(space) != self._ranges
        )

    def on_acknowledged(self, space: QuicPacketSpace, received_bytes: int) -> None:
        """All that has arrived is acknowledged, or needs not to be."""
        self._largest = space.largest_received_packet
        self._bytes = received_bytes
        self._ranges = _ranges(space)


def _ranges(space: QuicPacketSpace) -> tuple[int, int]:
    """Return what changes when a packet arrives out of order: a gap, or the end of one."""
    queue = space.ack_queue
    count = len(queue)
    return (count, queue[-1].start) if count > 1 else IN_ORDER
