"""Group commit, with an engine that does what the test says."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import pytest
import trio
import trio.testing

from alknet.core.storage import OutcomeUnknown, Table
from alknet.errors import StoreError, Unavailable
from alknet.stores import group
from alknet.stores.group import Answer, GroupCommit
from alknet.stores.steps import Step, Steps


class Item(msgspec.Struct, frozen=True):
    text: str = ""


ITEMS = Table("item", Item)


def steps(n: int, size: int = 2) -> Steps:
    return [Step(ITEMS, f"{n}", data=b"x" * size, value=Item())]


class Engine:
    """Counts versions up, one for each step, while its gate is open."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = trio.Event()
        self.failure: BaseException | None = None
        self.upkeeps = 0
        self.group = GroupCommit(self.commit, self.upkeep)

    async def commit(self, batch: Sequence[Steps]) -> Sequence[Answer]:
        self.batches.append([work[0].key for work in batch])
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return [(int(work[0].key),) for work in batch]

    async def upkeep(self) -> None:
        self.upkeeps += 1


async def test_what_gathers_during_a_commit_is_one_batch(nursery: trio.Nursery) -> None:
    engine = Engine()
    nursery.start_soon(engine.group.run)
    async with trio.open_nursery() as writers:
        for n in range(100):
            writers.start_soon(engine.group.write, steps(n))
            if n == 0:
                await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        assert engine.batches == [["0"]]
        engine.gate.set()
    assert [len(batch) for batch in engine.batches] == [1, 99]
    await engine.group.aclose()


async def test_who_is_answered_and_writes_again_joins_those_who_wait(
    nursery: trio.Nursery,
) -> None:
    engine = Engine()
    nursery.start_soon(engine.group.run)

    async def write(n: int) -> None:
        for _ in range(3):
            await engine.group.write(steps(n))

    async with trio.open_nursery() as writers:
        for n in range(4):
            writers.start_soon(write, n)
            if n == 0:
                await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        engine.gate.set()
    await engine.group.aclose()
    assert [len(batch) for batch in engine.batches] == [1, 4, 4, 3]


async def test_a_batch_is_bounded_in_writes_and_bytes(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "BATCH_WRITES", 4)
    monkeypatch.setattr(group, "BATCH_BYTES", 100)
    engine = Engine()
    engine.gate.set()
    async with trio.open_nursery() as writers:
        for n, size in enumerate([1, 1, 1, 1, 1, 1, 99, 200, 1]):
            writers.start_soon(engine.group.write, steps(n, size))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(engine.group.run)
    sizes = [len(batch) for batch in engine.batches]
    assert sum(sizes) == 9
    assert max(sizes) <= 4
    assert next(batch for batch in engine.batches if "7" in batch) == ["7"]
    await engine.group.aclose()


async def test_who_finds_no_room_waits_and_can_be_cancelled(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "QUEUED_WRITES", 2)
    engine = Engine()
    nursery.start_soon(engine.group.run)
    async with trio.open_nursery() as writers:
        for n in range(2):
            writers.start_soon(engine.group.write, steps(n))
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0) as late:
            await engine.group.write(steps(2))
        assert late.cancelled_caught
        writers.start_soon(engine.group.write, steps(3))
        await trio.testing.wait_all_tasks_blocked()
        engine.gate.set()
    assert sorted(key for batch in engine.batches for key in batch) == ["0", "1", "3"]
    await engine.group.aclose()


async def test_a_queued_write_is_answered_although_it_was_cancelled(nursery: trio.Nursery) -> None:
    engine = Engine()
    nursery.start_soon(engine.group.run)
    answers: list[tuple[int, ...]] = []

    async def write() -> None:
        with scope:
            answers.append(await engine.group.write(steps(7)))

    scope = trio.CancelScope()
    async with trio.open_nursery() as writers:
        writers.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert answers == []
        engine.gate.set()
    assert answers == [(7,)]
    await engine.group.aclose()


