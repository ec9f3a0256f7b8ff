"""The input items of an upload or bidirectional call, at the caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.credit import SendCredit
from alknet.call.proto import InputEnd, InputItem, encode_event, encode_frame, is_too_deep
from alknet.errors import LocalError

if TYPE_CHECKING:
    from alknet.call.pending import Pending

__all__ = ["InputSender"]


class InputSender:
    """Sends the items of one call, as the callee has room for them.

    Attributes:
        is_wanted: The callee has said that it takes input.
    """

    def __init__(self, pending: Pending, frame_bytes: int) -> None:
        self.is_wanted = False
        self._pending = pending
        self._stream = pending.stream
        self._frame_bytes = frame_bytes
        # On a stream of its own, flow control is enough, and the first items need not wait.
        self._credit = SendCredit(0) if pending.stream.is_only else None
        self._has_finished = False

    def credited(self, n: int) -> None:
        """Allow *n* more items. Raises CallError if the callee allows more than it may."""
        self.is_wanted = True
        if self._credit is not None:
            self._credit.add(n)

    def stop(self) -> None:
        """Let nobody wait for credit any more: the call is over."""
        if self._credit is not None:
            self._credit.stop()

    async def send(self, item: object) -> None:
        """Send *item*; see `alknet.call.handles.Upload.send`."""
        if self._has_finished:
            raise LocalError("an item after the input was finished")
        frame = self._frame(item)
        await trio.lowlevel.checkpoint()
        self._check_running()
        await self._stream.outbox.wait_room()
        if self._credit is not None:
            await self._credit.take()
        self._check_running()
        self._stream.outbox.put(frame)

    def finish(self) -> None:
        """Say that there are no more items. Idempotent."""
        if not self._has_finished and not self._pending.is_over:
            self._stream.send(InputEnd(self._pending.id))
        self._has_finished = True

    def _frame(self, item: object) -> bytes:
        encoded = item if isinstance(item, msgspec.Raw) else msgspec.json.encode(item)
        body = encode_event(InputItem(self._pending.id, msgspec.Raw(encoded)))
        if len(body) > self._frame_bytes or is_too_deep(body):
            raise CallError(ErrorCode.INVALID_INPUT, "an item is over the frame limit or depth")
        return encode_frame(body)

    def _check_running(self) -> None:
        if self._pending.error is not None:
            raise self._pending.error
        if self._pending.is_over:
            raise trio.BrokenResourceError("the callee has answered and takes no more items")
