"""What the checks need of an engine, and the tables that they use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec
import trio

from alknet.core.storage import Row, Store, Table

__all__ = [
    "LOG",
    "NOTES",
    "TABLES",
    "Line",
    "Note",
    "StoreCheck",
    "StoreHarness",
    "until",
    "values",
]


class Note(msgspec.Struct, frozen=True):
    """A row with an index and a unique field."""

    text: str
    tags: tuple[str, ...] = ()
    owner: str | None = None


class Line(msgspec.Struct, frozen=True):
    """A row of a log, which is not kept in memory."""

    text: str


NOTES = Table("note", Note, indexes=("owner",), unique=("tags",))
LOG = Table("log_line", Line, is_resident=False)
TABLES: Sequence[Table[msgspec.Struct]] = (NOTES, LOG)


class StoreHarness(Protocol):
    """One set of data, empty at first, and what can be done to those who use it.

    Attributes:
        child: How another process opens the same data: the name ``module:function`` of what makes
            the context manager of a store with `TABLES`, and the one string to call it with.
    """

    @property
    def child(self) -> tuple[str, str]: ...

    def open(self) -> AbstractAsyncContextManager[Store]:
        """Open another handle with `TABLES`."""

    def cut_off(self, store: Store) -> AbstractAsyncContextManager[None]:
        """While the block runs, *store* cannot learn what other handles write."""

    def break_listener(self, store: Store) -> None:
        """Break what wakes *store*; it must find out and help itself."""

    async def trim(self) -> None:
        """Forget the history of changes, as happens with time."""


StoreCheck = Callable[[StoreHarness], Awaitable[None]]


def values(rows: Sequence[Row[Note]]) -> dict[str, str]:
    """Return the texts of *rows* by key."""
    return {row.key: row.value.text for row in rows}


async def until(claim: Callable[[], bool]) -> None:
    """Wait until *claim* is true; the test's own time limit bounds it."""
    while not claim():  # noqa: ASYNC110  staleness grows without an event
        await trio.sleep(0.005)
