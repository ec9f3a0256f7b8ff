"""What there is to send on a connection, known without a look at every stream.

aioquic asks each open stream for each packet. Here a stream is noted when it gets something to
send: by the application, or by a loss. What is rare (resets, new connection IDs, whatever aioquic's
own way has done) asks for one look at all of them in the next pass instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aioquic._buffer import Buffer
from aioquic.quic.connection import Limit, QuicConnectionId, QuicReceiveContext
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream, QuicStreamSender
from aioquic.tls import Epoch

from alknet.core.quic.hotpath.receive import HotReceive

__all__ = ["SMALL_BYTES", "SMALL_SHARE_BYTES", "ReadyStreams"]

# A stream with no more to send than this goes before those with more: a call's request or answer.
SMALL_BYTES = 1_024
# All small streams of a pass together; beyond it they take their turn, so bulk is never starved.
SMALL_SHARE_BYTES = 8_192
# Looking up places in the queue is cheaper than walking it for so few.
FEW_STREAMS = 8


class ReadyStreams(HotReceive):
    """Keeps the streams that may have something to send."""

    favours_small = True
    """Whether streams with little to send go first; aioquic's order otherwise, for comparison."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Streams with data or an end to send, perhaps held back by flow control.
        self._hot_ready: dict[QuicStream, None] = {}
        # Streams whose receive window has grown, or whose announcement was lost.
        self._hot_raised: dict[QuicStream, None] = {}
        # Look at all streams before the next pass; what that found is not for the short way. The
        # passes of a handshake, which are aioquic's, set the one, and the look the other.
        self._hot_is_stale: bool
        self._hot_is_rare: bool
        # Of 1-RTT packets, set once the handshake is confirmed.
        self._hot_space: QuicPacketSpace
        self._hot_crypto: CryptoPair
        self._hot_handshake: QuicStreamSender
        super().__init__(*args, **kwargs)

    def _confirm_handshake(self) -> None:
        super()._confirm_handshake()
        self._hot_space = self._spaces[Epoch.ONE_RTT]
        self._hot_crypto = self._cryptos[Epoch.ONE_RTT]
        self._hot_handshake = self._crypto_streams[Epoch.ONE_RTT].sender

    # what the application does

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        """Send data on a stream, as in aioquic."""
        stream = self._get_or_create_stream_for_send(stream_id)
        stream.sender.write(data, end_stream=end_stream)
        self._hot_ready[stream] = None

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        """Abort sending, as in aioquic."""
        super().reset_stream(stream_id, error_code)
        self._hot_is_stale = True

    def stop_stream(self, stream_id: int, error_code: int) -> None:
        """Ask the peer to stop sending, as in aioquic."""
        super().stop_stream(stream_id, error_code)
        self._hot_is_stale = True

    def announce_window(self, stream: QuicStream) -> None:
        """Send MAX_STREAM_DATA in the next pass: the stream's window has grown."""
        self._hot_raised[stream] = None

    # what the peer does

    def _handle_stream_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        known = len(self._events)
        super()._handle_stream_frame(context, frame_type, buf)
        event = self._events[-1] if len(self._events) > known else None
        if isinstance(event, StreamDataReceived) and event.end_stream:
            self._hot_ended.append(self._streams[event.stream_id])

    def _handle_reset_stream_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        super()._handle_reset_stream_frame(context, frame_type, buf)
        self._hot_is_stale = True

    def _handle_stop_sending_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        super()._handle_stop_sending_frame(context, frame_type, buf)
        self._hot_is_stale = True

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        self._hot_is_stale = True

    # what became of what was sent

    def _on_stream_delivery(
        self, delivery: QuicDeliveryState, stream: QuicStream, start: int, stop: int, fin: bool
    ) -> None:
        """A STREAM frame was acknowledged or lost."""
        if stream.sender.is_finished:  # a lost copy of an end that has arrived need not go again
            return
        sender = stream.sender
        if (
            delivery is QuicDeliveryState.ACKED
            and start == sender._buffer_start
            and sender._buffer_fin is None
            and sender._reset_error_code is None
            and not len(sender._acked)
        ):  # the next bytes in order, which need no set of ranges
            sender._buffer_start = stop
            del sender._buffer[: stop - start]
            return
        sender.on_data_delivery(delivery, start, stop, fin)
        if sender.is_finished:
            self._hot_ended.append(stream)
        elif not sender.buffer_is_empty:
            self._hot_ready[stream] = None

    def _on_rare_delivery(
        self, delivery: QuicDeliveryState, handler: Callable[[QuicDeliveryState], None]
    ) -> None:
        """A RESET_STREAM or STOP_SENDING frame was acknowledged or lost."""
        handler(delivery)
        self._hot_is_stale = True

    def _on_max_stream_data_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        super()._on_max_stream_data_delivery(delivery, stream)
        if delivery is QuicDeliveryState.LOST:
            self._hot_raised[stream] = None

    def _on_new_connection_id_delivery(
        self, delivery: QuicDeliveryState, connection_id: QuicConnectionId
    ) -> None:
        super()._on_new_connection_id_delivery(delivery, connection_id)
        self._hot_is_stale = True

    # aioquic's own way: the same handlers, so that either way hears of what the other has sent

    def _write_stream_frame(
        self,
        builder: QuicPacketBuilder,
        space: QuicPacketSpace,
        stream: QuicStream,
        max_offset: int,
    ) -> int:
        handlers = builder._packet.delivery_handlers if builder._packet else []
        known = len(handlers)
        used = super()._write_stream_frame(builder, space, stream, max_offset)
        if len(handlers) > known:
            _, args = handlers.pop()
            handlers.append((self._on_stream_delivery, (stream, *args)))
        return used

    def _write_reset_stream_frame(self, builder: QuicPacketBuilder, stream: QuicStream) -> None:
        super()._write_reset_stream_frame(builder, stream)
        self._watch_delivery(builder)

    def _write_stop_sending_frame(self, builder: QuicPacketBuilder, stream: QuicStream) -> None:
        super()._write_stop_sending_frame(builder, stream)
        self._watch_delivery(builder)

    def _watch_delivery(self, builder: QuicPacketBuilder) -> None:
        assert builder._packet is not None
        handler, _ = builder._packet.delivery_handlers.pop()
        builder._packet.delivery_handlers.append((self._on_rare_delivery, (handler,)))

    # for the send pass

    def _forget_notes(self) -> None:
        """The pass is aioquic's, which asks every stream: so does the next one of ours."""
        self._hot_is_stale = True
        self._hot_ready.clear()
        self._hot_raised.clear()
        self._hot_ended.clear()

    def _look_at_all(self) -> None:
        """Find anew what there is to send, and whether any of it is not for the short way."""
        self._hot_is_stale = False
        self._hot_is_rare = not all(cid.was_sent for cid in self._host_cids)
        streams = self._streams.values()
        for stream in streams:
            if stream.receiver.stop_pending or stream.sender.reset_pending:
                self._hot_is_rare = True
        self._hot_ended = [stream for stream in streams if stream.is_finished]
        self._hot_ready = {stream: None for stream in streams if not stream.sender.buffer_is_empty}
        self._hot_raised = {
            stream: None
            for stream in streams
            if stream.max_stream_data_local != stream.max_stream_data_local_sent
        }

    def _order(self) -> list[QuicStream]:
        """Return the streams that may send now, in the order of their turns."""
        ready = self._hot_ready
        for stream in [stream for stream in ready if stream.sender.buffer_is_empty]:
            del ready[stream]  # it was reset
        order = [stream for stream in ready if not stream.is_blocked]
        if len(order) < 2:
            return order
        queue = self._streams_queue
        if len(order) <= FEW_STREAMS:
            order.sort(key=queue.index)
        else:
            order = [stream for stream in queue if stream in ready and not stream.is_blocked]
        return _small_first(order) if self.favours_small else order

    def _discard_ended(self, order: list[QuicStream]) -> bool:
        """Forget streams that are over in both directions; return whether there were any."""
        ended, self._hot_ended = self._hot_ended, []
        is_any = False
        for stream in ended:  # one may be there twice
            if stream.is_finished and self._streams.get(_id(stream)) is stream:
                is_any = True
                self._forget(stream)
                if stream in order:
                    order.remove(stream)
        return is_any

    def _forget(self, stream: QuicStream) -> None:
        stream_id = _id(stream)
        del self._streams[stream_id]
        self._streams_queue.remove(stream)
        self._hot_ready.pop(stream, None)
        if (stream_id & 1 == 0) != self._is_client:
            # RFC 9000 sec. 4.6: the peer may open another, by and by.
            self._stream_limit(stream_id).value += 1

    def _take_turns(self, served: dict[QuicStream, None]) -> None:
        """Put the streams that were served at the end of the queue, in that order."""
        queue = self._streams_queue
        if len(served) == 1 and queue[-1] in served:
            return
        self._streams_queue = [stream for stream in queue if stream not in served]
        self._streams_queue.extend(served)

    def _has_limit_to_announce(self) -> bool:
        """Return whether MAX_DATA or MAX_STREAMS is due, by the rules of aioquic's writer."""
        data = self._local_max_data
        if data.value != data.sent:
            return True
        return _is_due(self._local_max_streams_bidi) or _is_due(self._local_max_streams_uni)


def _is_due(limit: Limit) -> bool:
    value, sent = limit.value, limit.sent
    return value != sent and sent - limit.used < value - sent


def _id(stream: QuicStream) -> int:
    assert stream.stream_id is not None
    return stream.stream_id


def _small_first(order: list[QuicStream]) -> list[QuicStream]:
    small: list[QuicStream] = []
    others: list[QuicStream] = []
    left = SMALL_SHARE_BYTES
    for stream in order:
        waiting = stream.sender._buffer_stop - stream.sender.next_offset
        if waiting <= SMALL_BYTES and waiting <= left:
            left -= waiting
            small.append(stream)
        else:
            others.append(stream)
    return small + others
