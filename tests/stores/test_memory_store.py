"""The store in memory, beyond what the contract asks of every engine."""

from __future__ import annotations

import msgspec
import pytest

from alknet.core.storage import ABSENT, Delete, Put, RowConflict, Table
from alknet.errors import LocalError
from alknet.stores.memory_store import MemoryDatabase, open_memory_store


class Note(msgspec.Struct, frozen=True):
    text: str
    tags: tuple[str, ...] = ()
    owner: str | None = None


NOTES = Table("note", Note, indexes=("owner",), unique=("tags",))


async def test_a_refused_write_leaves_no_trace() -> None:
    database = MemoryDatabase()
    async with open_memory_store([NOTES], database) as store:
        await store.write(Put(NOTES, "a", Note("1", ("x",))))
        version = store.version
        with pytest.raises(RowConflict, match="tags 'x' of note 'b' belongs to note 'a'") as caught:
            await store.write(
                [
                    Put(NOTES, "a", Note("2", ("x", "y"))),
                    Delete(NOTES, "a"),
                    Put(NOTES, "a", Note("3", ("x",)), expect=ABSENT),
                    Put(NOTES, "b", Note("4", ("x",))),
                ]
            )
        assert (caught.value.field, caught.value.holder) == ("tags", "a")
        assert store.version == database.version == version
        assert [row.value for row in store.rows(NOTES)] == [Note("1", ("x",))]
        await store.write(Put(NOTES, "b", Note("5", ("y",))))


def test_a_table_that_cannot_work_is_refused() -> None:
    class Thawed(msgspec.Struct):
        text: str

    with pytest.raises(LocalError, match="must be frozen"):
        Table("t", Thawed)
    with pytest.raises(LocalError, match="no field 'colour'"):
        Table("t", Note, indexes=("colour",))
    with pytest.raises(LocalError, match="form"):
        Table("T-1", Note)
