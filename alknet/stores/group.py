"""Group commit: what several tasks write at once goes to the engine as one batch.

One task commits; while it waits for the disk, the next batch gathers, and who was just answered
gets a turn to join it. Alone a write is not held up; among 256 writers it shares the cost of a
flush with all of them. Knows no engine.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, cast

import msgspec
import trio

from alknet.core.storage import OutcomeUnknown
from alknet.errors import AlknetError, StoreError
from alknet.stores.steps import Steps

if TYPE_CHECKING:
    from outcome import Outcome

__all__ = ["Answer", "GroupCommit"]

# Writes committed together: more gain nothing (measured), and each waits for all.
BATCH_WRITES = 512
# JSON committed together, if the first write alone is not longer: a tenth of a second of a disk.
BATCH_BYTES = 16 * 1024 * 1024
# Writes that wait; who comes then waits for room, and can be cancelled there.
QUEUED_WRITES = 4_096
# Time without a write after which there is leisure for upkeep.
IDLE_S = 1.0

Answer = tuple[int, ...] | AlknetError
"""The versions that a write gave, or why it alone was refused."""


class _Job(msgspec.Struct, eq=False):
    """A write that waits, and the task that does.

    The task is woken with the job itself, for all that Trio does with an outcome is to unwrap it.
    An outcome of Trio's own for each is more work, also for the garbage collector: with those,
    every batch makes it go through all who wait.
    """

    steps: Steps
    task: trio.lowlevel.Task
    answer: Answer | None = None

    def finish(self, answer: Answer) -> None:
        self.answer = answer
        trio.lowlevel.reschedule(self.task, cast("Outcome[tuple[int, ...]]", self))

    def unwrap(self) -> tuple[int, ...]:
        """Return the versions, or raise why there are none; called in the task."""
        answer = self.answer
        assert answer is not None
        if not isinstance(answer, AlknetError):
            return answer
        try:
            raise answer
        finally:
            del answer, self  # the traceback would hold what holds the error


class GroupCommit:
    """The queue of writes, and the task that commits them.

    Args:
        commit: Commits a batch and returns an answer for each write. An `AlknetError` fails all of
            them. It runs shielded, and is never called twice at once.
        upkeep: Called when nobody has written for a second, once until somebody has again.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Steps]], Awaitable[Sequence[Answer]]],
        upkeep: Callable[[], Awaitable[None]],
    ) -> None:
        self._commit = commit
        self._upkeep = upkeep
        self._queue: deque[_Job] = deque()
        self._unanswered = 0
        self._waiting_for_room = trio.lowlevel.ParkingLot()
        self._work = trio.Event()
        self._batch_done = trio.Event()
        self._batch_done.set()
        self._is_closing = False
        self._ended = trio.Event()

    async def write(self, steps: Steps) -> tuple[int, ...]:
        """Have *steps* committed; see `Store.write` for errors and cancellation."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._unanswered < QUEUED_WRITES:
            self._unanswered += 1
        else:
            await self._waiting_for_room.park()  # until one that is answered leaves its place to us
        try:
            if self._is_closing:
                raise trio.ClosedResourceError("this store was closed")
            if not self._queue:  # else it was set by the first who waits there
                self._work.set()
            self._queue.append(_Job(steps, trio.lowlevel.current_task()))
            # What a shielded wait for an event does, at a third of the price.
            answer: tuple[int, ...] = await trio.lowlevel.wait_task_rescheduled(_refuse_to_abort)
            return answer
        finally:
            if self._waiting_for_room:
                self._waiting_for_room.unpark()
            else:
                self._unanswered -= 1

    async def run(self) -> None:
        """Commit what is written, until `close` and the queue is empty. A cancel does not end it.

        Those who wait in `write` are shielded: whatever happens, they are answered.
        """
        batch: list[_Job] = []
        try:
            with trio.CancelScope(shield=True):
                while await self._has_work():
                    batch = self._next_batch()
                    self._batch_done = trio.Event()
                    await self._finish(batch)
                    batch.clear()
                    self._batch_done.set()
                    if 0 < len(self._queue) < BATCH_WRITES:
                        await _give_way()
        finally:
            self._is_closing = True
            for job in batch:
                if job.answer is None:
                    job.finish(OutcomeUnknown("the store failed while it wrote"))
            for job in self._queue:
                job.finish(StoreError("the store failed before it wrote"))
            self._batch_done.set()
            self._ended.set()

    @property
    def is_committing(self) -> bool:
        """Whether a batch is not answered yet."""
        return not self._batch_done.is_set()

    async def wait_batch(self) -> None:
        """Wait until the batch that is being committed, if any, is answered."""
        await self._batch_done.wait()

    async def aclose(self) -> None:
        """Refuse new writes, and wait until those that wait are answered. Never cancelled."""
        self._is_closing = True
        self._work.set()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    async def _has_work(self) -> bool:
        is_idle = False
        while not self._queue and not self._is_closing:
            self._work = trio.Event()
            with trio.move_on_after(float("inf") if is_idle else IDLE_S) as scope:
                await self._work.wait()
            if scope.cancelled_caught:
                await self._upkeep()
                is_idle = True
        return bool(self._queue)

    def _next_batch(self) -> list[_Job]:
        batch: list[_Job] = []
        room = BATCH_BYTES
        while self._queue and len(batch) < BATCH_WRITES:
            room -= _size(self._queue[0].steps)
            if batch and room < 0:
                break
            batch.append(self._queue.popleft())
        return batch

    async def _finish(self, batch: Sequence[_Job]) -> None:
        try:
            answers = await self._commit([job.steps for job in batch])
        except AlknetError as exc:
            for job in batch:
                # Each waiter raises its own: tracebacks would grow together otherwise.
                job.finish(_copy(exc))
            return
        for job, answer in zip(batch, answers, strict=True):
            job.finish(answer)


async def _give_way() -> None:
    """Let those who were just woken do what they have to, which may be to write again.

    Otherwise they would wait for the batch after the next: two halves of all writers would take
    turns for ever, each with flushes of its own. Cancelled, it does the same.
    """
    await trio.lowlevel.cancel_shielded_checkpoint()  # their turn, of which ours may be the first
    await trio.lowlevel.cancel_shielded_checkpoint()


def _size(steps: Steps) -> int:
    size = 0
    for step in steps:
        if step.data is not None:
            size += len(step.data)
    return size


def _refuse_to_abort(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


def _copy(exc: AlknetError) -> AlknetError:
    copied = copy.copy(exc)
    copied.__cause__ = exc.__cause__
    return copied
