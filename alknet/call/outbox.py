"""What waits to be written: one queue per stream, one budget per connection.

Writers put frames and go on; a single task per stream sends them. It wakes one scheduler tick
after the first frame was put, so that all frames of a tick leave in one `send_all`. A frame beside
which no other is to be expected goes to the stream at once, if that takes it: where one call is
made after the other, the task would cost two ticks each time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import trio

from alknet.core.contracts import Stream, StreamReset

__all__ = ["Budget", "Outbox"]


class Budget:
    """Counts the bytes that one connection holds, unsent and unread.

    Attributes:
        used: Bytes held now.
        cap: Past this, *on_exceeded* is called.
    """

    __slots__ = ("_on_exceeded", "cap", "used")

    def __init__(self, cap: int, on_exceeded: Callable[[], None]) -> None:
        self.used = 0
        self.cap = cap
        self._on_exceeded = on_exceeded

    def add(self, n: int) -> None:
        """Count *n* more bytes, or fewer if negative."""
        self.used += n
        if n > 0 and self.used > self.cap:
            self._on_exceeded()


class Outbox:
    """The frames on their way to one stream.

    Attributes:
        queued_bytes: Put and not yet accepted by the stream.
        is_broken: The peer refused our bytes, or the connection ended; what is put is dropped.
        is_finished: `finish` was called.
    """

    __slots__ = (
        "_budget",
        "_frames",
        "_high_water",
        "_is_stopped",
        "_room",
        "_stream",
        "_work",
        "is_broken",
        "is_finished",
        "queued_bytes",
    )

    def __init__(self, stream: Stream, budget: Budget, high_water: int) -> None:
        self._stream = stream
        self._budget = budget
        self._high_water = high_water
        self._frames: list[bytes] = []
        self._work = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self.queued_bytes = 0
        self.is_broken = False
        self.is_finished = False
        self._is_stopped = False

    def put(self, frame: bytes, *, is_alone: bool = False) -> None:
        """Queue *frame*; never waits. After `finish` or a break it is dropped.

        Args:
            is_alone: No other frame is likely to follow in this tick.
        """
        if self.is_broken or self.is_finished:
            return
        if is_alone and not self.queued_bytes and self._stream.send_now(frame):
            return
        self._frames.append(frame)
        self.queued_bytes += len(frame)
        self._budget.add(len(frame))
        if self._work:
            self._work.unpark()

    def finish(self) -> None:
        """End the stream once all that is queued was sent."""
        self.is_finished = True
        self._work.unpark_all()

    def notice_stop(self) -> None:
        """Find out at once, not with the next frame, if the peer refuses our bytes."""
        self._stream.notify_stopped(self._stopped)

    def discard(self) -> None:
        """Drop what is queued: nobody will read it."""
        self.is_broken = True
        self._stream.notify_stopped(None)
        self._frames.clear()
        self._budget.add(-self.queued_bytes)
        self.queued_bytes = 0
        self._work.unpark_all()
        self._room.unpark_all()

    @property
    def has_room(self) -> bool:
        """`wait_room` would not wait."""
        return self.queued_bytes <= self._high_water

    async def wait_room(self) -> None:
        """Wait until little enough is queued that more makes sense. Cancelled, nothing happens.

        It returns at once, without a checkpoint, when there is room or the stream is broken.
        """
        while self.queued_bytes > self._high_water:
            await self._room.park()

    async def wait_flushed(self) -> None:
        """Wait until the stream has accepted everything. Cancelled, nothing happens."""
        while self.queued_bytes:
            await self._room.park()

    async def run(self) -> None:
        """Send until finished or broken.

        Cancelled, the batch at hand was sent in whole, in part or not at all.

        Raises:
            StreamReset: The peer refused bytes that it needed.
        """
        try:
            while await self._has_work():
                await self._send_batch()
            if not self.is_broken:
                await self._send_eof()
        except StreamReset:
            raise
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the connection is over: its session knows
        finally:
            self.discard()

    async def _has_work(self) -> bool:
        while not self._frames:
            if self.is_finished or self.is_broken:
                return False
            if self._is_stopped:
                await self._stream.send_all(b"")  # raises: nobody waits for what is still to come
            await self._work.park()
        return True

    def _stopped(self) -> None:
        self._is_stopped = True
        self._work.unpark_all()

    async def _send_batch(self) -> None:
        frames = self._frames
        self._frames = []
        batch = frames[0] if len(frames) == 1 else b"".join(frames)
        frames.clear()
        await self._stream.send_all(batch)
        if self.is_broken:
            return
        self.queued_bytes -= len(batch)
        self._budget.add(-len(batch))
        if self.queued_bytes <= self._high_water:
            self._room.unpark_all()

    async def _send_eof(self) -> None:
        with suppress(StreamReset):  # all bytes were sent before: the peer has what it wanted
            await self._stream.send_eof()
