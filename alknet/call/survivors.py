"""Calls that run on when the call that made them has ended: by an abort, a deadline, a disconnect.

A handler asks for it, for each call (``continue_running=True``). A child that has started then
finishes, within its own deadline, and one that has not is not started. What has survived starts
nothing new: who would have stopped it is gone. All of them end with the node.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import msgspec
import trio

from alknet.call.children import ChildError
from alknet.call.codes import CallError, ErrorCode
from alknet.call.lineage import Lineage, has_ended_above
from alknet.core.limits import Limits
from alknet.errors import LocalError

__all__ = ["Survivors"]

log = logging.getLogger(__name__)


class Survivors:
    """The calls of one node that may outlive those that made them."""

    def __init__(self, limits: Callable[[], Limits]) -> None:
        """Make a place for them; `serve` opens it.

        Args:
            limits: Returns those in force: `Limits.surviving_calls` counts.
        """
        self._limits = limits
        self._nursery: trio.Nursery | None = None
        self._count = 0
        self._emptied = trio.lowlevel.ParkingLot()
        self._patience = trio.CancelScope()

    def __len__(self) -> int:
        return self._count

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the calls until cancelled, or drained; then all have ended."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def run(
        self,
        start: Callable[[], Awaitable[msgspec.Raw]],
        lineage: Lineage,
        operation: str,
    ) -> msgspec.Raw:
        """Run a call and return its output. Cancelled, the call goes on, if it has started.

        Args:
            start: Makes what is awaited.
            lineage: Of the call; it is broken when this one ends before the call.
            operation: The name, for tasks and logs.

        Raises:
            CallError: As *start* does, or too many such calls run.
            LocalError: There is no node here in which the call could go on.
        """
        if self._nursery is None:
            raise LocalError("nothing here outlives a call: run the dispatcher's survivors")
        if self._count >= self._limits().surviving_calls:
            why = "too many calls run on without those that made them"
            raise ChildError(CallError(ErrorCode.RESOURCE_EXHAUSTED, why), operation)
        one = _Surviving(start, lineage, operation)
        self._count += 1
        self._nursery.start_soon(self._run, one, name=f"call {operation}, surviving")
        try:
            return await one.wait()
        finally:
            if not one.is_over.is_set():
                lineage.leave()

    async def drain(self, deadline: float) -> None:
        """Wait for the calls until *deadline* (`trio.current_time`), then cancel them.

        Cancelled, they go on.
        """
        try:
            with self._patience as patience:
                patience.deadline = min(deadline, patience.deadline)
                while self._count:
                    await self._emptied.park()
        finally:  # who was cancelled here may drain once more
            self._patience = trio.CancelScope()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def hurry(self) -> None:
        """Wait no longer: the calls are cancelled now, or as soon as a drain begins."""
        self._patience.deadline = 0

    async def _run(self, one: _Surviving) -> None:
        try:
            await one.run()
        finally:
            self._count -= 1
            if not self._count:
                self._emptied.unpark_all()


class _Surviving:
    def __init__(
        self, start: Callable[[], Awaitable[msgspec.Raw]], lineage: Lineage, operation: str
    ) -> None:
        self.is_over = trio.Event()
        self._start = start
        self._lineage = lineage
        self._operation = operation
        self._output: msgspec.Raw | None = None
        self._error: CallError | None = None

    async def run(self) -> None:
        try:
            if self._lineage.is_broken:  # it has not started, so it is not
                self._error = has_ended_above(self._operation)
            else:
                self._output = await self._start()
        except CallError as exc:
            self._error = exc
            if self._lineage.is_broken:
                fields = {"operation": self._operation, "code": exc.code, "error": exc.message}
                log.warning("call.failed_alone", extra=fields)
        finally:
            self.is_over.set()

    async def wait(self) -> msgspec.Raw:
        await self.is_over.wait()
        if self._error is not None:
            raise self._error
        if self._output is None:  # cancelled with the node, and whoever waits soon will be
            error = CallError(ErrorCode.UNAVAILABLE, "the node stops")
            raise ChildError(error, self._operation)
        return self._output
