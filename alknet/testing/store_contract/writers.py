"""Checks of many writers, of cancellation and of closing."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from alknet.core.storage import ABSENT, Expect, Put, RowConflict, Store
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.store_contract.harness import (
    LOG,
    NOTES,
    Note,
    StoreCheck,
    StoreHarness,
    until,
    values,
)

__all__ = ["WRITER_CHECKS"]


async def a_conflict_fails_alone(harness: StoreHarness) -> None:
    """Of many that write at once, those that conflict fail, and all others land."""
    failed: list[int] = []

    async def write(store: Store, n: int) -> None:
        ops = [Put(NOTES, f"first {n}", Note("1")), Put(NOTES, f"{n}", Note("1"), expect=ABSENT)]
        try:
            await store.write(ops)
        except RowConflict:
            failed.append(n)

    async with harness.open() as store:
        await store.write([Put(NOTES, f"{n}", Note("0")) for n in (3, 17, 40)])
        async with trio.open_nursery() as nursery:
            for n in range(64):
                nursery.start_soon(write, store, n)
        assert sorted(failed) == [3, 17, 40]
        landed = {f"first {n}" for n in range(64)} - {f"first {n}" for n in failed}
        assert {row.key for row in store.rows(NOTES) if " " in row.key} == landed
        before = store.rows(NOTES)
    async with harness.open() as store:
        assert store.rows(NOTES) == before


async def counting_together_loses_nothing(harness: StoreHarness) -> None:
    """Handles that each add to one row by what they read, and try again on a conflict."""

    async def add(store: Store, times: int) -> None:
        for _ in range(times):
            while True:
                row = store.get(NOTES, "sum")
                assert row is not None
                note = Note(str(int(row.value.text) + 1))
                try:
                    await store.write(Put(NOTES, "sum", note), expect=row.version)
                    break
                except RowConflict:
                    while store.get(NOTES, "sum") == row:
                        await store.wait_changed(store.version)

    async with harness.open() as one, harness.open() as two:
        await one.write(Put(NOTES, "sum", Note("0")))
        await until(lambda: two.get(NOTES, "sum") is not None)
        async with trio.open_nursery() as nursery:
            for store in (one, two) * 4:
                nursery.start_soon(add, store, 5)
        await until(lambda: values(one.rows(NOTES)) == values(two.rows(NOTES)) == {"sum": "40"})


async def a_cancelled_write_is_whole_or_absent(harness: StoreHarness) -> None:
    """At whatever checkpoint the cancel comes, and the store works on."""
    async with harness.open() as store:
        n = 0

        async def write() -> None:
            nonlocal n
            n += 1
            await store.write([Put(NOTES, f"{n} a", Note("1")), Put(NOTES, f"{n} b", Note("1"))])

        async def whole_or_absent() -> None:
            found = [store.get(NOTES, f"{n} {part}") is not None for part in "ab"]
            assert found in ([True, True], [False, False])
            with trio.CancelScope(shield=True):
                assert await store.fetch(NOTES, f"{n} a") == store.get(NOTES, f"{n} a")

        assert await cancel_at_every_checkpoint(write, whole_or_absent) >= 1
        assert store.get(NOTES, f"{n} b") is not None
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.write(Put(NOTES, "never", Note("1")))
        assert scope.cancelled_caught
        assert await store.fetch(NOTES, "never") is None


async def reads_can_be_cancelled_anywhere(harness: StoreHarness) -> None:
    """Reads from the engine, and waiting for changes, leave nothing behind."""
    async with harness.open() as store:
        await store.write(Put(NOTES, "a", Note("1")))
        await cancel_at_every_checkpoint(lambda: store.fetch(NOTES, "a"))
        await cancel_at_every_checkpoint(lambda: store.scan(LOG))
        await cancel_at_every_checkpoint(lambda: store.wait_changed(-1))
        feed = store.changes(0)
        with trio.move_on_after(0):
            await anext(feed)
        assert (await anext(feed)).version == store.version


async def who_waits_when_it_closes_gets_an_answer(harness: StoreHarness) -> None:
    """What was queued lands or fails; nobody hangs, and nothing half is found later."""
    answers: dict[int, bool] = {}

    async def write(store: Store, n: int) -> None:
        try:
            await store.write([Put(NOTES, f"{n}", Note("1")), Expect(NOTES, "x", ABSENT)])
            answers[n] = True
        except trio.ClosedResourceError:
            answers[n] = False

    async with trio.open_nursery() as nursery:
        async with harness.open() as store:
            for n in range(20):
                nursery.start_soon(write, store, n)
            await trio.testing.wait_all_tasks_blocked()
    assert len(answers) == 20
    async with harness.open() as store:
        assert {row.key for row in store.rows(NOTES)} == {f"{n}" for n in answers if answers[n]}


async def a_closed_store_says_so(harness: StoreHarness) -> None:
    """Everything raises Trio's error; closing again does nothing; waiting followers are woken."""
    ended: list[str] = []

    async def follow(store: Store) -> None:
        with pytest.raises(trio.ClosedResourceError):
            async for _ in store.changes():
                pass
        ended.append("feed")

    async with harness.open() as store, trio.open_nursery() as nursery:
        nursery.start_soon(follow, store)
        await trio.testing.wait_all_tasks_blocked()
        await store.aclose()
        await store.aclose()
        for read in (
            lambda: store.get(NOTES, "a"),
            lambda: store.find(NOTES, "owner", "a"),
            lambda: store.rows(NOTES),
            lambda: store.staleness,
            lambda: store.version_of(NOTES),
            store.changes,
        ):
            with pytest.raises(trio.ClosedResourceError):
                read()
        for call in (
            lambda: store.fetch(NOTES, "a"),
            lambda: store.scan(LOG),
            lambda: store.write(Put(NOTES, "a", Note("1"))),
            lambda: store.wait_changed(store.version),
        ):
            with pytest.raises(trio.ClosedResourceError):
                await call()
    assert ended == ["feed"]


async def a_cancelled_block_closes_the_store(harness: StoreHarness) -> None:
    """Also while tasks of the block write: they are answered, and nobody hangs."""
    async with harness.open() as other:
        with trio.CancelScope() as scope:
            async with harness.open() as store, trio.open_nursery() as nursery:
                for n in range(8):
                    nursery.start_soon(store.write, Put(NOTES, f"{n}", Note("1")))
                await trio.lowlevel.checkpoint()
                scope.cancel()
        with pytest.raises(trio.ClosedResourceError):
            store.get(NOTES, "0")
        await other.write(Put(NOTES, "after", Note("1")))
        assert other.get(NOTES, "after") is not None


WRITER_CHECKS: tuple[StoreCheck, ...] = (
    a_conflict_fails_alone,
    counting_together_loses_nothing,
    a_cancelled_write_is_whole_or_absent,
    reads_can_be_cancelled_anywhere,
    who_waits_when_it_closes_gets_an_answer,
    a_closed_store_says_so,
    a_cancelled_block_closes_the_store,
)
