"""One send pass over a connection's plain packets."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from aioquic.quic.connection import NetworkAddress
from aioquic.quic.packet_builder import QuicPacketBuilder, QuicPacketBuilderStop, QuicSentPacket
from aioquic.quic.recovery import QuicPacketPacer
from aioquic.quic.stream import QuicStream, QuicStreamSender

from alknet.core.quic.hotpath.frames import (
    LONGEST_TWO_BYTES,
    SHORTEST_STREAM_FRAME,
    FrameWriter,
    ack_frame,
    stream_head,
    stream_overhead,
)
from alknet.core.quic.hotpath.records import AckPacket, Frames, Handler, Handlers, PlainPacket
from alknet.core.quic.hotpath.seal import TAG_BYTES

if TYPE_CHECKING:
    from alknet.core.quic.hotpath.send import HotSend

__all__ = ["Burst", "Datagrams", "ack_now", "may_carry_ack", "on_acknowledging"]

Datagrams = list[tuple[bytes, NetworkAddress]]

# An acknowledgement of more ranges than this waits for its time: it would displace data.
MAX_RIDING_RANGES = 8
# One that is not due rides no oftener: reading one costs the peer as much as the data beside it.
RIDES_EVERY_S = 0.002
PING = 0x01
# STREAM with a length; these bits are added for an offset and for the end.
STREAM, OFFSET_BIT, FIN_BIT = 0x0A, 4, 1
# The bytes that a length takes more which does not fit two.
WIDE_BYTES = 2
# An acknowledgement of several ranges is to be acknowledged every so many packets.
ACK_OF_ACK_EVERY = 8


class Burst:
    """The packets of one pass: the same as `QuicConnection._write_application` would build."""

    __slots__ = (
        "_address",
        "_capacity",
        "_connection",
        "_datagrams",
        "_flight",
        "_has_forgotten",
        "_is_over",
        "_now",
        "_number",
        "_order",
        "_overhead",
        "_packets",
        "_sealer",
        "_served",
        "_space",
    )

    def __init__(self, connection: HotSend, now: float) -> None:
        loss = connection._loss
        self._connection = connection
        self._now = now
        self._space = connection._hot_space
        self._sealer = connection._sealer()
        self._overhead = self._sealer.header_bytes + TAG_BYTES
        self._capacity = connection._max_datagram_size - self._overhead
        self._flight = loss.congestion_window - loss.bytes_in_flight
        self._address = connection._network_paths[0].addr
        self._number = connection._packet_number
        self._order = connection._order()
        self._served: dict[QuicStream, None] = {}
        self._datagrams: Datagrams = []
        self._packets: list[PlainPacket] = []
        self._is_over = False
        self._has_forgotten: bool  # of the packet before

    def run(self) -> Datagrams:
        """Build packets until there is nothing more to send, or something forbids more."""
        pacer = self._connection._loss._pacer
        ack_at = self._space.ack_at
        if ack_at is None or ack_at >= self._now:  # as aioquic: not for what is overdue
            self._connection._pacing_at = pacer.next_send_time(self._now)
            if self._connection._pacing_at is not None:
                return []
        while self._write_first():
            if self._is_over:  # as aioquic, whose pacer does not count a packet cut short
                break
            pacer.update_after_send(self._now)
            if not (self._has_forgotten and self._connection._has_limit_to_announce()):
                self._write_more(pacer)
                break
            self._connection._pacing_at = pacer.next_send_time(self._now)
            if self._connection._pacing_at is not None:
                break
        if self._datagrams:
            self._register()
        return self._datagrams

    # packets

    def _write_first(self) -> bool:
        """Write a packet with all kinds of frames; return whether there was anything to write.

        Streams that are over are forgotten on the way. That may let the peer open others, which
        the same packet cannot announce, but the next one does, even if all else is sent.
        """
        while True:
            frames: Frames = []
            handlers: Handlers = []
            used, is_eliciting = self._write_control(frames, handlers)
            self._has_forgotten = False
            if not self._is_over:
                self._has_forgotten = self._connection._discard_ended(self._order)
                is_eliciting |= self._write_data(used, frames, handlers)
            if frames:
                self._seal(frames, handlers, is_eliciting=is_eliciting)
                return True
            if not self._has_forgotten:
                return False

    def _write_control(self, frames: Frames, handlers: Handlers) -> tuple[int, bool]:
        """Write what goes before data; return its bytes, and whether it elicits an ACK."""
        space, connection = self._space, self._connection
        is_ack_due = space.ack_at is not None and space.ack_at <= self._now
        if not (is_ack_due or connection._hot_raised or connection._has_limit_to_announce()):
            return 0, False
        room = min(self._capacity, self._flight - self._overhead)
        writer = FrameWriter(frames, handlers, room)
        try:
            if is_ack_due:
                frames.append(ack_now(connection, self._now))
                handlers.append(on_acknowledging(connection, self._now))
                writer.used = len(frames[0])
                if len(space.ack_queue) > 1 and self._number % ACK_OF_ACK_EVERY == 0:
                    writer.start_frame(PING, 1, connection._on_ping_delivery, ((),))
            self._write_limits(writer)
        except QuicPacketBuilderStop:
            self._is_over = True
        return writer.used, len(frames) > is_ack_due

    def _write_limits(self, writer: FrameWriter) -> None:
        connection, space = self._connection, self._space
        builder = cast(QuicPacketBuilder, writer)
        connection._write_connection_limits(builder, space)
        raised = connection._hot_raised
        if not raised:
            return
        streams = list(raised) if len(raised) == 1 else list(connection._streams.values())
        for stream in streams:
            if stream in raised and connection._streams.get(cast(int, stream.stream_id)) is stream:
                connection._write_stream_limits(builder, space, stream)
        raised.clear()

    def _write_data(self, used: int, frames: Frames, handlers: Handlers) -> bool:
        """Write STREAM frames after *used* bytes, with an ACK before them if one may ride."""
        connection = self._connection
        if not self._order:
            return False
        if not may_carry_ack(connection, self._now):
            return self._fill(used, frames, handlers)
        ack = ack_now(connection, self._now)
        is_filled = self._fill(used + len(ack), frames, handlers)
        if is_filled:
            frames.insert(0, ack)
            handlers.append(on_acknowledging(connection, self._now))
        return is_filled

    def _write_more(self, pacer: QuicPacketPacer) -> None:
        """Write packets of data alone; *pacer* has counted the packet before."""
        bucket, step = pacer.bucket_time, pacer.packet_time
        connection = self._connection
        while True:
            if step is not None and bucket <= 0:
                pacer.bucket_time = bucket
                connection._pacing_at = pacer.next_send_time(self._now)
                return
            if len(self._datagrams) >= connection.max_packets_per_pass:
                connection._hot_has_more = bool(self._order) and self._flight > self._overhead
                break
            frames: Frames = []
            handlers: Handlers = []
            if not self._order or not self._fill(0, frames, handlers):
                break
            self._seal(frames, handlers, is_eliciting=True)
            if step is not None:
                bucket = 0.0 if bucket < step else bucket - step
        pacer.bucket_time = bucket

    # frames

    def _fill(self, used: int, frames: Frames, handlers: Handlers) -> bool:
        """Append the STREAM frames that fit after *used* bytes; return whether any did."""
        left = min(self._capacity, self._flight - self._overhead) - used
        order, before = self._order, len(frames)
        sent: list[QuicStream] = []
        emptied: list[QuicStream] = []
        for stream in order:
            if left < SHORTEST_STREAM_FRAME:
                break
            sender = stream.sender
            ranges = sender._pending._RangeSet__ranges  # type: ignore[attr-defined]  # RangeSet's
            start = ranges[0].start if ranges else sender._buffer_stop
            most = left - stream_overhead(cast(int, stream.stream_id), start)
            if most < 0:
                continue
            if not ranges and not sender._pending_eof:
                sender.buffer_is_empty = True
                emptied.append(stream)
                continue
            highest = sender.highest_offset
            left -= self._write_stream(stream, start, most, frames, handlers)
            if sender.highest_offset > highest:
                sent.append(stream)
        for stream in emptied:
            order.remove(stream)
            del self._connection._hot_ready[stream]
        if sent:
            self._rotate(sent)
        return len(frames) > before

    def _write_stream(
        self, stream: QuicStream, start: int, most: int, frames: Frames, handlers: Handlers
    ) -> int:
        """Append a frame of *most* bytes of data from *start*; return its length, 0 for none."""
        sender = stream.sender
        ranges: list[range] = sender._pending._RangeSet__ranges  # type: ignore[attr-defined]  # its
        stream_id = cast(int, stream.stream_id)
        stop = start
        if ranges:
            stop = self._stop(stream, sender, min(ranges[0].stop, start + most))
            if stop <= start:
                return 0
            if stop - start > LONGEST_TWO_BYTES:
                stop = min(stop, start + max(most - WIDE_BYTES, LONGEST_TWO_BYTES))
            self._take(sender, ranges, stop)
        kind = STREAM | OFFSET_BIT if start else STREAM
        fin = stop == sender._buffer_fin
        if fin:
            sender._pending_eof = False
            kind |= FIN_BIT
        head = stream_head(kind, stream_id, start, stop - start)
        base = sender._buffer_start
        data = sender._buffer[start - base : stop - base]
        frames += (head, data)
        handlers.append((self._connection._on_stream_delivery, (stream, start, stop, fin)))
        return len(head) + len(data)

    def _stop(self, stream: QuicStream, sender: QuicStreamSender, stop: int) -> int:
        """Return how far the flow control of stream and connection lets a frame reach."""
        connection = self._connection
        credit = connection._remote_max_data - connection._remote_max_data_used
        return min(stop, sender.highest_offset + credit, stream.max_stream_data_remote)

    def _take(self, sender: QuicStreamSender, ranges: list[range], stop: int) -> None:
        """Count what is sent up to *stop*, the front of what is pending."""
        if stop == ranges[0].stop:
            del ranges[0]
        else:
            ranges[0] = range(stop, ranges[0].stop)
        fresh = stop - sender.highest_offset
        if fresh > 0:
            sender.highest_offset = stop
            self._connection._remote_max_data_used += fresh

    def _rotate(self, sent: list[QuicStream]) -> None:
        """Let those that have sent new data wait until the others had their turn."""
        order, served = self._order, self._served
        for stream in sent:
            served.pop(stream, None)
            served[stream] = None
            if order[-1] is not stream:
                order.remove(stream)
                order.append(stream)

    # the end

    def _seal(self, frames: Frames, handlers: Handlers, *, is_eliciting: bool) -> None:
        number, now = self._number, self._now
        datagram = self._sealer.seal(number, b"".join(frames))
        size = len(datagram)
        if is_eliciting:
            packet = PlainPacket(number, now, size, handlers)
            self._flight -= size
            self._packets.append(packet)
        else:
            packet = AckPacket(number, now, size, handlers)
        self._space.sent_packets[number] = cast(QuicSentPacket, packet)
        self._datagrams.append((datagram, self._address))
        self._number = number + 1

    def _register(self) -> None:
        """Do for all packets what aioquic's `_flush_builder` does for each."""
        connection, now = self._connection, self._now
        connection._packet_number = self._number
        connection._network_paths[0].bytes_sent += sum([len(data) for data, _ in self._datagrams])
        packets = self._packets
        if packets:
            self._space.ack_eliciting_in_flight += len(packets)
            connection._loss._time_of_last_sent_ack_eliciting_packet = now
            # Controllers add up bytes and look at the time, which is one: all packets are as one.
            size = sum([packet.sent_bytes for packet in packets])
            whole = PlainPacket(packets[0].packet_number, now, size, [])
            connection._loss._cc.on_packet_sent(packet=cast(QuicSentPacket, whole))
            if not connection._ack_eliciting_sent_since_receipt:  # RFC 9000 sec. 10.1
                connection._close_at = now + connection._idle_timeout()
                connection._ack_eliciting_sent_since_receipt = True
        if self._served:
            connection._take_turns(self._served)
        connection._after_sending(now)


def may_carry_ack(connection: HotSend, now: float) -> bool:
    """Return whether there is an acknowledgement that data may take along."""
    space = connection._hot_space
    return (
        space.ack_at is not None
        and connection.piggybacks_acks
        and now - connection._hot_acked_at >= RIDES_EVERY_S
        and len(space.ack_queue) <= MAX_RIDING_RANGES
    )


def ack_now(connection: HotSend, now: float) -> bytes:
    """Return the frame that acknowledges all that has arrived."""
    space = connection._hot_space
    delay_us = int((now - cast(float, space.largest_received_time)) * 1_000_000)
    return ack_frame(space.ack_queue, delay_us >> connection._local_ack_delay_exponent)


def on_acknowledging(connection: HotSend, now: float) -> Handler:
    """Note that an acknowledgement goes out; return what hears whether it has arrived."""
    space = connection._hot_space
    space.ack_at = None
    connection._hot_acked_at = now
    return connection._on_ack_delivery, (space, space.largest_received_packet)
