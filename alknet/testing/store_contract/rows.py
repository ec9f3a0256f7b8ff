"""Checks of rows, indexes and expectations, with one handle."""

from __future__ import annotations

import msgspec
import pytest

from alknet.core.storage import (
    ABSENT,
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    Delete,
    Expect,
    Put,
    RowConflict,
    Table,
)
from alknet.errors import LocalError
from alknet.testing.store_contract.harness import (
    LOG,
    NOTES,
    Line,
    Note,
    StoreCheck,
    StoreHarness,
    values,
)

__all__ = ["ROW_CHECKS"]


async def a_write_is_read_at_once(harness: StoreHarness) -> None:
    """Rows, versions and indexes are there when `write` returns."""
    async with harness.open() as store:
        assert store.get(NOTES, "a") is None
        assert store.rows(NOTES) == []
        note = Note("one", ("x", "y"), "bob")
        (version,) = await store.write(Put(NOTES, "a", note))
        row = store.get(NOTES, "a")
        assert row is not None
        assert (row.key, row.value, row.version) == ("a", note, version)
        assert version > ABSENT
        assert store.version >= version
        assert store.find(NOTES, "tags", "y") == store.find(NOTES, "owner", "bob") == [row]
        assert await store.fetch(NOTES, "a") == row


async def indexes_follow_their_rows(harness: StoreHarness) -> None:
    """What a row no longer says, it is no longer found by; several are found in order."""
    async with harness.open() as store:
        await store.write([Put(NOTES, key, Note(key, owner="bob")) for key in "cab"])
        assert [row.key for row in store.find(NOTES, "owner", "bob")] == ["a", "b", "c"]
        assert [row.key for row in store.rows(NOTES)] == ["a", "b", "c"]
        await store.write([Put(NOTES, "a", Note("a", owner="eve")), Delete(NOTES, "b")])
        assert [row.key for row in store.find(NOTES, "owner", "bob")] == ["c"]
        assert [row.key for row in store.find(NOTES, "owner", "eve")] == ["a"]
        assert store.find(NOTES, "owner", "") == []
        with pytest.raises(LocalError, match="no index"):
            store.find(NOTES, "text", "a")


async def versions_ascend_and_are_never_given_twice(harness: StoreHarness) -> None:
    """Each op that changes a row has a version of its own, also after a removal."""
    async with harness.open() as store:
        first, second = await store.write([Put(NOTES, "a", Note("1")), Put(NOTES, "b", Note("2"))])
        gone, nothing, expected = await store.write(
            [Delete(NOTES, "a"), Delete(NOTES, "a"), Expect(NOTES, "b", second)]
        )
        (again,) = await store.write(Put(NOTES, "a", Note("3")))
        assert first < second < gone < again
        assert (nothing, expected) == (ABSENT, second)
        with pytest.raises(RowConflict, match="changed meanwhile"):
            await store.write(Delete(NOTES, "a", expect=first))


async def expectations_are_kept(harness: StoreHarness) -> None:
    """A write that expected another state changes nothing and says what is there."""
    async with harness.open() as store:
        (version,) = await store.write(Put(NOTES, "a", Note("1")), expect=ABSENT)
        with pytest.raises(RowConflict, match="note 'a' exists already") as caught:
            await store.write(Put(NOTES, "a", Note("2"), expect=ABSENT))
        assert (caught.value.table, caught.value.key) == ("note", "a")
        assert caught.value.found == version
        with pytest.raises(RowConflict, match="does not exist") as caught:
            await store.write(Put(NOTES, "b", Note("2")), expect=version)
        assert caught.value.found == ABSENT
        with pytest.raises(RowConflict):
            await store.write([Put(NOTES, "b", Note("2")), Expect(NOTES, "a", ABSENT)])
        with pytest.raises(RowConflict):
            await store.write([Put(NOTES, "b", Note("2")), Delete(NOTES, "a", version + 1)])
        assert values(store.rows(NOTES)) == {"a": "1"}
        (newer,) = await store.write(Put(NOTES, "a", Note("2")), expect=version)
        await store.write([Expect(NOTES, "b", ABSENT), Delete(NOTES, "a", newer)])
        assert store.rows(NOTES) == []


async def unique_values_belong_to_one_row(harness: StoreHarness) -> None:
    """A taken value is refused with the name of its holder, and is free once it is let go."""
    async with harness.open() as store:
        await store.write(Put(NOTES, "a", Note("1", ("x", "y"))))
        with pytest.raises(RowConflict, match="tags 'y' of note 'b' belongs to note 'a'") as caught:
            await store.write([Put(NOTES, "c", Note("3")), Put(NOTES, "b", Note("2", ("z", "y")))])
        assert (caught.value.field, caught.value.holder) == ("tags", "a")
        assert values(store.rows(NOTES)) == {"a": "1"}
        await store.write(Put(NOTES, "a", Note("1", ("x", "x"))))
        await store.write(Put(NOTES, "b", Note("2", ("y",))))
        await store.write([Delete(NOTES, "a"), Put(NOTES, "b", Note("2", ("x", "y")))])
        assert [row.key for row in store.find(NOTES, "tags", "x")] == ["b"]


