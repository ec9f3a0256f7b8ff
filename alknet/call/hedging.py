"""Two requests for one answer: the second is sent when the first takes long."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import trio

from alknet.call.codes import CallError

__all__ = ["race"]

Attempt = Callable[[], Awaitable[msgspec.Raw]]


async def race(
    first: Attempt, second: Attempt, *, after_s: float, may_start: Callable[[], bool]
) -> msgspec.Raw:
    """Run *first*, and *second* too if there is no answer within *after_s*; return what comes.

    The other is cancelled then. An error that may pass is no answer while the other still runs.
    Cancelled, both are cancelled.

    Args:
        may_start: Asked when *second* is due.

    Raises:
        CallError: The first that will not pass, else the last.
    """
    outcome = _Outcome()
    async with trio.open_nursery() as nursery:
        outcome.start(nursery, first)
        with trio.move_on_after(after_s):
            await outcome.decided.wait()
        if not outcome.decided.is_set() and may_start():
            outcome.start(nursery, second)
        await outcome.decided.wait()
        nursery.cancel_scope.cancel()
    return outcome.get()


class _Outcome:
    def __init__(self) -> None:
        self.decided = trio.Event()
        self._running = 0
        self._output: msgspec.Raw | None = None
        self._error: Exception | None = None

    def start(self, nursery: trio.Nursery, attempt: Attempt) -> None:
        # Counted from here: the other may fail before this one makes its first step.
        self._running += 1
        nursery.start_soon(self._take_from, attempt)

    async def _take_from(self, attempt: Attempt) -> None:
        try:
            output = await attempt()
        except Exception as exc:  # noqa: BLE001  # boundary: raised again where the race began
            self._failed(exc)
        else:
            if not self.decided.is_set():
                self._output = output
                self.decided.set()

    def _failed(self, error: Exception) -> None:
        self._running -= 1
        may_pass = isinstance(error, CallError) and error.retryable
        if self.decided.is_set():
            return
        self._error = error
        if not may_pass or not self._running:
            self.decided.set()

    def get(self) -> msgspec.Raw:
        if self._output is not None:
            return self._output
        assert self._error is not None
        raise self._error
