"""Tasks for calls: used again, never in each other's way, and nothing passes from call to call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar

import pytest
import trio

from alknet.call.workers import MOST_IDLE, Workers

Job = Callable[[], Awaitable[None]]
MARK: ContextVar[object] = ContextVar("MARK", default=None)


class Pool:
    """Workers in a nursery, and what was done with them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.tasks: list[str] = []
        self.nursery = nursery
        self.workers = Workers[Job](self._spawn, self._run)

    def _spawn(self, task: Callable[..., Awaitable[None]], *, name: str) -> None:
        self.tasks.append(name)
        self.nursery.start_soon(task, name=name)

    async def _run(self, job: Job) -> None:
        await job()


@pytest.fixture
def pool(nursery: trio.Nursery) -> Pool:
    return Pool(nursery)


async def test_calls_that_never_wait_take_one_task_and_one_in_reserve(pool: Pool) -> None:
    done: list[int] = []

    def job(number: int) -> Job:
        async def run() -> None:
            done.append(number)

        return run

    for _ in range(3):
        for number in range(100):
            pool.workers.give(job(number))
        await trio.testing.wait_all_tasks_blocked()
    assert done == list(range(100)) * 3
    assert len(pool.tasks) == 2


@pytest.mark.parametrize("count", [1, 2, 3, 64, 100])
async def test_a_call_that_waits_holds_up_no_other(pool: Pool, count: int) -> None:
    go = trio.Event()
    running = most = 0

    async def wait() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1

    for _ in range(count):
        pool.workers.give(wait)
    await trio.testing.wait_all_tasks_blocked()
    assert running == count
    go.set()
    await trio.testing.wait_all_tasks_blocked()
    assert (running, most) == (0, count)


async def test_all_calls_of_a_burst_begin_within_few_rounds(pool: Pool) -> None:
    running = 0

    async def wait() -> None:
        nonlocal running
        running += 1
        await trio.sleep_forever()

    for _ in range(1000):
        pool.workers.give(wait)
    for _ in range(12):  # a round each, for 1, 1, 2, 4 … 512 tasks
        await trio.lowlevel.checkpoint()
    assert running == 1000


async def test_a_burst_leaves_few_tasks_behind(pool: Pool) -> None:
    go = trio.Event()
    for _ in range(50):
        pool.workers.give(go.wait)
    await trio.testing.wait_all_tasks_blocked()
    go.set()
    await trio.testing.wait_all_tasks_blocked()
    assert len(pool.nursery.child_tasks) == MOST_IDLE
    assert {task.name for task in pool.nursery.child_tasks} == {"call worker"}


class Sullen:
    """Will not be compared."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("no")

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("value", ["secret", Sullen()])
async def test_no_call_sees_the_context_variables_of_another(pool: Pool, value: object) -> None:
    seen: list[object] = []

    async def mark() -> None:
        seen.append(MARK.get())
        MARK.set(value)

    for _ in range(4):
        pool.workers.give(mark)
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(4):
        pool.workers.give(mark)
        await trio.testing.wait_all_tasks_blocked()
    assert seen == [None] * 8


async def test_a_variable_that_is_set_back_costs_no_task(pool: Pool) -> None:
    async def borrow() -> None:
        MARK.reset(MARK.set("for now"))

    for _ in range(4):
        pool.workers.give(borrow)
        await trio.testing.wait_all_tasks_blocked()
    assert len(pool.tasks) == 1


async def test_calls_that_wait_for_a_task_end_with_the_nursery() -> None:
    begun = ended = 0

    async def wait() -> None:
        nonlocal begun, ended
        begun += 1
        try:
            await trio.sleep_forever()
        finally:
            ended += 1

    async with trio.open_nursery() as nursery:
        pool = Pool(nursery)
        for _ in range(20):
            pool.workers.give(wait)
        nursery.cancel_scope.cancel()
    # As with a task each: those that were given begin, and are cancelled where they wait.
    assert begun == ended == 20


async def test_tasks_that_idle_can_be_cancelled_and_woken_at_once() -> None:
    ran = 0

    async def count() -> None:
        nonlocal ran
        ran += 1

    async with trio.open_nursery() as nursery:
        pool = Pool(nursery)
        pool.workers.give(count)
        await trio.testing.wait_all_tasks_blocked()
        pool.workers.give(count)
        nursery.cancel_scope.cancel()
    assert ran == 2
