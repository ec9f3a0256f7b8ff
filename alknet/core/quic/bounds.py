"""What a hostile peer may cost, where aioquic sets no bound (RFC 9000 sec. 21).

aioquic itself bounds connection IDs (8 active, 32 that wait for retirement), path challenges (32),
network paths (8), acknowledgement ranges (64) and duplicates. Here: acknowledgements of packets
that were never sent, packets stuffed with frames that carry nothing, streams in crumbs,
connection IDs retired before they were given, packets that nobody ever acknowledges, round trips
of minutes, and closes to addresses that are not proven. A peer that goes beyond is closed with the
code of the RFC.

tests/core/quic/test_floods.py drives each of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from aioquic._buffer import Buffer
from aioquic.quic.connection import (
    NetworkAddress,
    QuicConnection,
    QuicConnectionError,
    QuicConnectionId,
    QuicReceiveContext,
)
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder, QuicSentPacket
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.tls import Epoch

from alknet.core.quic.memory import LeanConnection

__all__ = [
    "COUNTED_HANDLERS",
    "MAX_CRYPTO_GAPS",
    "MAX_GAPS",
    "MAX_IDLE_FRAMES",
    "MAX_PATIENCE_S",
    "MAX_TRACKED_PACKETS",
    "BoundedConnection",
]

# Frames in one packet that carry no data: 1,000 PINGs fit a packet and cost a hundred times what
# it costs to send. An honest one has a few; nine new connection IDs and 32 retirements at most.
MAX_IDLE_FRAMES = 64
# Holes in what has arrived of one stream: each costs 120 bytes, and every frame time in proportion
# to their number. 1 MiB in packets of 1200 bytes of which every other one is lost has 437.
MAX_GAPS = 512
# The same of a handshake, of strangers' too: 64 KiB in packets of 1200 bytes has 27.
MAX_CRYPTO_GAPS = 64
# Packets that wait for an acknowledgement, beyond those in flight, which congestion control
# bounds: our own acknowledgements to a peer that never acknowledges. 4,096 hold under 3 MiB.
MAX_TRACKED_PACKETS = 4_096
# RFC 9000 sec. 10 keeps a quiet or closed connection for three probe time-outs, and a peer that
# acknowledges late makes those as long as it likes: no longer than this, or our idle time-out.
MAX_PATIENCE_S = 60.0
# A packet number is left out somewhere in the first 64, the next 128 … 65,536 (as quinn does): who
# acknowledges it acknowledges what it has not received, to make us send faster than the path takes.
FIRST_SKIP, LAST_SKIP = 64, 65_536

# Handlers of frames that carry no data, or that are cut small only to hurt.
COUNTED_HANDLERS = (
    "_handle_data_blocked_frame _handle_max_data_frame"
    " _handle_max_streams_bidi_frame _handle_max_streams_uni_frame _handle_new_connection_id_frame"
    " _handle_path_challenge_frame _handle_path_response_frame _handle_ping_frame"
    " _handle_streams_blocked_frame"
)


class BoundedConnection(LeanConnection):
    """aioquic's connection, closed when its peer costs too much; the base of `Engine`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._idle_frames = 0
        self._last_cid_sent = 0
        self._forget_at = MAX_TRACKED_PACKETS
        self._skip_span = FIRST_SKIP
        self._skip_at = _below(FIRST_SKIP)
        super().__init__(*args, **kwargs)
        self._most_quiet_s = max(self._configuration.idle_timeout, MAX_PATIENCE_S)

    # frames

    def _payload_received(
        self, context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False
    ) -> tuple[bool, bool]:
        if self._close_pending:  # the rest of the batch that has brought us to close
            return False, False
        self._idle_frames = 0
        return super()._payload_received(context, plain, crypto_frame_required)

    def _count_idle(self, frame_type: int) -> None:
        self._idle_frames += 1
        if self._idle_frames > MAX_IDLE_FRAMES:
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, frame_type, "too many frames without data"
            )

    def _handle_stream_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start, known = buf.tell(), len(self._events)
        super()._handle_stream_frame(context, frame_type, buf)
        if len(self._events) == known:  # empty, old, or after a gap
            self._judge_stream_frame(frame_type, buf, start)

    def _judge_stream_frame(self, frame_type: int, buf: Buffer, start: int) -> None:
        end = buf.tell()
        buf.seek(start)
        stream_id = buf.pull_uint_var()
        if frame_type & 4:
            buf.pull_uint_var()
        length = buf.pull_uint_var() if frame_type & 2 else end - buf.tell()
        buf.seek(end)
        if not length:
            self._count_idle(frame_type)
        stream = self._streams.get(stream_id)
        if stream is not None and len(stream.receiver._ranges) > MAX_GAPS:
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, frame_type, "a stream with too many gaps"
            )

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        self._count_idle(frame_type)
        super()._handle_crypto_frame(context, frame_type, buf)
        stream = self._crypto_streams[context.epoch]
        if len(stream.receiver._ranges) > MAX_CRYPTO_GAPS:
            raise QuicConnectionError(
                QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, "a handshake in crumbs"
            )

    def _handle_datagram_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        super()._handle_datagram_frame(context, frame_type, buf)
        if buf.tell() - start <= 1:
            self._count_idle(frame_type)

    # acknowledgements

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        self._count_idle(frame_type)
        start = buf.tell()
        largest = buf.pull_uint_var()
        buf.seek(start)
        if largest >= self._packet_number:  # RFC 9000 sec. 13.1
            raise _never_sent(frame_type)
        super()._handle_ack_frame(context, frame_type, buf)

    def _skip_packet_number(self, now: float) -> None:
        """Leave out a packet number and remember it as if it had been sent."""
        number = self._packet_number
        self._spaces[Epoch.ONE_RTT].sent_packets[number] = QuicSentPacket(
            epoch=Epoch.ONE_RTT,
            in_flight=False,
            is_ack_eliciting=False,
            is_crypto_packet=False,
            packet_number=number,
            packet_type=QuicPacketType.ONE_RTT,
            sent_time=now,
            delivery_handlers=[(_on_skipped, ())],
        )
        self._packet_number += 1
        self._skip_span = min(2 * self._skip_span, LAST_SKIP)
        self._skip_at = self._packet_number + _below(self._skip_span)

    def _forget_packets(self, space: QuicPacketSpace) -> None:
        """Forget packets that only acknowledge: whether they arrived does not matter any more."""
        packets = space.sent_packets.values()
        for packet in [p for p in packets if not (p.in_flight or p.is_ack_eliciting)]:
            del space.sent_packets[packet.packet_number]
        # Not again before as many more have come: what is in flight has no bound here.
        self._forget_at = max(MAX_TRACKED_PACKETS, 2 * len(space.sent_packets))

    # connection IDs

    def _write_new_connection_id_frame(
        self, builder: QuicPacketBuilder, connection_id: QuicConnectionId
    ) -> None:
        super()._write_new_connection_id_frame(builder, connection_id)
        self._last_cid_sent = max(self._last_cid_sent, connection_id.sequence_number)

    def _handle_retire_connection_id_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        # aioquic makes a new one for each, at once: one packet could go through hundreds.
        self._count_idle(frame_type)
        start = buf.tell()
        sequence_number = buf.pull_uint_var()
        buf.seek(start)
        if sequence_number > self._last_cid_sent:  # RFC 9000 sec. 19.16
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, frame_type, "a connection ID that was not given"
            )
        super()._handle_retire_connection_id_frame(context, frame_type, buf)

    # the end

    def _bound_patience(self, now: float) -> None:
        """Let the idle time-out, which follows the round trip, end in time."""
        if self._close_at is not None and self._close_at - now > self._most_quiet_s:
            self._close_at = now + self._most_quiet_s

    def _close_begin(self, is_initiator: bool, now: float) -> None:
        super()._close_begin(is_initiator, now)
        assert self._close_at is not None
        self._close_at = min(self._close_at, now + MAX_PATIENCE_S)

    # sending

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """Build what can be sent now, as in aioquic."""
        path = self._network_paths[0]
        datagrams = super().datagrams_to_send(now)
        if not path.is_validated and path.bytes_sent > 3 * path.bytes_received:
            return []  # a close, to which aioquic applies no bound
        if datagrams and self._handshake_confirmed:
            self._after_sending(now)
        return datagrams

    def _after_sending(self, now: float) -> None:
        if self._packet_number >= self._skip_at:
            self._skip_packet_number(now)
        space = self._spaces[Epoch.ONE_RTT]
        if len(space.sent_packets) > self._forget_at:
            self._forget_packets(space)

    def may_repeat_close(self, received: int, address: NetworkAddress, size: int) -> bool:
        """Whether *size* bytes may answer a datagram that came after our close, and count them.

        An address that is not proven gets no more than three times what came from it, here too.
        """
        path = self._network_paths[0]
        if path.is_validated:
            return True
        if path.addr == address:
            path.bytes_received += received
        if not path.can_send(size):
            return False
        path.bytes_sent += size
        return True


def _counting(name: str) -> Callable[[BoundedConnection, QuicReceiveContext, int, Buffer], None]:
    handle = getattr(QuicConnection, name)

    def counted(
        self: BoundedConnection, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        self._count_idle(frame_type)
        handle(self, context, frame_type, buf)

    return counted


for _name in COUNTED_HANDLERS.split():
    setattr(BoundedConnection, _name, _counting(_name))


def _on_skipped(delivery: QuicDeliveryState) -> None:
    if delivery is QuicDeliveryState.ACKED:
        raise _never_sent(QuicFrameType.ACK)


def _never_sent(frame_type: int) -> QuicConnectionError:
    return QuicConnectionError(
        QuicErrorCode.PROTOCOL_VIOLATION, frame_type, "acknowledged a packet that was never sent"
    )


def _below(bound: int) -> int:
    """Draw a number that a peer cannot guess, below a power of two."""
    return int.from_bytes(os.urandom(4)) % bound
