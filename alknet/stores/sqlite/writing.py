"""What is written to a database: a batch of writes in one transaction.

One that is refused is undone alone: its statement by itself, several by a savepoint. All of it
blocks and runs in the thread of the writing connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import apsw
import msgspec

from alknet.core.storage import ABSENT, Changed, Row, RowConflict
from alknet.errors import StoreError
from alknet.stores.group import Answer
from alknet.stores.resident import Delta, RowChange, Snapshot
from alknet.stores.sqlite.reading import Tables, check_layout, newest_change, read_since
from alknet.stores.sqlite.schema import immediate, path_of
from alknet.stores.steps import Step, Steps, expectation_failed, value_taken

__all__ = ["Committed", "LostCommit", "commit", "tidy"]

# History that followers may be behind. One that sleeps longer reloads, which takes 2 s for a
# million rows; a change row has some 40 bytes.
CHANGES_KEPT = 10_000
# What was removed leaves its name in the history: not for longer than a day.
CHANGES_KEPT_S = 86_400
# Rows put with one statement: it hands the interpreter's lock over twice and takes their numbers
# from the counter at once. More of them gain nothing (measured), and are all done singly when one
# is refused.
PUTS_TOGETHER = 32

_PUT = (
    "INSERT INTO row (tab, key, value) VALUES (?, ?, ?) "
    "ON CONFLICT DO UPDATE SET value = excluded.value"
)
_PUTS = {
    count: _PUT.replace("(?, ?, ?)", ", ".join(["(?, ?, ?)"] * count))
    for count in (1 << n for n in range(PUTS_TOGETHER.bit_length()))
}


class Committed(msgspec.Struct, frozen=True):
    """What came of a batch.

    Attributes:
        answers: One for each write.
        news: What changed since the cursor, by us or by others.
    """

    answers: Sequence[Answer]
    news: Delta | Snapshot


class LostCommit(Exception):
    """The commit itself failed: after a crash it may be found done. The cause is SQLite's."""