async def what_is_not_valid_is_refused_before_it_is_queued(harness: StoreHarness) -> None:
    """Keys and values that could not be read again, and tables that nobody declared."""
    other = Table("note", Note)
    bad = [
        Put(NOTES, "", Note("1")),
        Put(NOTES, "a\0", Note("1")),
        Put(NOTES, "\ud800", Note("1")),
        Put(NOTES, "k" * (MAX_KEY_BYTES + 1), Note("1")),
        Put(NOTES, "a", Note("\ud800")),
        Put(NOTES, "a", Note(1)),  # type: ignore[arg-type]  # what the check is about
        Put(NOTES, "a", Line("1")),
        Put(NOTES, "a", Note("x" * MAX_VALUE_BYTES)),
        Put(other, "a", Note("1")),
    ]
    async with harness.open() as store:
        version = store.version
        for op in bad:
            with pytest.raises(LocalError):
                await store.write([Put(NOTES, "good", Note("1")), op])
        with pytest.raises(LocalError, match="1 to"):
            await store.write([])
        with pytest.raises(LocalError, match="not opened with"):
            store.get(other, "a")
        assert store.version == version
        assert store.get(NOTES, "good") is None


async def keys_and_values_of_any_text_come_back(harness: StoreHarness) -> None:
    """Unicode, quotes, control characters, in the order of code points."""
    keys = [" ", "'\"\\", "-1", "A", "a\n\t\x7f", "e\u0301", "\xe9", "\uffff", "\U0001f511"]
    keys.append("k" * MAX_KEY_BYTES)
    async with harness.open() as store:
        texts = [f"{key}\0\u2028'" for key in keys]
        await store.write(
            [
                Put(NOTES, key, Note(text, (text,), key))
                for key, text in zip(keys, texts, strict=True)
            ]
        )
        await store.write([Put(LOG, key, Line(key)) for key in keys])
    async with harness.open() as store:
        assert [row.key for row in store.rows(NOTES)] == sorted(keys)
        assert [row.key for row in await store.scan(LOG)] == sorted(keys)
        for key, text in zip(keys, texts, strict=True):
            (row,) = store.find(NOTES, "tags", text)
            assert (row.key, row.value.owner) == (key, key)


async def large_values_come_back(harness: StoreHarness) -> None:
    """A value may be as long as the limit says."""
    async with harness.open() as store:
        overhead = len(msgspec.json.encode(Line("")))
        line = Line("x" * (MAX_VALUE_BYTES - overhead))
        await store.write(Put(LOG, "big", line))
        row = await store.fetch(LOG, "big")
        assert row is not None
        assert row.value == line


async def logs_are_read_from_the_engine(harness: StoreHarness) -> None:
    """A table that is not resident is scanned in pages, both ways, and never read from memory."""
    async with harness.open() as store:
        await store.write([Put(LOG, f"{n:03}", Line(str(n))) for n in range(25)])
        await store.write([Put(NOTES, "a", Note("1")), Delete(LOG, "013")])
        first = await store.scan(LOG, limit=10)
        rest = await store.scan(LOG, after=first[-1].key)
        assert [row.value.text for row in [*first, *rest]] == [str(n) for n in range(25) if n != 13]
        last = await store.scan(LOG, limit=2, newest_first=True)
        before = await store.scan(LOG, after=last[-1].key, limit=1, newest_first=True)
        assert [row.key for row in [*last, *before]] == ["024", "023", "022"]
        assert await store.fetch(LOG, "013") is None
        for read in (lambda: store.get(LOG, "001"), lambda: store.rows(LOG)):
            with pytest.raises(LocalError, match="not in memory"):
                read()


async def rows_outlive_their_handle(harness: StoreHarness) -> None:
    """After a restart everything is as it was, versions included."""
    async with harness.open() as store:
        await store.write([Put(NOTES, key, Note(key, (key,), "bob")) for key in "abc"])
        await store.write([Put(NOTES, "a", Note("new")), Delete(NOTES, "b")])
        before, version = store.rows(NOTES), store.version
    async with harness.open() as store:
        assert store.rows(NOTES) == before
        assert store.version == version
        assert [row.key for row in store.find(NOTES, "owner", "bob")] == ["c"]
        with pytest.raises(RowConflict):
            await store.write(Put(NOTES, "d", Note("d", ("c",))))
        (newer,) = await store.write(Put(NOTES, "d", Note("d", ("a", "b"))))
        assert newer == version + 1


ROW_CHECKS: tuple[StoreCheck, ...] = (
    a_write_is_read_at_once,
    indexes_follow_their_rows,
    versions_ascend_and_are_never_given_twice,
    expectations_are_kept,
    unique_values_belong_to_one_row,
    what_is_not_valid_is_refused_before_it_is_queued,
    keys_and_values_of_any_text_come_back,
    large_values_come_back,
    logs_are_read_from_the_engine,
    rows_outlive_their_handle,
)
