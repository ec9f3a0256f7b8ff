"""What a store promises: rows in memory, writes that last, changes that every process sees.

A `Store` holds rows, each under (table, key), and knows no engine. Its reads are synchronous and
come from memory, so that a handler may ask on every packet. `Store.write` returns when its rows
are durable, and visible to every reader of this handle. Other handles on the same data, in other
processes or on other machines, see them within milliseconds, and `Store.staleness` says for how
long that cannot be relied on.

**Versions.** A store counts its changes: each row written or removed takes the next number, and
keeps it as its `Row.version` until it is written again; no number is ever given twice. A handle's
`Store.version` is the newest change in its memory. "Expect" compares the version of a row: what
was removed and made anew is never taken for what it was.

**Following.** `Store.changes` yields what changed after a version. It keeps no queue for those who
are slow: who is too far behind gets one `Reloaded`, reads anew what it cares for, and goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from alknet.errors import Conflict, LocalError, StoreError

__all__ = [
    "ABSENT",
    "MAX_KEY_BYTES",
    "MAX_OPS",
    "MAX_VALUE_BYTES",
    "Changed",
    "Delete",
    "Expect",
    "Op",
    "OutcomeUnknown",
    "Put",
    "Reloaded",
    "Row",
    "RowConflict",
    "Store",
    "Table",
]

# Keys are names, ids and fingerprints; a longer one is a mistake, or somebody's attack. Neither
# empty nor with a NUL, which not every engine can hold.
MAX_KEY_BYTES = 1_024
# Rows are records, not files: what is larger belongs in the file system. PostgreSQL's own limit
# for JSON strings is 256 MiB, SQLite's for any value 1 GB.
MAX_VALUE_BYTES = 16 * 1024 * 1024
# Ops of one write. They hold up all others that wait: at 100k rows/s, a tenth of a second.
MAX_OPS = 10_000

ABSENT = 0
"""The version of a row that does not exist; ``expect=ABSENT`` means "only if it is new"."""

T = TypeVar("T", bound=msgspec.Struct)
T_co = TypeVar("T_co", bound=msgspec.Struct, covariant=True)


class Table(Generic[T_co]):
    """Declares one kind of rows. Two tables of one name in a store are a mistake.

    Values are frozen ``msgspec.Struct``s, stored as JSON; readers share them, so what they hold
    must not be changed. Fields that later versions add need a default.

    Args:
        name: ``[a-z][a-z0-9_]*``, at most 63 characters.
        row_type: The struct.
        indexes: Fields by which `Store.find` looks up. Each holds a ``str``, a sequence of ``str``
            (the row is found by any of them) or None (it is not found).
        unique: Such fields whose values belong to at most one row each; also found by.
        key_field: The field that holds the key too: in memory both are one text.
        is_resident: Kept in memory. If not, `Store.get`, `Store.find` and `Store.rows` refuse and
            `Store.fetch` and `Store.scan` read from the engine: for logs and bodies.

    Raises:
        LocalError: The struct is not frozen, or lacks one of the fields.
    """

    def __init__(
        self,
        name: str,
        row_type: type[T_co],
        *,
        indexes: Collection[str] = (),
        unique: Collection[str] = (),
        key_field: str | None = None,
        is_resident: bool = True,
    ) -> None:
        if not (name.isascii() and name.isidentifier() and name.islower() and len(name) < 64):
            raise LocalError(f"table name {name!r} is not of the form [a-z][a-z0-9_]*")
        if not row_type.__struct_config__.frozen:
            raise LocalError(f"rows of table {name} are shared: {row_type.__name__} must be frozen")
        json_names = {f.name: f.encode_name for f in msgspec.structs.fields(row_type)}
        named = {*indexes, *unique, *(() if key_field is None else (key_field,))}
        if missing := named - set(json_names):
            raise LocalError(f"rows of table {name} have no field {min(missing)!r}")
        self.name = name
        self.row_type = row_type
        self.is_resident = is_resident
        self.unique = tuple(unique)
        self.indexes = tuple(dict.fromkeys((*unique, *indexes)))
        self.json_names = json_names
        self._key_field = key_field
        self._decoder = msgspec.json.Decoder(row_type)

    def __repr__(self) -> str:
        return f"<Table {self.name} of {self.row_type.__name__}>"

    def decode(self, data: bytes | str) -> T_co:
        """Make a value of its JSON. Raises ``msgspec.DecodeError`` or ``ValidationError``."""
        return self._decoder.decode(data)

    def shared_key(self, key: str, value: msgspec.Struct) -> str:
        """Return *key*, as the text that *value* holds if it does: memory is needed once."""
        if self._key_field is not None:
            held: object = getattr(value, self._key_field)
            if isinstance(held, str) and held == key:
                return held
        return key

    def entries(self, value: msgspec.Struct, field: str) -> tuple[str, ...]:
        """Return under what *value* is found by *field*. Raises LocalError if it is no text."""
        found = getattr(value, field)
        if found is None:
            return ()
        texts = (found,) if isinstance(found, str) else tuple(found)
        if not all(isinstance(text, str) for text in texts):
            raise LocalError(f"field {field!r} of table {self.name} is indexed and holds no text")
        return texts


class Row(msgspec.Struct, Generic[T_co], frozen=True, gc=False):
    """A value in a store, with its key and the version at which it was written."""

    key: str
    value: T_co
    version: int


class Put(msgspec.Struct, Generic[T_co], frozen=True):
    """Write a row, new or not.

    Attributes:
        expect: The version that the row must have (`ABSENT`: it must not exist); None for any.
    """

    table: Table[T_co]
    key: str
    value: T_co
    expect: int | None = None


class Delete(msgspec.Struct, Generic[T_co], frozen=True):
    """Remove a row. Without *expect* it need not exist; see `Put`."""

    table: Table[T_co]
    key: str
    expect: int | None = None


class Expect(msgspec.Struct, Generic[T_co], frozen=True):
    """Change nothing, but let the write fail if the row is not at *version* (`ABSENT`: not there).

    For what a decision was based on, but does not itself change.
    """

    table: Table[T_co]
    key: str
    version: int


Op = Put[msgspec.Struct] | Delete[msgspec.Struct] | Expect[msgspec.Struct]
"""One step of a write."""


class Changed(msgspec.Struct, frozen=True, gc=False):
    """A row was written or removed. It may have changed again by the time one reads it.

    Attributes:
        gone: It was removed.
    """

    version: int
    table: str
    key: str
    gone: bool


class Reloaded(msgspec.Struct, frozen=True):
    """Changes up to *version* were missed: anything may be different. Read anew what matters."""

    version: int


class RowConflict(Conflict):
    """A row is not as a write expected, or a value of a unique field belongs to another row.

    Attributes:
        table: Its name.
        key: The row of the op that was refused.
        found: The version that the row has (`ABSENT` if there is none), when that was the reason.
        field: The unique field, when that was the reason.
        holder: The key of the row that has its value.
    """

    def __init__(
        self,
        message: str,
        *,
        table: str,
        key: str,
        found: int | None = None,
        field: str | None = None,
        holder: str | None = None,
    ) -> None:
        super().__init__(message)
        self.table = table
        self.key = key
        self.found = found
        self.field = field
        self.holder = holder


class OutcomeUnknown(StoreError):
    """A write was sent and no answer came: it landed whole, or not at all. Read before retrying."""


class Store(Protocol):
    """A handle on shared rows. The tables are those that it was opened with.

    All methods raise ``trio.ClosedResourceError`` once `aclose` began, and LocalError for a table
    that the store was not opened with. A handle belongs to one Trio run.
    """

    @property
    def version(self) -> int:
        """The newest change that memory reflects. It only grows."""

    @property
    def staleness(self) -> float:
        """Seconds since memory was last known to hold all that was written anywhere.

        It stays under about a second while the engine answers, and grows while it does not; 0.0
        where nobody else can write. Whoever grants rights from what is read here refuses
        (`alknet.errors.Unavailable`) above its limit.
        """

    def version_of(self, table: Table[msgspec.Struct]) -> int:
        """Return a version that differs whenever *table* may have changed, also by a reload."""

    def get(self, table: Table[T], key: str) -> Row[T] | None:
        """Return a row from memory, or None.

        Raises:
            LocalError: The table is not resident.
        """

    def find(self, table: Table[T], field: str, value: str) -> Sequence[Row[T]]:
        """Return the rows whose indexed *field* is or contains *value*, by key, from memory.

        Raises:
            LocalError: The table is not resident, or *field* is not among its indexes.
        """

    def rows(self, table: Table[T]) -> Sequence[Row[T]]:
        """Return all rows of a table by key, from memory. Takes time in proportion.

        Raises:
            LocalError: The table is not resident.
        """

    async def fetch(self, table: Table[T], key: str) -> Row[T] | None:
        """Return a row from the engine itself, of any table, or None. Cancelled, no effect.

        Raises:
            StoreError: It cannot be read.
            Unavailable: The engine is busy or out of reach.
        """

    async def scan(
        self, table: Table[T], *, after: str = "", limit: int = 1_000, newest_first: bool = False
    ) -> Sequence[Row[T]]:
        """Return up to *limit* rows by key, in the order of code points, from the engine itself.

        Pages go on with the last key as *after*, which is left out; the empty key is no key.
        *newest_first* is the other direction. Raises like `fetch`; cancelled, no effect.
        """

    async def write(self, ops: Op | Sequence[Op], *, expect: int | None = None) -> tuple[int, ...]:
        """Do *ops* together, in order; return when they are durable and in this handle's memory.

        All land or none; unique values are judged after each op, so let go of one before another
        row takes it. What several tasks write at once is committed together, where each stands
        alone: one that conflicts fails, the others land.

        Args:
            ops: One or more, at most `MAX_OPS`. Their values are copied: what reads return is
                what a restart would find.
            expect: For each `Put` and `Delete` that does not say its own.

        Returns:
            For each op the version of its row: the new one after a `Put`, that of the removal
            after a `Delete` (`ABSENT` if nothing was there), the expected one after an `Expect`.

        Raises:
            RowConflict: A row was not as expected, or a unique value is taken. Nothing changed.
            LocalError: An op is not valid: key or value too long, a value that is not of its
                type. Nothing changed.
            Unavailable: The engine is busy or out of reach. Nothing changed.
            StoreError: The engine failed: disk full, read-only, damaged. Nothing changed; reads
                go on.
            OutcomeUnknown: The engine was lost while it committed.

        Called with a cancel pending, or cancelled while it waits for room in the queue, it has no
        effect. Once it is in the queue a cancel waits for the answer, so that the caller always
        knows; the process being killed leaves the write whole or absent.
        """

    def changes(self, since: int | None = None) -> AsyncIterator[Changed | Reloaded]:
        """Follow what changes after version *since*; None begins with now.

        Versions ascend. Each change is yielded once it is in memory, our own included; of several
        changes of one row the older may be left out. What this handle no longer has in its history
        is one `Reloaded`; so is a *since* from the future. Nothing is lost by a cancel, and an
        iterator may be dropped at any time. It raises ``trio.ClosedResourceError`` at the end.
        """

    async def wait_changed(self, version: int) -> int:
        """Wait until `version` differs from *version* and return it. Cancelled, nothing happens."""

    async def aclose(self) -> None:
        """Take no more writes, answer those that wait, let go of the engine. Idempotent.

        Bounded; cancelled, it does the same without waiting longer than the engine needs to let
        go of what runs.
        """