def commit(
    connection: apsw.Connection,
    batch: Sequence[Steps],
    cursor: int,
    tables: Tables,
    layout: int,
    announce: Callable[[int], None],
) -> Committed:
    """Do a batch and make it durable.

    Args:
        announce: Called with the new version while nobody else can commit, before we do.

    Raises:
        StoreError: The database was migrated meanwhile. Nothing changed.
        LostCommit: It may have changed.
        apsw.Error: Nothing changed.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        check_layout(connection, layout)
        work = _Batch(connection, tables)
        begun_at = work.version
        answers = work.do_all(batch)
        work.check()
        if cursor == begun_at:  # nobody else wrote
            news: Delta | Snapshot = Delta(work.version, list(work.changes.values()))
        else:
            news = read_since(connection, cursor, tables)
        if work.version != begun_at:
            _trim(connection, 2 * CHANGES_KEPT)
            announce(work.version)
        _commit(connection)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return Committed(answers, news)


def tidy(connection: apsw.Connection) -> None:
    """Do what there is time for: forget old history, copy the log into the database."""
    with immediate(connection):
        _trim(connection, CHANGES_KEPT)
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)


class _Batch:
    """What a batch has done so far.

    Attributes:
        version: The newest change; each row written or removed is one, numbered by the triggers.
        changes: The newest of each row, ascending.
    """

    def __init__(self, connection: apsw.Connection, tables: Tables) -> None:
        self._connection = connection
        self._tables = tables
        self.version = newest_change(connection)
        self.changes: dict[tuple[str, str], RowChange] = {}

    def do_all(self, batch: Sequence[Steps]) -> list[Answer]:
        """Do writes in order, each or nothing of it."""
        answers: list[Answer] = []
        for is_plain, writes in groupby(batch, _is_plain_put):
            if is_plain:
                answers += self._put_all([steps[0] for steps in writes])
            else:
                answers += map(self._do_write, writes)
        return answers

    def _put_all(self, steps: Sequence[Step]) -> Iterator[Answer]:
        """Put rows whatever they are now, many with one statement."""
        begin = 0
        while begin < len(steps):
            # Powers of two, so that there are few statements to compile.
            count = min(PUTS_TOGETHER, 1 << (len(steps) - begin).bit_length() - 1)
            together = steps[begin : begin + count]
            begin += count
            if count == 1 or not self._put_together(together):
                yield from (self._do_write([step]) for step in together)
            else:
                for step in together:
                    self.version += 1
                    _note(self.changes, step, self.version)
                    yield (self.version,)

    def _put_together(self, steps: Sequence[Step]) -> bool:
        values: list[str] = []
        for step in steps:
            values += (step.table.name, step.key, str(step.data or b"", "utf-8"))
        try:
            self._connection.execute(_PUTS[len(steps)], values)
        except apsw.ConstraintError:  # the whole statement was undone, whoever is to blame
            return False
        return True

    def _do_write(self, steps: Steps) -> Answer:
        version, done = self.version, dict[tuple[str, str], RowChange]()
        # A single statement that fails undoes itself.
        is_alone = len(steps) == 1
        if not is_alone:
            self._connection.execute("SAVEPOINT job")
        answer: Answer
        try:
            answer = tuple(self._do(step, done) for step in steps)
        except (RowConflict, StoreError) as exc:
            self.version = version
            if not is_alone:
                self._connection.execute("ROLLBACK TO job")
            answer = exc
        else:
            for row_id, change in done.items():
                self.changes.pop(row_id, None)
                self.changes[row_id] = change
        if not is_alone:
            self._connection.execute("RELEASE job")
        return answer

    def check(self) -> None:
        """Raise StoreError if the triggers counted otherwise than we."""
        found = newest_change(self._connection)
        if found != self.version:
            raise StoreError(
                f"the database counts its changes to {found}, not {self.version}: its triggers "
                "were changed; put a backup in its place"
            )

    def _do(self, step: Step, done: dict[tuple[str, str], RowChange]) -> int:
        row_id = (step.table.name, step.key)
        if step.expect is not None or step.data is None:
            found = self._connection.execute(
                "SELECT version FROM row WHERE tab = ? AND key = ?", row_id
            ).get
            version = ABSENT if found is None else int(found)
            if step.expect is not None and step.expect != version:
                raise expectation_failed(step, version)
            if step.is_check or (step.data is None and version == ABSENT):
                return version
        if step.data is None:
            self._connection.execute("DELETE FROM row WHERE tab = ? AND key = ?", row_id)
        else:
            _put(self._connection, step, step.data)
        self.version += 1
        _note(done, step, self.version)
        return self.version


def _is_plain_put(steps: Steps) -> bool:
    return len(steps) == 1 and steps[0].data is not None and steps[0].expect is None


def _note(changes: dict[tuple[str, str], RowChange], step: Step, version: int) -> None:
    """Let the change of *step* be the newest one."""
    table, key, value = step.table, step.key, step.value
    row_id = (table.name, key)
    changes.pop(row_id, None)
    change = Changed(version, table.name, key, gone=step.data is None)
    row = None if value is None or not table.is_resident else Row(key, value, version)
    changes[row_id] = RowChange(change, row)


def _commit(connection: apsw.Connection) -> None:
    try:
        connection.execute("COMMIT")
    except apsw.IOError as exc:
        # The log may hold all of it on the disk already, all but the last flush.
        raise LostCommit(f"the disk failed ({exc})") from exc


def _trim(connection: apsw.Connection, longest: int) -> None:
    """Forget history that is longer than *longest* or too old; never the newest change."""
    newest = newest_change(connection)
    oldest = connection.execute(
        "SELECT seq, at < unixepoch() - ? FROM change ORDER BY seq LIMIT 1", (CHANGES_KEPT_S,)
    ).fetchone()
    if oldest is not None and (newest - int(oldest[0] or 0) >= longest or oldest[1]):
        connection.execute(
            "DELETE FROM change WHERE seq < ?1 AND (seq <= ?1 - ?2 OR at < unixepoch() - ?3)",
            (newest, CHANGES_KEPT, CHANGES_KEPT_S),
        )


def _put(connection: apsw.Connection, step: Step, data: bytes) -> None:
    try:
        connection.execute(
            _PUT,
            (step.table.name, step.key, data.decode()),
        )
    except apsw.ConstraintError as exc:
        # Only the statement was undone, so that the database can still say whose value it is.
        for field, value in step.unique:
            holder = _holder(connection, step, field, value)
            if holder is not None:
                raise value_taken(step, field, value, holder) from None
        raise StoreError(f"the database refuses {step.table.name} {step.key!r}: {exc}") from exc


def _holder(connection: apsw.Connection, step: Step, field: str, value: str) -> str | None:
    found = connection.execute(
        "SELECT key FROM claim WHERE (tab, path, text) = (?, ?, ?) AND key <> ?",
        (step.table.name, path_of(step.table, field), value, step.key),
    ).get
    return None if found is None else str(found)
