"""What is written to a database: a batch of writes in one transaction, each whole or not at all.

All writes are done by one call of a function there, which keeps those apart that conflict; until
the commit nothing can have changed. Only if the connection is lost during that does nobody know
what came of it, and the transaction's number asks for that later.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import msgspec
import psycopg
import trio
from psycopg import pq

from alknet.core.storage import Changed, Row, Table
from alknet.errors import AlknetError, StoreError
from alknet.stores.group import Answer
from alknet.stores.postgres.link import Link
from alknet.stores.postgres.reading import Tables, check_layout, read_since, snapshot
from alknet.stores.resident import Delta, RowChange, Snapshot
from alknet.stores.steps import Step, Steps, expectation_failed, value_taken

__all__ = ["Committed", "LostCommit", "commit", "outcome", "tidy"]

# History that followers may be behind. One that sleeps longer reloads, which takes seconds for a
# million rows.
CHANGES_KEPT = 10_000
# What was removed leaves its name in the history: not for longer than a day.
CHANGES_KEPT_S = 86_400.0


class Committed(msgspec.Struct, frozen=True):
    """What came of a batch.

    Attributes:
        answers: One for each write.
        news: What changed since the cursor, by us or by others.
    """

    answers: Sequence[Answer]
    news: Delta | Snapshot


class LostCommit(Exception):
    """The connection was lost while the server committed.

    Attributes:
        transaction: The number to ask for, on the same `Link.history`.
        history: That.
        done: What came of the batch if it landed.
    """

    def __init__(self, transaction: str, history: str, done: Committed) -> None:
        super().__init__("the connection was lost during a commit")
        self.transaction = transaction
        self.history = history
        self.done = done


class _Result(msgspec.Struct, frozen=True):
    """The columns of ``alknet.do_batch``, and the transaction's number if anything changed."""

    layout: int
    begun_at: int
    newest: int
    versions: list[int]
    failed: list[int] | None
    refused_at: list[int | None] | None
    fields: list[str | None] | None
    places: list[str | None] | None
    reasons: list[str | None] | None
    transaction: str | None


async def commit(
    link: Link, batch: Sequence[Steps], cursor: int, tables: Tables, layout: int
) -> Committed:
    """Do a batch and make it durable. Cancelled, it raises as if the connection was lost.

    Raises:
        StoreError: The database was migrated meanwhile. Nothing changed.
        LostCommit: It may have changed.
        psycopg.Error: Nothing changed.
    """
    try:
        result = await _do(link, [step for steps in batch for step in steps], batch)
        check_layout(result.layout, layout)
        answers = _answers(batch, result)
        if cursor == result.begun_at:  # nobody else wrote
            news: Delta | Snapshot = Delta(result.newest, _changes(batch, answers))
        else:
            found = await read_since(link, cursor, tables, layout)
            news = found or await snapshot(link, tables, layout)
        done = Committed(answers, news)
    except BaseException:
        link.drop()
        raise
    try:
        await link.execute("COMMIT")
    except (psycopg.Error, trio.Cancelled) as exc:
        if link.pgconn.status == pq.ConnStatus.OK and isinstance(exc, psycopg.Error):
            raise  # the server says that it did not
        link.drop()
        if result.transaction is not None:
            raise LostCommit(result.transaction, link.history, done) from exc
    return done


async def outcome(link: Link, lost: LostCommit) -> str | None:
    """Return ``committed``, ``aborted``, ``in progress``, or None if the server cannot tell."""
    if link.history != lost.history:
        return None
    found = await link.execute("SELECT pg_xact_status(%s::xid8)", (lost.transaction,))
    row = await found.fetchone()
    return None if row is None or row[0] is None else str(row[0])


async def tidy(link: Link) -> None:
    """Do what there is time for: forget old history."""
    await link.execute(
        "SELECT alknet.trim(%s::bigint, %s::bigint, %s::float8)",
        (CHANGES_KEPT, CHANGES_KEPT, CHANGES_KEPT_S),
    )


async def _do(link: Link, steps: Sequence[Step], batch: Sequence[Steps]) -> _Result:
    parameters = {
        "sizes": [len(steps) for steps in batch],
        "tabs": [step.table.name for step in steps],
        "keys": [step.key for step in steps],
        "expects": [step.expect for step in steps],
        "data": [None if step.data is None else step.data.decode() for step in steps],
        "checks": [step.is_check for step in steps],
        "kept": CHANGES_KEPT,
        "kept_s": CHANGES_KEPT_S,
    }
    await link.execute("BEGIN")
    row = await (await link.execute(_BATCH, parameters)).fetchone()
    assert row is not None
    return _Result(*row)


def _answers(batch: Sequence[Steps], result: _Result) -> list[Answer]:
    failures = {
        number - 1: at for at, number in enumerate(result.failed or ())
    }  # by the place of the step
    answers: list[Answer] = []
    begin = 0
    versions = iter(result.versions)
    for steps in batch:
        end = begin + len(steps)
        own = tuple(islice(versions, len(steps)))
        failed = next((n for n in range(begin, end) if n in failures), None) if failures else None
        if failed is None:
            answers.append(own)
        else:
            answers.append(_failure(steps[failed - begin], result, failures[failed]))
        begin = end
    return answers


def _failure(step: Step, result: _Result, at: int) -> AlknetError:
    assert result.refused_at is not None
    assert result.fields is not None
    assert result.places is not None
    assert result.reasons is not None
    found, field = result.refused_at[at], result.fields[at]
    place, reason = result.places[at], result.reasons[at] or ""
    if found is not None:
        return expectation_failed(step, found)
    name = _field_of(step.table, field)
    if name is not None and place and step.value is not None:
        return value_taken(step, name, _entry(step, name, int(place)), reason)
    return StoreError(f"the database refuses {step.table.name} {step.key!r}: {reason}")


def _field_of(table: Table[msgspec.Struct], json_name: str | None) -> str | None:
    return next((name for name, found in table.json_names.items() if found == json_name), None)


def _entry(step: Step, field: str, place: int) -> str:
    assert step.value is not None
    return step.table.entries(step.value, field)[place - 1]


def _changes(batch: Sequence[Steps], answers: Sequence[Answer]) -> list[RowChange]:
    """Return the newest change of each row that the batch wrote, ascending."""
    newest: dict[tuple[str, str], RowChange] = {}
    for steps, answer in zip(batch, answers, strict=True):
        if isinstance(answer, AlknetError):
            continue
        for step, version in zip(steps, answer, strict=True):
            if version and not step.is_check:
                row_id = (step.table.name, step.key)
                newest.pop(row_id, None)
                newest[row_id] = _row_change(step, version)
    return list(newest.values())


def _row_change(step: Step, version: int) -> RowChange:
    change = Changed(version, step.table.name, step.key, gone=step.data is None)
    if step.value is None or not step.table.is_resident:
        return RowChange(change, None)
    return RowChange(change, Row(step.key, step.value, version))


_BATCH = b"""
SELECT did.*, pg_current_xact_id_if_assigned()::text
FROM alknet.do_batch(
    %(sizes)b::int[], %(tabs)b::text[], %(keys)b::text[], %(expects)s::bigint[],
    %(data)b::text[], %(checks)s::boolean[], %(kept)s::bigint, %(kept_s)s::float8) AS did
"""
