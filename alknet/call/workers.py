"""The tasks in which the peer's calls run.

A task is kept after its call for the next one, and takes all that wait as long as their handlers
do not: to start one costs as much as a small handler. No call waits for another's handler: before
a task enters one, it wakes others for what still waits: one first, then ever more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from typing import Generic, TypeVar

import trio

__all__ = ["Workers"]

C = TypeVar("C")

MOST_IDLE = 4
"""Tasks that a session keeps for calls to come: each holds some 3 KiB."""


class Workers(Generic[C]):
    """Runs each call that is given in a task, at once or in the next round of the scheduler.

    A handler sees the context variables of the task that gave the first call; what it sets there
    no other call sees, for its task ends then.
    """

    def __init__(self, spawn: Callable[..., None], run: Callable[[C], Awaitable[None]]) -> None:
        """Make a pool without tasks.

        Args:
            spawn: Starts a task, in a nursery that outlives all calls.
            run: Runs one call; raises only what ends the nursery.
        """
        self._spawn = spawn
        self._run = run
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
            call = self._waiting.popleft()
            self._wake_for_rest()
            await self._run(call)
            if _has_changed(context):
                self._wake_for_rest()
                return False
        return True

    async def _idle_until_woken(self) -> None:
        task = trio.lowlevel.current_task()

        def stop(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._idle.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        task.name = "call worker"
        self._idle.append(task)
        await trio.lowlevel.wait_task_rescheduled(stop)


def _has_changed(context: Context) -> bool:
    try:
        return copy_context() != context
    except Exception:  # noqa: BLE001  # boundary: values of a handler, compared by their own code
        return True
