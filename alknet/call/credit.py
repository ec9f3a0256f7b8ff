"""Windows of items: what a callee may still send, and when a caller grants more."""

from __future__ import annotations

import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.proto import MAX_CREDIT

__all__ = ["ReceiveWindow", "SendCredit"]


class SendCredit:
    """Items that the sender of a stream of items may still send."""

    __slots__ = ("_is_stopped", "_left", "_more")

    def __init__(self, window: int) -> None:
        self._left = window
        self._is_stopped = False
        self._more = trio.lowlevel.ParkingLot()

    def add(self, n: int) -> None:
        """Allow *n* more.

        Raises:
            CallError: The sum is over `MAX_CREDIT`, which an honest caller never reaches.
        """
        if self._left + n > MAX_CREDIT:
            raise CallError(ErrorCode.INVALID_INPUT, f"credit over {MAX_CREDIT}")
        self._left += n
        self._more.unpark_all()

    def stop(self) -> None:
        """Let nobody wait any more: the items will not be sent."""
        self._is_stopped = True
        self._more.unpark_all()

    async def take(self) -> None:
        """Wait until an item may be sent and count it. Cancelled, none was counted."""
        while not self._left and not self._is_stopped:
            await self._more.park()
        self._left -= 1


class ReceiveWindow:
    """Items that a subscriber has allowed, and those it has yet to allow.

    Credit is granted for half a window at a time: one message per item would double the traffic,
    and a whole window at a time would let the sender run dry.
    """

    __slots__ = ("_allowed", "_consumed", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._allowed = size
        self._consumed = 0

    def receive(self) -> bool:
        """Count an item that came; False if it was not allowed."""
        self._allowed -= 1
        return self._allowed >= 0

    def consume(self) -> int:
        """Count an item that was used; return the credit to send now, mostly 0."""
        self._consumed += 1
        if self._consumed * 2 < self._size:
            return 0
        granted, self._consumed = self._consumed, 0
        self._allowed += granted
        return granted
