"""What recovery and congestion control keep of a packet that was sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aioquic.quic.packet import QuicPacketType
from aioquic.tls import Epoch

__all__ = ["AckPacket", "Frames", "Handler", "Handlers", "PlainPacket"]

# aioquic's own type: what to call when the packet is acknowledged or lost, and with what.
Handler = tuple[Callable[..., None], Sequence[Any]]
Handlers = list[Handler]
Frames = list[bytes | bytearray]


class PlainPacket:
    """A packet with data: aioquic's `QuicSentPacket` with what never differs kept once."""

    __slots__ = ("delivery_handlers", "packet_number", "sent_bytes", "sent_time")

    epoch = Epoch.ONE_RTT
    in_flight = True
    is_ack_eliciting = True
    is_crypto_packet = False
    packet_type = QuicPacketType.ONE_RTT

    def __init__(
        self, packet_number: int, sent_time: float, sent_bytes: int, delivery_handlers: Handlers
    ) -> None:
        self.packet_number = packet_number
        self.sent_time = sent_time
        self.sent_bytes = sent_bytes
        self.delivery_handlers = delivery_handlers


class AckPacket(PlainPacket):
    """A packet that only acknowledges: nobody acknowledges it, and no window holds it back."""

    __slots__ = ()

    in_flight = False
    is_ack_eliciting = False
