"""A QUIC stream as the contract's `Stream`: back-pressure, half close, RESET and STOP_SENDING."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from alknet.core.conflict import ConflictDetector
from alknet.core.contracts import Stream, StreamReset
from alknet.core.quic.unread import Unread
from alknet.errors import LocalError

if TYPE_CHECKING:
    from alknet.core.quic.connection import QuicConnection

__all__ = ["QuicStream", "check_code"]

# What `receive_some` returns at most when the caller names no limit.
DEFAULT_READ_BYTES = 64 * 1024
# The longest piece that a taker is offered (`Stream.offer`): a message or two. It is handled amid
# what others have sent; a reader's turn comes after it.
MAX_OFFERED_BYTES = 1_024
# RFC 9000 sec. 16: what a variable-length integer can hold.
MAX_CODE = 2**62 - 1


def check_code(code: int) -> None:
    """Raise LocalError unless *code* can be sent as an application error code."""
    if not 0 <= code <= MAX_CODE:
        raise LocalError(f"an error code is 0 to 2^62-1, not {code}")


class QuicStream(Stream):
    """One stream of a `QuicConnection`; made by it only.

    The sending side is open until `send_eof`, `reset`, `aclose` or the peer's STOP_SENDING; the
    receiving side until the end was read, `stop_sending`, `aclose` or the peer's RESET_STREAM.
    When both are over the connection forgets the stream and lets the peer open another, but not
    before the application has accepted it: else a peer could queue streams without end.
    """

    def __init__(
        self, connection: QuicConnection, stream_id: int, *, can_send: bool, can_receive: bool
    ) -> None:
        self._connection = connection
        self._engine = connection.engine
        self._id = stream_id
        self._send_closed = not can_send
        self._sent_eof = False
        self._stopped_code: int | None = None
        self._on_stopped: Callable[[], object] | None = None
        self._receive_closed = not can_receive
        self._arrived_all = not can_receive
        self._unread = Unread()
        self._taker: Callable[[bytes], bool] | None = None
        self._taker_fault: Exception | None = None
        self._reset_code: int | None = None
        self._is_accepted = False
        self._send_conflict = ConflictDetector("another task is sending on this stream")
        self._receive_conflict = ConflictDetector("another task is receiving on this stream")
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"<QuicStream {self._id} of {self._connection!r}>"

    @property
    def stream_id(self) -> int:
        return self._id

    # sending

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._send_conflict:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._check_sendable()
            rest = memoryview(data)
            while rest:
                room = self._connection.send_room(self._id)
                if room <= 0:
                    await self._wait_room()
                else:
                    self._engine.send_stream_data(self._id, bytes(rest[:room]))
                    self._connection.on_accepted_to_send(self._id)
                    self._connection.schedule()
                    rest = rest[room:]
                self._check_sendable()
            # Behind the hand-over, so that the bytes leave while others have their turn; shielded,
            # for they were accepted, all of them.
            await trio.lowlevel.cancel_shielded_checkpoint()

    def send_now(self, data: bytes) -> bool:
        """Accept all of *data* or nothing, see `Stream`; what is accepted leaves at once."""
        with self._send_conflict:
            if self._send_closed or self._stopped_code is not None:
                return False
            connection = self._connection
            if connection.close_reason is not None or connection.send_room(self._id) < len(data):
                return False
            self._engine.send_stream_data(self._id, data)
            connection.on_accepted_to_send(self._id)
            connection.send_at_once()
            return True

    async def wait_send_all_might_not_block(self) -> None:
        with self._send_conflict:
            await trio.lowlevel.checkpoint()
            self._check_sendable()
            while self._connection.send_room(self._id) <= 0:
                await self._wait_room()
                self._check_sendable()

    async def send_eof(self) -> None:
        with self._send_conflict:
            await trio.lowlevel.checkpoint()
            if not self._sent_eof:
                self._check_sendable()
                self._finish_sending()

    def reset(self, code: int) -> None:
        check_code(code)
        if self._connection.close_reason is None and (not self._send_closed or self._sent_eof):
            self._engine.reset_stream(self._id, code)
            self._connection.schedule()
        self._close_sending()

    def notify_stopped(self, callback: Callable[[], object] | None) -> None:
        self._on_stopped = callback
        if callback is not None and self._stopped_code is not None:
            callback()

    # receiving

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._receive_conflict:
            if self._unread or self._arrived_all:
                await trio.lowlevel.checkpoint()
            else:  # to park is a checkpoint
                await trio.lowlevel.checkpoint_if_cancelled()
            while True:
                if self._taker_fault is not None:
                    fault, self._taker_fault = self._taker_fault, None
                    raise fault
                if self._receive_closed:
                    raise trio.ClosedResourceError("the receiving side of this stream is closed")
                if self._unread:
                    return self._take(max_bytes or DEFAULT_READ_BYTES)
                if self._reset_code is not None:
                    raise StreamReset(self._reset_code)
                if self._arrived_all:
                    return b""
                self._connection.check_open()
                await self._readable.park()

    def offer(self, taker: Callable[[bytes], bool] | None) -> None:
        self._taker = taker

    def stop_sending(self, code: int) -> None:
        check_code(code)
        if self._receive_closed:
            return
        if self._connection.close_reason is None and not self._arrived_all:
            self._engine.stop_receiving(self._id, code)
            self._connection.schedule()
        self._close_receiving()

    async def aclose(self) -> None:
        try:
            if not self._send_closed and self._connection.close_reason is None:
                self._finish_sending()
            self._close_sending()
            self.stop_sending(0)
        finally:
            await trio.lowlevel.checkpoint()

    # from the connection

    def on_accepted(self) -> None:
        """The application has it now."""
        self._is_accepted = True
        self._forget_if_over()

    def on_data(self, data: bytes, *, is_end: bool) -> None:
        """Take bytes that arrived in order; if nobody will read them, only return their credit."""
        self._arrived_all = self._arrived_all or is_end
        if self._receive_closed:
            self._connection.credit(self._id, len(data), is_wanted=False)
        elif not is_end and self._taker is not None and self._readable and self._is_taken(data):
            self._connection.credit(self._id, len(data))
            return
        else:
            self._unread.append(data)
            self._connection.on_unread(len(data))
        if self._readable:
            self._readable.unpark_all()
        if is_end:
            self._forget_if_over()

    def on_reset(self, code: int) -> None:
        """RESET_STREAM: unread bytes are gone, as RFC 9000 sec. 3.2 allows."""
        self._arrived_all = True
        self._reset_code = code
        self._connection.on_unread(-len(self._unread))
        self._unread.clear()
        self._connection.credit_abandoned(self._id)
        self._readable.unpark_all()
        self._forget_if_over()

    def on_stop_sending(self, code: int) -> None:
        """The peer reads no more: senders get `StreamReset` with *code*."""
        if not self._send_closed:
            self._stopped_code = code
            self._close_sending()
            if self._on_stopped is not None:
                self._on_stopped()

    def on_room(self) -> None:
        """Wake a sender, if the buffer is at most half full (wake-ups per byte stay few)."""
        if self._connection.send_room(self._id, is_wake_up=True) > 0:
            self._writable.unpark_all()

    def on_connection_end(self) -> None:
        """Wake all who wait; they find out why."""
        self._readable.unpark_all()
        self._writable.unpark_all()

    # inside

    def _is_taken(self, data: bytes) -> bool:
        """Offer *data* to the taker: once in a round at most, behind all that came before.

        What strangers send waits for a turn of its own, behind what comes from peers.
        """
        if len(data) > MAX_OFFERED_BYTES or self._engine.has_events:
            return False
        if not self._connection.is_known:
            return False
        assert self._taker is not None
        try:
            return self._taker(data)
        except Exception as exc:  # noqa: BLE001  # boundary: of who waits for the data
            self._taker_fault = exc
            self._readable.unpark_all()
            return True

    async def _wait_room(self) -> None:
        self._connection.waiting_senders.add(self)
        try:
            await self._writable.park()
        finally:
            self._connection.waiting_senders.discard(self)

    def _take(self, max_bytes: int) -> bytes:
        data = self._unread.take(max_bytes)
        self._connection.on_unread(-len(data))
        self._connection.credit(self._id, len(data))
        self._forget_if_over()
        return data

    def _finish_sending(self) -> None:
        self._engine.send_stream_data(self._id, b"", end_stream=True)
        self._connection.schedule()
        self._sent_eof = True
        self._close_sending()

    def _close_sending(self) -> None:
        self._send_closed = True
        self._writable.unpark_all()
        self._forget_if_over()

    def _close_receiving(self) -> None:
        self._receive_closed = True
        self._connection.on_unread(-len(self._unread))
        self._connection.credit(self._id, len(self._unread), is_wanted=False)
        self._unread.clear()
        self._readable.unpark_all()
        self._forget_if_over()

    def _forget_if_over(self) -> None:
        is_over = self._send_closed and self._arrived_all and not self._unread
        if is_over and self._is_accepted:
            self._connection.forget(self._id)

    def _check_sendable(self) -> None:
        if self._stopped_code is not None:
            raise StreamReset(self._stopped_code, "stopped")
        if self._send_closed:
            raise trio.ClosedResourceError("the sending side of this stream is closed")
        self._connection.check_open()
