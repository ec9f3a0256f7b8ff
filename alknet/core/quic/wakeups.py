"""Waking one task, at the price of one pass of the scheduler and nothing else.

A ``trio.Event`` is spent when it is set, so each wake-up costs a new one, and a sleep whose end
moves has to be left and begun anew. On a connection with one call in flight that was half of all
passes.
"""

from __future__ import annotations

import math

import trio

__all__ = ["Alarm", "Doorbell"]


class Doorbell:
    """One task waits until somebody rings; many rings before it comes count as one."""

    __slots__ = ("_is_rung", "_waiter")

    def __init__(self) -> None:
        self._is_rung = False
        self._waiter: trio.lowlevel.Task | None = None

    def ring(self) -> None:
        """Have the waiting task run in the next tick, or not wait when it comes."""
        self._is_rung = True
        if self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            trio.lowlevel.reschedule(waiter)

    async def wait(self) -> None:
        """Wait for a ring since the last `wait`. Always yields; cancelled, a ring is kept."""
        if self._is_rung:
            await trio.lowlevel.checkpoint()
        else:
            self._waiter = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        self._is_rung = False

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._waiter = None
        return trio.lowlevel.Abort.SUCCEEDED


class Alarm:
    """One task sleeps until a time that others move; it is woken when it has come, not before."""

    __slots__ = ("_scope",)

    def __init__(self) -> None:
        self._scope: trio.CancelScope | None = None

    def move(self, when: float) -> None:
        """Let the sleep of now, if there is one, end at *when*."""
        if self._scope is not None:
            self._scope.deadline = when

    async def sleep_until(self, when: float | None) -> None:
        """Sleep until *when*, without end if None, or as `move` says. Always yields."""
        with trio.CancelScope(deadline=math.inf if when is None else when) as scope:
            self._scope = scope
            try:
                await trio.sleep_forever()
            finally:
                self._scope = None
