"""Calls that we made and that have no answer yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import msgspec
import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.credit import ReceiveWindow
from alknet.call.items import ItemQueue
from alknet.call.outbox import Budget
from alknet.core.contracts import CloseCode, CloseReason

if TYPE_CHECKING:
    from alknet.call.streams import CallStream

__all__ = [
    "WATCH",
    "Pending",
    "PendingCall",
    "PendingItems",
    "PendingWatch",
    "aborted",
    "ended",
    "lost",
    "too_slow",
    "unbegun",
]


WATCH = "services/watch"
"""By which a node follows what another one offers."""


class PendingCall:
    """One call of a query or mutation: settled once, by its answer or by an error.

    Attributes:
        id: The request id.
        stream: Where the request went and the answer comes.
    """

    __slots__ = ("_error", "_output", "_waiter", "id", "is_over", "stream")

    def __init__(self, call_id: str, stream: CallStream) -> None:
        self.id = call_id
        self.stream = stream
        self.is_over = False
        self._output = _NO_OUTPUT
        self._error: CallError | None = None
        self._waiter: trio.lowlevel.Task | None = None

    @property
    def error(self) -> CallError | None:
        """Why it failed; None if it did not, or not yet."""
        return self._error

    def settle(self, output: msgspec.Raw) -> None:
        """End it with its output."""
        self._output = output
        self._wake()

    def fail(self, error: CallError) -> None:
        """End it with an error."""
        self._error = error
        self._wake()

    async def wait(self) -> msgspec.Raw:
        """Wait for the output, in one task. Cancelled, the call is still pending.

        Raises:
            CallError: It failed.
        """
        if not self.is_over:
            self._waiter = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)
        if self._error is not None:
            raise self._error
        output, self._output = self._output, _NO_OUTPUT  # the call may be remembered, not this
        return output

    def _wake(self) -> None:
        self.is_over = True
        if self._waiter is not None:
            trio.lowlevel.reschedule(self._waiter)
            self._waiter = None

    def _stop_waiting(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._waiter = None
        return trio.lowlevel.Abort.SUCCEEDED


class PendingItems(ItemQueue):
    """One subscription or bidirectional call of ours: its items, and then its end.

    Attributes:
        id: The request id.
        stream: Where the request went and the items come.
        window: What bounds the queue on a shared stream; where the stream is our own, its reader
            waits (`wait_space`), long before the window is used up.
        deadline: When to give up waiting for items.
        is_over: The terminal event came.
    """

    __slots__ = ("deadline", "id", "stream", "window")

    def __init__(
        self,
        call_id: str,
        stream: CallStream,
        window: ReceiveWindow,
        budget: Budget,
        deadline: float,
    ) -> None:
        super().__init__(budget)
        self.id = call_id
        self.stream = stream
        self.window = window
        self.deadline = deadline

    def offer(self, item: msgspec.Raw) -> bool:
        """Queue *item*; False if the window did not allow it."""
        if not self.window.receive():
            return False
        self.put(item)
        return True


class PendingWatch(PendingItems):
    """A subscription to what the other end offers: a node looks on by it, and it is no work."""

    __slots__ = ()


Pending: TypeAlias = PendingCall | PendingItems


def lost(why: str) -> CallError:
    """Return the error of a call whose answer can no longer come."""
    return CallError(ErrorCode.UNAVAILABLE, why)


def too_slow() -> CallError:
    """Return the error of a call that we gave up at its deadline."""
    return CallError(ErrorCode.TIMEOUT, "no answer within the deadline")


def unbegun(why: str) -> CallError:
    """Return the error of a call that the peer, which has answered all others, has not begun."""
    error = lost(why)
    error.is_refused = True
    return error


def ended(close: CloseReason) -> CallError:
    """Return the error of a call whose connection is over: a refusal is no loss."""
    if close.by_peer and not close.is_transport and close.code in _REFUSALS:
        return CallError(ErrorCode.FORBIDDEN, close.reason or "the node refuses us")
    return lost(f"the connection ended: {close}")


def aborted(reason: str | None) -> CallError:
    """Return the error of a call that its callee ended, for *reason*."""
    if reason == "shutdown":
        return CallError(ErrorCode.UNAVAILABLE, "the peer is shutting down")
    if reason == "revoked":
        return CallError(ErrorCode.FORBIDDEN, "the authorization was revoked")
    return CallError(ErrorCode.ABORTED, f"aborted by the peer: {reason or 'no reason given'}")


_REFUSALS = frozenset({CloseCode.REVOKED, CloseCode.AUTH_REQUIRED})
_NO_OUTPUT = msgspec.Raw()
