"""Tasks for calls: used again, never in each other's way, and nothing passes from call to call."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass

import pytest
import trio
from trio.testing import MockClock

from alknet.call.workers import MOST_IDLE, Workers

MARK: ContextVar[object] = ContextVar("MARK", default=None)


@dataclass
class Call:
    """What a pool runs."""

    job: Callable[[], Awaitable[None]]
    ends_at: float
    operation: str = "job"


class Pool:
    """Workers in a nursery, and what was done with them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.tasks: list[str] = []
        self.scopes: list[trio.CancelScope] = []
        self.cut: list[tuple[Call, bool]] = []
        self.nursery = nursery
        self.workers = Workers[Call](self._spawn, self._run, self._cut)

    def give(self, job: Callable[[], Awaitable[None]], ends_at: float = math.inf) -> None:
        self.workers.give(Call(job, ends_at))

    def _spawn(self, task: Callable[..., Awaitable[None]], *, name: str) -> None:
        self.tasks.append(name)
        self.nursery.start_soon(task, name=name)

    async def _run(self, call: Call, scope: trio.CancelScope) -> None:
        self.scopes.append(scope)
        scope.deadline = call.ends_at
        await call.job()

    def _cut(self, call: Call, by_its_scope: bool) -> None:
        self.cut.append((call, by_its_scope))


@pytest.fixture
def pool(nursery: trio.Nursery) -> Pool:
    return Pool(nursery)


async def test_calls_that_never_wait_take_one_task_and_one_in_reserve(pool: Pool) -> None:
    done: list[int] = []

    def job(number: int) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            done.append(number)

        return run

    for _ in range(3):
        for number in range(100):
            pool.give(job(number))
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
        pool.give(wait)
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
        pool.give(wait)
    for _ in range(12):  # a round each, for 1, 1, 2, 4 … 512 tasks
        await trio.lowlevel.checkpoint()
    assert running == 1000


async def test_a_burst_leaves_few_tasks_behind(pool: Pool) -> None:
    go = trio.Event()
    for _ in range(50):
        pool.give(go.wait)
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
        pool.give(mark)
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(4):
        pool.give(mark)
        await trio.testing.wait_all_tasks_blocked()
    assert seen == [None] * 8


async def test_a_variable_that_is_set_back_costs_no_task(pool: Pool) -> None:
    async def borrow() -> None:
        MARK.reset(MARK.set("for now"))

    for _ in range(4):
        pool.give(borrow)
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
            pool.give(wait)
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
        pool.give(count)
        await trio.testing.wait_all_tasks_blocked()
        pool.give(count)
        nursery.cancel_scope.cancel()
    assert ran == 2


async def test_calls_that_never_wait_share_a_scope(pool: Pool) -> None:
    seen: list[float] = []

    async def look() -> None:
        seen.append(trio.current_effective_deadline())

    for number in range(5):
        pool.give(look, ends_at=trio.current_time() + 100 + number // 2)
    await trio.testing.wait_all_tasks_blocked()
    assert len(set(map(id, pool.scopes))) == 1
    assert [round(deadline - seen[0]) for deadline in seen] == [0, 0, 1, 1, 2]
    assert pool.cut == []


async def test_what_a_scope_ends_is_one_call(pool: Pool, autojump_clock: MockClock) -> None:
    done: list[bool] = []

    async def cancel_itself() -> None:
        pool.scopes[-1].cancel()

    async def wait() -> None:
        await trio.sleep(60)

    async def count() -> None:
        await trio.sleep(0)
        done.append(True)

    for job, ends_at in [(cancel_itself, math.inf), (count, math.inf), (wait, 30), (count, 30)]:
        pool.give(job, ends_at=trio.current_time() + ends_at)
    await trio.sleep(40)
    assert done == [True] * 2
    assert [(call.job, ours) for call, ours in pool.cut] == [(wait, True)]


async def test_a_session_that_stops_is_no_end_of_a_call_by_its_scope() -> None:
    async with trio.open_nursery() as nursery:
        pool = Pool(nursery)
        pool.give(trio.sleep_forever)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [ours for _, ours in pool.cut] == [False]


async def test_a_scope_that_a_handler_leaves_open_is_left_and_hurts_no_other_call(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    left: list[trio.CancelScope] = []
    done: list[bool] = []

    async def leave_open() -> None:
        left.append(trio.CancelScope())
        left[-1].__enter__()

    async def look() -> None:
        for scope in left:
            scope.cancel()
        await trio.sleep(0)
        done.append(True)

    for job in (leave_open, look, leave_open, look, look):
        pool.give(job)
    await trio.testing.wait_all_tasks_blocked()
    assert done == [True] * 3
    assert pool.cut == []
    assert [record.message for record in caplog.records] == ["call.crashed"] * 2
    assert "corrupted" in caplog.text


async def test_a_handler_that_fails_as_it_is_cancelled_is_logged_and_cut(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("as it is cancelled")

    pool.give(fail)
    await trio.testing.wait_all_tasks_blocked()
    pool.scopes[0].cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert [ours for _, ours in pool.cut] == [True]
    assert "as it is cancelled" in caplog.text
