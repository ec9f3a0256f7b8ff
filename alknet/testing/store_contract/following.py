"""Checks of changes, gaps and staleness, with two handles."""

from __future__ import annotations

import trio
import trio.testing

from alknet.core.storage import Changed, Delete, Put, Reloaded, Store
from alknet.testing.store_contract.harness import (
    LOG,
    NOTES,
    Line,
    Note,
    StoreCheck,
    StoreHarness,
    until,
    values,
)

__all__ = ["FOLLOWING_CHECKS"]

# More than any engine needs to notice that it has heard nothing, less than a test may take.
STALE_S = 0.3


async def handles_see_one_anothers_writes(harness: StoreHarness) -> None:
    """Rows, removals and indexes, in both directions."""
    async with harness.open() as one, harness.open() as two:
        await _exchange(one, two)
        await _exchange(two, one)
        await until(lambda: one.version == two.version)


async def a_write_brings_what_others_wrote_before(harness: StoreHarness) -> None:
    """A handle's own version never hides a change of another that came first."""
    async with harness.open() as one, harness.open() as two:
        feed = two.changes()
        async with harness.cut_off(two):
            await one.write([Put(NOTES, "a", Note("1")), Put(NOTES, "b", Note("1"))])
            await two.write(Put(NOTES, "c", Note("2")))
        await until(lambda: len(two.rows(NOTES)) == 3)
        found = [await anext(feed) for _ in range(3)]
        assert [c.key for c in found if isinstance(c, Changed)] == ["a", "b", "c"]


async def changes_are_followed_in_order(harness: StoreHarness) -> None:
    """Versions ascend, rows are in memory by then, and every last change of a row is told."""
    seen: list[Changed | Reloaded] = []

    async def follow(store: Store) -> None:
        async for change in store.changes():
            assert change.version <= store.version
            seen.append(change)

    async with harness.open() as one, harness.open() as two, trio.open_nursery() as nursery:
        nursery.start_soon(follow, two)
        await trio.testing.wait_all_tasks_blocked()
        for n in range(20):
            writer = (one, two)[n % 2]
            await writer.write([Put(NOTES, f"{n}", Note("1")), Put(NOTES, "last", Note(str(n)))])
        await one.write([Delete(NOTES, "3"), Put(LOG, "l", Line("1"))])
        await until(lambda: bool(seen) and seen[-1].version == one.version)
        nursery.cancel_scope.cancel()
    changes = [change for change in seen if isinstance(change, Changed)]
    assert changes == seen
    assert [c.version for c in changes] == sorted({c.version for c in changes})
    newest = {(c.table, c.key): c for c in changes}
    assert len(newest) == 22
    assert newest["note", "3"].gone
    assert not newest["log_line", "l"].gone


async def changes_go_on_from_a_version(harness: StoreHarness) -> None:
    """A feed begins where one says; versions from the future are a reload."""
    async with harness.open() as store:
        (first,) = await store.write(Put(NOTES, "a", Note("1")))
        (second,) = await store.write(Put(NOTES, "b", Note("1")))
        assert await anext(store.changes(first)) == Changed(second, "note", "b", gone=False)
        assert await anext(store.changes(second + 1)) == Reloaded(second)
        assert await store.wait_changed(first) == second
        before = store.version_of(NOTES), store.version_of(LOG)
        await store.write(Put(LOG, "a", Line("1")))
        assert store.version_of(NOTES) == before[0]
        assert store.version_of(LOG) > before[1]


async def who_missed_changes_reloads(harness: StoreHarness) -> None:
    """History that is gone before a handle has seen it costs a reload and nothing else."""
    async with harness.open() as one, harness.open() as two:
        await one.write([Put(NOTES, key, Note(key, (key,))) for key in "abc"])
        await until(lambda: two.version == one.version)
        feed, cursor = two.changes(), two.version
        async with harness.cut_off(two):
            await one.write([Delete(NOTES, "a"), Put(NOTES, "b", Note("new", ("a",)))])
            await one.write(Put(NOTES, "d", Note("d")))
            await harness.trim()
        await until(lambda: two.version == one.version)
        assert two.rows(NOTES) == one.rows(NOTES)
        assert [row.key for row in two.find(NOTES, "tags", "a")] == ["b"]
        assert await anext(feed) == Reloaded(two.version)
        assert await anext(two.changes(cursor)) == Reloaded(two.version)
        assert two.version_of(LOG) == two.version
        await one.write(Put(NOTES, "e", Note("e")))
        assert await anext(feed) == Changed(one.version, "note", "e", gone=False)


async def a_writer_that_missed_changes_reloads_too(harness: StoreHarness) -> None:
    """Its own write returns with memory complete."""
    async with harness.open() as one, harness.open() as two:
        async with harness.cut_off(two):
            await one.write([Put(NOTES, key, Note(key)) for key in "abc"])
            await one.write(Delete(NOTES, "b"))
            await harness.trim()
            await two.write(Put(NOTES, "d", Note("d")))
            assert values(two.rows(NOTES)) == {"a": "a", "c": "c", "d": "d"}


async def a_broken_listener_is_found_out(harness: StoreHarness) -> None:
    """What is written while nobody wakes a handle is seen all the same, and later wakes work."""
    async with harness.open() as one, harness.open() as two:
        harness.break_listener(two)
        await one.write(Put(NOTES, "a", Note("1")))
        await until(lambda: two.get(NOTES, "a") is not None)
        await one.write(Put(NOTES, "b", Note("1")))
        await until(lambda: two.get(NOTES, "b") is not None)
        await until(lambda: two.staleness < STALE_S)


async def staleness_grows_while_news_cannot_come(harness: StoreHarness) -> None:
    """Reads go on from memory; the handle knows how old they are, and when it is over."""
    async with harness.open() as one, harness.open() as two:
        await until(lambda: two.staleness < STALE_S)
        async with harness.cut_off(two):
            await one.write(Put(NOTES, "a", Note("1")))
            await until(lambda: two.staleness > STALE_S)
            assert two.get(NOTES, "a") is None
            assert one.get(NOTES, "a") is not None
        await until(lambda: two.get(NOTES, "a") is not None)
        await until(lambda: two.staleness < STALE_S)


async def _exchange(writer: Store, reader: Store) -> None:
    await writer.write(Put(NOTES, "a", Note("1", ("x",))))
    await until(lambda: bool(reader.find(NOTES, "tags", "x")))
    assert reader.get(NOTES, "a") == writer.get(NOTES, "a")
    await writer.write(Delete(NOTES, "a"))
    await until(lambda: not reader.rows(NOTES))
    assert not reader.find(NOTES, "tags", "x")


FOLLOWING_CHECKS: tuple[StoreCheck, ...] = (
    handles_see_one_anothers_writes,
    a_write_brings_what_others_wrote_before,
    changes_are_followed_in_order,
    changes_go_on_from_a_version,
    who_missed_changes_reloads,
    a_writer_that_missed_changes_reloads_too,
    a_broken_listener_is_found_out,
    staleness_grows_while_news_cannot_come,
)