async def test_each_waiter_raises_an_error_of_its_own(nursery: trio.Nursery) -> None:
    engine = Engine()
    engine.failure = Unavailable("busy", retry_after_s=2.0)
    engine.gate.set()
    caught: list[Unavailable] = []

    async def write(n: int) -> None:
        try:
            await engine.group.write(steps(n))
        except Unavailable as exc:
            caught.append(exc)

    async with trio.open_nursery() as writers:
        for n in range(5):
            writers.start_soon(write, n)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(engine.group.run)
    assert [(str(exc), exc.retry_after_s) for exc in caught] == [("busy", 2.0)] * 5
    assert len({id(exc) for exc in caught}) == 5
    engine.failure = None
    assert await engine.group.write(steps(9)) == (9,)
    await engine.group.aclose()


@pytest.mark.parametrize("is_whole_batch", [True, False])
async def test_an_error_is_let_go_once_it_was_handled(
    is_whole_batch: bool, nursery: trio.Nursery
) -> None:
    async def commit(batch: Sequence[Steps]) -> Sequence[Answer]:
        if is_whole_batch:
            raise StoreError("full")
        return [StoreError("full") for _ in batch]

    queue = GroupCommit(commit, trio.lowlevel.checkpoint)
    nursery.start_soon(queue.run)
    errors: list[weakref.ref[StoreError]] = []
    try:
        await queue.write(steps(1))
    except StoreError as exc:
        errors.append(weakref.ref(exc))
    await trio.testing.wait_all_tasks_blocked()
    found = [error() for error in errors]
    await queue.aclose()
    assert found == [None]


async def test_a_crash_of_the_engine_leaves_nobody_waiting() -> None:
    engine = Engine()
    engine.failure = ZeroDivisionError()
    failures: list[type[StoreError]] = []

    async def write(n: int) -> None:
        try:
            await engine.group.write(steps(n))
        except StoreError as exc:
            failures.append(type(exc))

    async def run() -> None:
        with pytest.raises(ZeroDivisionError):
            await engine.group.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, 0)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(write, 1)
        await trio.testing.wait_all_tasks_blocked()
        engine.gate.set()
    assert sorted(failures, key=str) == sorted([OutcomeUnknown, StoreError], key=str)
    with pytest.raises(trio.ClosedResourceError):
        await engine.group.write(steps(2))


async def test_there_is_upkeep_once_when_nobody_writes(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    engine = Engine()
    engine.gate.set()
    nursery.start_soon(engine.group.run)
    await trio.sleep(10 * group.IDLE_S)
    assert engine.upkeeps == 1
    await engine.group.write(steps(1))
    await trio.sleep(10 * group.IDLE_S)
    assert engine.upkeeps == 2
    await engine.group.aclose()


async def test_a_write_during_the_upkeep_is_committed_after_it(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    upkeep_may_end = trio.Event()

    async def commit(batch: Sequence[Steps]) -> Sequence[Answer]:
        return [(1,) for _ in batch]

    queue = group.GroupCommit(commit, upkeep_may_end.wait)
    nursery.start_soon(queue.run)
    await trio.sleep(2 * group.IDLE_S)
    async with trio.open_nursery() as writers:
        for n in range(3):
            writers.start_soon(queue.write, steps(n))
        await trio.testing.wait_all_tasks_blocked()
        upkeep_may_end.set()
    await queue.aclose()


async def test_batches_do_not_set_off_the_garbage_collector(nursery: trio.Nursery) -> None:
    engine = Engine()
    nursery.start_soon(engine.group.run)
    await trio.testing.wait_all_tasks_blocked()

    async def write(n: int) -> None:
        for _ in range(20):
            await engine.group.write(steps(n))

    with collections() as found:
        async with trio.open_nursery() as writers:
            for n in range(256):
                writers.start_soon(write, n)
            await trio.testing.wait_all_tasks_blocked()
            found.clear()  # those that the tasks themselves set off
            engine.gate.set()
    await engine.group.aclose()
    assert [len(batch) for batch in engine.batches] == [256] * 20
    assert len(found) <= 4


@contextmanager
def collections() -> Iterator[list[int]]:
    """Collect as often as Python does by itself, and note each time the generation."""
    found: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            found.append(info["generation"])

    thresholds = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    gc.callbacks.append(note)
    try:
        yield found
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*thresholds)
