"""One direction of one stream in memory: a bounded buffer with QUIC's endings.

States of a sending and a receiving part: RFC 9000 sec. 3.1 and 3.2. Delivery is immediate, so
"sent" and "acknowledged" are one state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import trio

from alknet.core.contracts import StreamReset
from alknet.core.limits import Limits

__all__ = ["Pipe", "Receiver"]

# One read takes at most this much, so that readers meet data in pieces, as on a network.
READ_BYTES = 64 * 1024


class Receiver(Protocol):
    """The end of a connection that a pipe leads to: its windows, shared by all its pipes."""

    limits: Limits
    unread_bytes: int
    room: trio.lowlevel.ParkingLot


class Pipe:
    """Bytes from one writer to one reader. *check_open* raises when the connection has ended."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._unread = bytearray()
        self._arrived = trio.lowlevel.ParkingLot()
        self._is_finished = False
        self._is_writer_closed = False
        self._reset_code: int | None = None
        self._stop_code: int | None = None
        self._on_stopped: Callable[[], object] | None = None
        self._busy: set[str] = set()

    @property
    def is_done(self) -> bool:
        """Nothing more can come out of it."""
        if self._reset_code is not None or self._stop_code is not None:
            return True
        return self._is_finished and not self._unread

    @property
    def has_news(self) -> bool:
        """`read` would not wait."""
        return bool(self._unread) or self._is_finished

    def write_now(self, data: bytes) -> bool:
        """Put *data* into the window if all of it fits and may be sent."""
        with self._only_one("send"):
            is_closed = self._is_writer_closed or self._is_finished or self._stop_code is not None
            if is_closed or self._room() < len(data):
                return False
            self._unread += data
            self._receiver.unread_bytes += len(data)
            self._arrived.unpark_all()
            return True

    async def write(
        self,
        data: bytes | bytearray | memoryview,
        check_open: Callable[[], bool],
        accepted: Callable[[], None],
    ) -> None:
        """Put *data* into the window piece by piece; *accepted* is called after each piece."""
        with self._only_one("send"):
            rest = memoryview(data)
            self._check_writable(check_open)
            while rest:
                await self._until_room(check_open)
                piece = rest[: self._room()]
                self._unread += piece
                self._receiver.unread_bytes += len(piece)
                rest = rest[len(piece) :]
                accepted()
                self._arrived.unpark_all()

    async def wait_room(self, check_open: Callable[[], bool]) -> None:
        """Wait until `write` could accept a byte."""
        with self._only_one("send"):
            self._check_writable(check_open)
            await self._until_room(check_open)

    def finish(self, check_open: Callable[[], bool]) -> None:
        """End the data (FIN). Raises BusyResourceError while a `write` waits."""
        with self._only_one("send"):
            if not self._is_finished:
                self._check_writable(check_open)
            self._is_finished = True
            self._arrived.unpark_all()

    def close_writer(self) -> None:
        """End the data and refuse to write more; a `write` that waits raises."""
        self._is_writer_closed = True
        if self._reset_code is None:
            self._is_finished = True
        self._wake_all()

    def reset(self, code: int) -> None:
        """Abandon (RESET_STREAM), unless all data was sent."""
        if not self._is_finished and self._reset_code is None:
            self._reset_code = code
            self._is_writer_closed = True
            self._drop()

    async def read(self, max_bytes: int | None, check_open: Callable[[], bool]) -> bytes:
        """Take what is there, waiting for the first byte; empty at the end."""
        with self._only_one("receive"):
            while not self._is_readable():
                check_open()
                await self._arrived.park()
            data = bytes(self._unread[: min(max_bytes or READ_BYTES, READ_BYTES)])
            del self._unread[: len(data)]
            self._receiver.unread_bytes -= len(data)
            self._receiver.room.unpark_all()
            return data

    def stop(self, code: int) -> None:
        """Refuse to read more (STOP_SENDING); unread bytes go and give their credit back."""
        if self._stop_code is None:
            self._stop_code = code
            self._drop()
            if self._on_stopped is not None and not self._is_writer_closed:
                self._on_stopped()

    def notify_stopped(self, callback: Callable[[], object] | None) -> None:
        """Call *callback* at `stop`, now if that was."""
        self._on_stopped = callback
        if callback is not None and self._stop_code is not None:
            callback()

    def wake_reader(self) -> None:
        """Let a `read` that waits look at the connection again."""
        self._arrived.unpark_all()

    def _is_readable(self) -> bool:
        if self._stop_code is not None:
            raise trio.ClosedResourceError("this side has stopped reading")
        if self._reset_code is not None:
            raise StreamReset(self._reset_code)
        return bool(self._unread) or self._is_finished

    def _check_writable(self, check_open: Callable[[], bool]) -> None:
        if self._is_writer_closed or self._is_finished:
            raise trio.ClosedResourceError("the sending side is finished")
        check_open()
        if self._stop_code is not None:
            raise StreamReset(self._stop_code, "stopped")

    async def _until_room(self, check_open: Callable[[], bool]) -> None:
        while self._room() <= 0:
            await self._receiver.room.park()
            self._check_writable(check_open)

    def _room(self) -> int:
        limits = self._receiver.limits
        return min(
            limits.stream_receive_window_bytes - len(self._unread),
            limits.connection_receive_window_bytes - self._receiver.unread_bytes,
        )

    def _drop(self) -> None:
        self._receiver.unread_bytes -= len(self._unread)
        self._unread.clear()
        self._wake_all()

    def _wake_all(self) -> None:
        self._arrived.unpark_all()
        self._receiver.room.unpark_all()

    @contextmanager
    def _only_one(self, what: str) -> Iterator[None]:
        if what in self._busy:
            raise trio.BusyResourceError(f"another task is already in {what} of this stream")
        self._busy.add(what)
        try:
            yield
        finally:
            self._busy.discard(what)
