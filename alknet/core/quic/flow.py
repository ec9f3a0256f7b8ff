"""Flow control that follows the reader; aioquic doubles its windows as data *arrives*.

MAX_DATA and MAX_STREAM_DATA grow as bytes are consumed, MAX_STREAMS as streams are done with. How
far ahead of the reader they are is `windows`' concern.
"""

from __future__ import annotations

import math
from typing import Any, cast
from weakref import WeakSet

from aioquic.quic.connection import Limit
from aioquic.quic.packet import QuicFrameType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from alknet.core.budget import MemoryBudget
from alknet.core.limits import Limits
from alknet.core.quic.hotpath.send import HotSend
from alknet.core.quic.windows import (
    FLOOR_CONNECTION_BYTES,
    FLOOR_STREAM_BYTES,
    UNPROVEN_CONNECTION_BYTES,
    DeliveryRate,
    ReceiveWindow,
    send_buffer,
)

__all__ = ["FlowControlled"]

FRAME_CAPACITY = 17  # type and two variable-length integers of 8 bytes


class StreamLimit(Limit):
    """MAX_STREAMS that grows as streams are done, both on the wire and for the application.

    aioquic raises it when a stream has ended *on the wire*, so a peer could fill memory with
    short streams that nobody has read yet; the application alone would let it fill memory with
    answers that it never acknowledges. The smaller of the two counts bounds both.
    """

    def __init__(self, frame_type: int, name: str, value: int) -> None:
        self._initial = value
        self._ended = 0
        self._released = 0
        super().__init__(frame_type, name, value)
        self._ended = 0

    @property
    def value(self) -> int:
        return self._initial + min(self._ended, self._released)

    @value.setter
    def value(self, _: int) -> None:
        """Count one more stream that has ended on the wire: aioquic adds one for each."""
        self._ended += 1

    def release(self) -> None:
        self._released += 1


