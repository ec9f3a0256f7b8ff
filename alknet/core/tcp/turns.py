"""Turns for the steps of handshakes, so that many at once do not hold up what runs beside them.

A step of a server's TLS handshake is a third of a millisecond of signatures and key exchange. Two
hundred clients that say hello in the same moment would be 70 ms in which nobody is answered. So
only so many steps run in one pass of the scheduler; between passes calls go on. Who waits stands
in the queue of its source, and the sources are served in turn: one that sends a hundred hellos
waits for itself. The queues need no bound of their own: a handshake stands in one once, and
`alknet.core.endpoint.admission` bounds how many of a source there are, and
`Limits.handshake_timeout_s` how long.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

__all__ = ["STEPS_PER_PASS", "HandshakeTurns", "Turn"]

# 0.7 ms of a pass. A handshake has two such steps, and a busy pass takes 10 ms: that is still 100
# handshakes a second. Of four, calls beside take twice as long, and the handshakes no less.
STEPS_PER_PASS = 2

Turn = Callable[[], AbstractAsyncContextManager[object]]
"""Waits for a turn; inside the block one step is made, without waiting."""


class HandshakeTurns:
    """Hands out turns, `STEPS_PER_PASS` in a pass at most.

    Attributes:
        waiting: How many stand in a queue.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._free = STEPS_PER_PASS
        self._queues: OrderedDict[str, OrderedDict[trio.lowlevel.Task, None]] = OrderedDict()

    @asynccontextmanager
    async def of(self, source: str) -> AsyncGenerator[None]:
        """Run the block, which must not wait, in a turn of *source*; always in a later pass.

        Cancelled, the place in the queue is given up.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._free:
            self._free -= 1
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            await self._wait(source)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, source: str) -> None:
        task = trio.lowlevel.current_task()
        self._queues.setdefault(source, OrderedDict())[task] = None
        self.waiting += 1

        def give_up(_: object) -> trio.lowlevel.Abort:
            self._remove(source, task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)

    def _pass_on(self) -> None:
        """Let the next one run in the next pass, of the source that has waited longest."""
        if not self._queues:
            self._free += 1
            return
        source, queue = next(iter(self._queues.items()))
        task = next(iter(queue))
        self._remove(source, task)
        if source in self._queues:
            self._queues.move_to_end(source)
        trio.lowlevel.reschedule(task)

    def _remove(self, source: str, task: trio.lowlevel.Task) -> None:
        self.waiting -= 1
        queue = self._queues[source]
        del queue[task]
        if not queue:
            del self._queues[source]
