"""Cancel a piece of code at each of its checkpoints in turn.

Code that is right under cancellation leaves nothing behind wherever it is interrupted. There are
only as many places as checkpoints, so all of them can be tried.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

__all__ = ["cancel_at_every_checkpoint"]


async def cancel_at_every_checkpoint(
    make: Callable[[], Awaitable[object]],
    after: Callable[[], Awaitable[None]] | None = None,
    limit: int = 500,
) -> int:
    """Run ``make()`` again and again, cancelled at its first checkpoint, its second, and so on.

    The cancel arrives while the task that runs *make* waits at its n-th checkpoint, and the last
    run is the one that ends before its n-th. Only that task's checkpoints are counted; those of
    tasks it starts are met as it waits for them.

    Args:
        make: Makes what to run; called afresh for each run. It must end when it is cancelled: one
            that swallows the cancel and waits on hangs the test.
        after: Checked after every run, also the complete one: nothing may be left behind.
        limit: The most checkpoints to try.

    Returns:
        How many checkpoints were tried; 0 for code that has none.

    Raises:
        AssertionError: *make* has more than *limit* checkpoints.
    """
    for tried in range(limit + 1):
        was_reached = await _run_cancelled_at(make, tried + 1)
        if after is not None:
            await after()
        if not was_reached:
            return tried
    raise AssertionError(f"still running at checkpoint {limit}")


async def _run_cancelled_at(make: Callable[[], Awaitable[object]], checkpoint: int) -> bool:
    """Run once; say whether *checkpoint* was reached."""
    task = trio.lowlevel.current_task()
    with trio.CancelScope() as scope:
        steps = _CancelAtStep(task, scope, checkpoint)
        trio.lowlevel.add_instrument(steps)
        try:
            await make()
        finally:
            trio.lowlevel.remove_instrument(steps)
    return steps.was_reached


class _CancelAtStep(trio.abc.Instrument):
    """Cancels *scope* when *task* stops for the n-th time, which is its n-th checkpoint."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, checkpoint: int) -> None:
        self._task = task
        self._scope = scope
        self._left = checkpoint
        self.was_reached = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is not self._task or self.was_reached:
            return
        self._left -= 1
        if self._left == 0:
            self.was_reached = True
            self._scope.cancel()