class FlowControlled(HotSend):
    """A connection with flow control that follows its reader.

    Attributes:
        is_proven: The peer is somebody we know, who may make us hold more.
        send_buffer_bytes: How many bytes of one stream may wait to be acknowledged.
    """

    def __init__(self, limits: Limits, budget: MemoryBudget, **kwargs: Any) -> None:
        self.is_proven = False
        self._limits = limits
        self._budget = budget
        self._consumed = 0
        self._stream_consumed: dict[int, int] = {}
        # Of streams that were read from; all others have the first window.
        self._windows: dict[int, ReceiveWindow] = {}
        # Until aioquic has forgotten them too; events of theirs concern nobody.
        self._released: WeakSet[QuicStream] = WeakSet()
        self._pass_at = 0.0
        self._rate = DeliveryRate()
        super().__init__(**kwargs)
        self._connection_window = ReceiveWindow(self._configuration.max_data, 0.0)
        self.send_buffer_bytes = self._send_buffer()
        most = limits.streams_per_connection
        self._local_max_streams_bidi = StreamLimit(
            QuicFrameType.MAX_STREAMS_BIDI, "max_streams_bidi", most
        )
        self._local_max_streams_uni = StreamLimit(
            QuicFrameType.MAX_STREAMS_UNI, "max_streams_uni", most
        )

    def on_pass(self, now: float) -> None:
        """A send pass begins: measure what the path takes."""
        self._pass_at = now
        delivered = self._network_paths[0].bytes_sent - self._loss.bytes_in_flight
        if self._rate.sample(delivered, now, self._loss._rtt_smoothed):
            self.send_buffer_bytes = self._send_buffer()

    def _send_buffer(self) -> int:
        shortest = self._loss._rtt_min
        return send_buffer(
            self._rate,
            0.0 if shortest == math.inf else shortest,
            self._limits.stream_send_buffer_bytes,
            self._budget,
        )

    # for the reader

    def credit(self, stream_id: int, count: int, *, is_wanted: bool = True) -> bool:
        """Say that *count* received bytes were consumed, so that the peer may send as many more.

        Args:
            is_wanted: More of this stream is wanted. If not, only the connection's window grows:
                a peer that ignores STOP_SENDING runs into the stream's.

        Returns:
            Whether a window was raised, so that a send pass is worth its while.
        """
        consumed = self._stream_consumed.get(stream_id, 0) + count
        self._stream_consumed[stream_id] = consumed
        raised = self._credit_connection(count)
        stream = self._streams.get(stream_id)
        if stream is None or stream.receiver.is_finished or not is_wanted:
            return raised
        size = self._stream_window(stream_id, consumed)
        target = consumed + size
        if target - stream.max_stream_data_local >= size // 4:
            stream.max_stream_data_local = target
            self.announce_window(stream)
            return True
        return raised

    def credit_abandoned(self, stream_id: int) -> bool:
        """The peer reset the stream: give back its credit, bytes that never came included.

        To be called before the next send pass, in which aioquic may forget the stream.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        left = stream.receiver.highest_offset - self._stream_consumed.get(stream_id, 0)
        return self.credit(stream_id, left) if left > 0 else False

    def release(self, stream_id: int) -> None:
        """The application is done with a stream: forget it and let the peer open another."""
        self._stream_consumed.pop(stream_id, None)
        self._windows.pop(stream_id, None)
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._released.add(stream)
        if (stream_id & 1 == 0) == self._is_client:
            return  # ours: the peer's limit applies
        limit = self._local_max_streams_uni if stream_id & 2 else self._local_max_streams_bidi
        cast(StreamLimit, limit).release()

    def is_released(self, stream_id: int) -> bool:
        """Return whether the application is done with the stream, see `release`."""
        stream = self._streams.get(stream_id)
        return stream is None or stream in self._released

    def _stream_window(self, stream_id: int, consumed: int) -> int:
        """Let the stream's window follow its reader; return its size."""
        window = self._windows.get(stream_id)
        if window is None:
            first = self._configuration.max_stream_data
            window = self._windows[stream_id] = ReceiveWindow(first, self._pass_at)
        if self._budget.is_tight:
            window.shrink(FLOOR_STREAM_BYTES, is_exhausted=self._budget.is_exhausted)
        else:
            most = self._limits.stream_receive_window_bytes
            if window.follow(consumed, self._pass_at, self._loss._rtt_smoothed, most):
                # One stream must be able to use its window beside others.
                whole = self._connection_window
                whole.size = max(whole.size, min(self._most_unread, 3 * window.size // 2))
        return window.size

    @property
    def _most_unread(self) -> int:
        most = self._limits.connection_receive_window_bytes
        return most if self.is_proven else min(most, UNPROVEN_CONNECTION_BYTES)

    def _credit_connection(self, count: int) -> bool:
        self._consumed += count
        window = self._connection_window
        if self._budget.is_tight:
            window.shrink(FLOOR_CONNECTION_BYTES, is_exhausted=self._budget.is_exhausted)
        else:
            rtt = self._loss._rtt_smoothed
            window.follow(self._consumed, self._pass_at, rtt, self._most_unread)
        target = self._consumed + window.size
        if target - self._local_max_data.value >= window.size // 4:
            self._local_max_data.value = target
            return True
        return False

    # The two writers of windows, without aioquic's doubling.

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        for limit in (
            self._local_max_data,
            self._local_max_streams_bidi,
            self._local_max_streams_uni,
        ):
            if limit is not self._local_max_data and (
                limit.sent - limit.used >= limit.value - limit.sent
            ):
                continue  # batch MAX_STREAMS, as aioquic does
            if limit.value != limit.sent:
                buf = builder.start_frame(
                    limit.frame_type,
                    capacity=FRAME_CAPACITY,
                    handler=self._on_connection_limit_delivery,
                    handler_args=(limit,),
                )
                buf.push_uint_var(limit.value)
                limit.sent = limit.value

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        if stream.max_stream_data_local_sent == stream.max_stream_data_local:
            return
        buf = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=FRAME_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        buf.push_uint_var(cast(int, stream.stream_id))
        buf.push_uint_var(stream.max_stream_data_local)
        stream.max_stream_data_local_sent = stream.max_stream_data_local
