"""A send pass of one packet with the data of one stream: a request, or an answer.

That is most passes of calls. It does what `Burst` would do, without what is only needed to put
many streams and packets in order; whatever is more than that it leaves to `Burst`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from aioquic.quic.packet_builder import QuicSentPacket

from alknet.core.quic.hotpath.burst import (
    OFFSET_BIT,
    STREAM,
    Datagrams,
    ack_now,
    may_carry_ack,
    on_acknowledging,
)
from alknet.core.quic.hotpath.frames import stream_head
from alknet.core.quic.hotpath.records import Handlers, PlainPacket
from alknet.core.quic.hotpath.seal import TAG_BYTES

if TYPE_CHECKING:
    from aioquic.quic.stream import QuicStream

    from alknet.core.quic.hotpath.send import HotSend

__all__ = ["send_single"]


def send_single(connection: HotSend, now: float) -> Datagrams | None:
    """Send all that the one ready stream has, if one packet takes it and nothing holds it back.

    Only for a pass in which no acknowledgement is due, and nothing but data is to be sent.

    Returns:
        The packet, nothing if it has to wait for its time (pacing), or None, and then nothing has
        changed: it is not as simple as that.
    """
    (stream,) = connection._hot_ready
    span = _fresh_data(connection, stream)
    if span is None:
        return None
    start, stop = span
    ack = ack_now(connection, now) if may_carry_ack(connection, now) else b""
    head = stream_head(
        STREAM | OFFSET_BIT if start else STREAM, cast(int, stream.stream_id), start, stop - start
    )
    sealer = connection._sealer()
    size = len(ack) + len(head) + stop - start
    if size > connection._max_datagram_size - sealer.header_bytes - TAG_BYTES:
        return None
    connection._pacing_at = cast("float | None", connection._loss._pacer.next_send_time(now))
    if connection._pacing_at is not None:
        return []
    data = stream.sender._buffer[start - stream.sender._buffer_start :]
    datagram = sealer.seal(connection._packet_number, b"".join((ack, head, data)))
    handlers: Handlers = [(connection._on_stream_delivery, (stream, start, stop, False))]
    if ack:
        handlers.append(on_acknowledging(connection, now))
    _take(connection, stream, stop)
    _register(connection, PlainPacket(connection._packet_number, now, len(datagram), handlers), now)
    if connection._streams_queue[-1] is not stream:
        connection._take_turns({stream: None})
    connection._after_sending(now)
    return [(datagram, connection._network_paths[0].addr)]


def _fresh_data(connection: HotSend, stream: QuicStream) -> tuple[int, int] | None:
    """Return the place of what *stream* has, if it is new and all of it may leave now."""
    sender = stream.sender
    ranges: list[range] = sender._pending._RangeSet__ranges  # type: ignore[attr-defined]  # its
    if len(ranges) != 1 or sender._buffer_fin is not None or stream.is_blocked:
        return None
    start, stop = ranges[0].start, ranges[0].stop
    controller = connection._loss._cc
    # Room for two packets: this one is not cut, and whether there would be another needs no look.
    if (
        start != sender.highest_offset
        or stop > stream.max_stream_data_remote
        or stop - start > connection._remote_max_data - connection._remote_max_data_used
        or controller.congestion_window - controller.bytes_in_flight
        < 2 * connection._max_datagram_size
    ):
        return None
    return start, stop


def _take(connection: HotSend, stream: QuicStream, stop: int) -> None:
    """Count all that *stream* has as sent."""
    sender = stream.sender
    ranges: list[range] = sender._pending._RangeSet__ranges  # type: ignore[attr-defined]  # its
    ranges.clear()
    connection._remote_max_data_used += stop - sender.highest_offset
    sender.highest_offset = stop


def _register(connection: HotSend, packet: PlainPacket, now: float) -> None:
    """Count *packet*, and find out whether the stream could send another one now."""
    loss, space = connection._loss, connection._hot_space
    record = cast(QuicSentPacket, packet)
    space.sent_packets[packet.packet_number] = record
    space.ack_eliciting_in_flight += 1
    loss._time_of_last_sent_ack_eliciting_packet = now
    loss._cc.on_packet_sent(packet=record)
    connection._packet_number += 1
    connection._network_paths[0].bytes_sent += packet.sent_bytes
    if not connection._ack_eliciting_sent_since_receipt:  # RFC 9000 sec. 10.1
        connection._close_at = now + connection._idle_timeout()
        connection._ack_eliciting_sent_since_receipt = True
    pacer = loss._pacer
    pacer.update_after_send(now)
    if pacer.packet_time is not None and pacer.bucket_time <= 0:  # as aioquic, which then waits
        connection._pacing_at = pacer.next_send_time(now)
        return
    (stream,) = connection._hot_ready
    stream.sender.buffer_is_empty = True
    connection._hot_ready.clear()
