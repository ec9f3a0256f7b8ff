"""Rows in memory: pieces that overlap, followers that are slow, tables that are unknown."""

from __future__ import annotations

import msgspec
import pytest
import trio

from alknet.core.storage import Changed, Reloaded, Row, Table
from alknet.stores import resident
from alknet.stores.resident import Delta, Resident, RowChange, Snapshot, TableRows


class Item(msgspec.Struct, frozen=True):
    text: str = ""


ITEMS = Table("item", Item)


def delta(*versions: int, key: str = "k") -> Delta:
    return Delta(versions[-1], [row_change(version, key) for version in versions])


def row_change(version: int, key: str, table: str = "item") -> RowChange:
    change = Changed(version, table, key, gone=False)
    return RowChange(change, Row(key, Item(f"{version}"), version))


def empty(version: int) -> Snapshot:
    table: Table[msgspec.Struct] = ITEMS
    return Snapshot(version, {"item": TableRows(table, version)})


def versions(memory: Resident) -> dict[str, int]:
    return {key: row.version for key, row in memory.table_rows(ITEMS).rows.items()}


async def test_pieces_that_overlap_or_come_late_do_no_harm() -> None:
    memory = Resident({"item": ITEMS})
    feed = memory.feed(0)
    memory.deliver(Delta(2, [row_change(1, "a"), row_change(2, "b")]))
    memory.deliver(Delta(3, [row_change(2, "b"), row_change(3, "a")]))
    memory.deliver(Delta(1, [row_change(1, "a")]))
    memory.deliver(empty(2))
    assert versions(memory) == {"a": 3, "b": 2}
    assert memory.version == memory.version_of(ITEMS) == 3
    assert [(await anext(feed)).version for _ in range(3)] == [1, 2, 3]


async def test_who_is_too_slow_reloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "FEED_KEPT", 4)
    memory = Resident({"item": ITEMS})
    quick, slow = memory.feed(0), memory.feed(0)
    for version in range(1, 10):
        memory.deliver(delta(version))
        if version == 5:
            assert [(await anext(quick)).version for _ in range(5)] == [1, 2, 3, 4, 5]
    assert await anext(slow) == Reloaded(9)
    assert [(await anext(quick)).version for _ in range(4)] == [6, 7, 8, 9]
    assert await anext(memory.feed(4)) == Reloaded(9)


async def test_changes_of_unknown_tables_move_the_version_alone() -> None:
    memory = Resident({"item": ITEMS})
    memory.deliver(Delta(1, [row_change(1, "a", table="other")]))
    assert memory.version == 1
    assert memory.version_of(ITEMS) == 0
    with trio.move_on_after(0) as scope:
        await anext(memory.feed(0))
    assert scope.cancelled_caught


async def test_what_comes_after_the_end_is_dropped() -> None:
    memory = Resident({"item": ITEMS})
    memory.close()
    memory.deliver(delta(1))
    memory.deliver(empty(1))
    with pytest.raises(trio.ClosedResourceError):
        memory.table_rows(ITEMS)
