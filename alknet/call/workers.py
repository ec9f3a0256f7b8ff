"""The tasks in which the peer's calls run.

A task is kept after its call for the next one, and takes all that wait as long as their handlers
do not: to start one costs as much as a small handler. No call waits for another's handler: before
a task enters one, it wakes others for what still waits: one first, then ever more.

For the same reason calls that follow each other in a task share a cancel scope, one after the
other: to enter, leave and enrol one costs as much again. It is left as soon as it was cancelled,
or a handler has left something open in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from typing import Generic, Protocol, TypeVar

import trio

from alknet.call.crash import error_of

__all__ = ["Workers"]

MOST_IDLE = 4
"""Tasks that a session keeps for calls to come: each holds some 3 KiB."""


class Scoped(Protocol):
    """A call, as far as its scope is concerned."""

    @property
    def operation(self) -> str:
        """Its name, for the log."""
        ...

    @property
    def ends_at(self) -> float:
        """The deadline of its scope, in `trio.current_time`."""
        ...


C = TypeVar("C", bound=Scoped)


class Workers(Generic[C]):
    """Runs each call that is given in a task, at once or in the next round of the scheduler.

    A handler sees the context variables of the task that gave the first call; what it sets there
    no other call sees, for its task ends then.
    """

    def __init__(
        self,
        spawn: Callable[..., None],
        run: Callable[[C, trio.CancelScope], Awaitable[None]],
        cut: Callable[[C, bool], None],
    ) -> None:
        """Make a pool without tasks.

        Args:
            spawn: Starts a task, in a nursery that outlives all calls.
            run: Runs one call in the scope that it is given, whose deadline may be another's.
                Raises `trio.Cancelled`, alone or with others, if it was cancelled.
            cut: What follows then; told whether it was that scope, and not one around it.
        """
        self._spawn = spawn
        self._run = run
        self._cut = cut
        self._waiting: deque[C] = deque()
        self._idle: list[trio.lowlevel.Task] = []
        self._waking = 0
        self._stride = 1

    def give(self, call: C) -> None:
        """Run *call*; never waits."""
        if not self._waiting:
            self._stride = 1
        self._waiting.append(call)
        if not self._waking:
            self._wake(1)

    def _wake(self, count: int) -> None:
        self._waking += count
        for _ in range(count):
            if self._idle:
                trio.lowlevel.reschedule(self._idle.pop())
            else:
                self._spawn(self._work, name="call worker")

    def _wake_for_rest(self) -> None:
        """See to it that what waits is run though the task at hand may have to wait."""
        if self._waiting and not self._waking:
            self._wake(min(self._stride, len(self._waiting)))
            self._stride *= 2

    async def _work(self) -> None:
        context = copy_context()
        while True:
            self._waking -= 1
            if not await self._run_waiting(context) or len(self._idle) >= MOST_IDLE:
                return
            await self._idle_until_woken()

    async def _run_waiting(self, context: Context) -> bool:
        """Run what waits; False if a handler has left a mark in the task's context."""
        while self._waiting:
            await self._run_in_one_scope(context)
            if _has_changed(context):
                self._wake_for_rest()
                return False
        return True

    async def _run_in_one_scope(self, context: Context) -> None:
        """Run one call that waits, and others as long as the scope is as it was."""
        call = self._waiting[0]
        scope = trio.CancelScope(deadline=call.ends_at)
        is_over = by_its_scope = False
        try:
            with scope:
                status = _cancel_status()
                while not is_over:
                    call = self._waiting.popleft()
                    self._wake_for_rest()
                    await self._run(call, scope)
                    is_over = not self._waiting or _is_used_up(scope, status, context)
            by_its_scope = scope.cancelled_caught
        except Exception as exc:  # noqa: BLE001  # boundary: of a handler that was being cancelled
            error_of(exc, call.operation)
            by_its_scope = True
        finally:
            if not is_over:
                self._cut(call, by_its_scope)

    async def _idle_until_woken(self) -> None:
        task = trio.lowlevel.current_task()

        def stop(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._idle.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        task.name = "call worker"
        self._idle.append(task)
        await trio.lowlevel.wait_task_rescheduled(stop)


def _is_used_up(scope: trio.CancelScope, status: object, context: Context) -> bool:
    """Say whether a handler has left a mark on its task or *scope*."""
    if status is None or status is not _cancel_status():
        return True
    return scope.cancel_called or _has_changed(context)


def _cancel_status() -> object:
    """What Trio keeps of the scopes that the task at hand is in: the same while those are the same.

    It is not public. Should it ever be gone, each call gets a scope of its own.
    """
    return getattr(trio.lowlevel.current_task(), "_cancel_status", None)


def _has_changed(context: Context) -> bool:
    try:
        return copy_context() != context
    except Exception:  # noqa: BLE001  # boundary: values of a handler, compared by their own code
        return True
