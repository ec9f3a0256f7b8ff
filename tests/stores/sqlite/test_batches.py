"""What is written together: the same as one write after the other, and answered as such."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alknet.core.storage import Delete, Expect, Op, Put, RowConflict
from alknet.errors import StoreError
from alknet.stores.group import Answer
from alknet.stores.resident import Delta, RowChange
from alknet.stores.sqlite import MIGRATIONS, writing
from alknet.stores.sqlite.schema import claim_unique_fields
from alknet.stores.steps import Steps, by_name, steps_of
from alknet.testing.store_contract import LOG, NOTES, Line, Note

DECLARED = by_name([NOTES, LOG])
KEYS = st.sampled_from("abc")
TAGS = st.lists(st.sampled_from("xyz"), max_size=2).map(tuple)
PUTS = st.builds(
    lambda key, tags, expect: Put(NOTES, key, Note(key, tags), expect),
    KEYS,
    TAGS,
    st.sampled_from([None, None, None, 0, 1, 3]),
)
LINES = st.builds(lambda key: Put(LOG, key, Line(key)), KEYS)
DELETES = st.builds(lambda key: Delete(NOTES, key), KEYS)
EXPECTS = st.builds(lambda key, version: Expect(NOTES, key, version), KEYS, st.integers(0, 3))
WRITES = st.lists(PUTS | LINES | DELETES | EXPECTS, min_size=1, max_size=3)
SINGLE_PUTS = st.lists(PUTS | LINES, min_size=1, max_size=1)


def database() -> apsw.Connection:
    connection = apsw.Connection(":memory:")
    for step in MIGRATIONS:
        connection.execute(step.script)
    claim_unique_fields(connection, [NOTES, LOG])
    return connection


def commit(
    connection: apsw.Connection, batch: Sequence[Steps], cursor: int
) -> tuple[list[Answer], Sequence[RowChange]]:
    done = writing.commit(connection, batch, cursor, DECLARED, 0, lambda _: None)
    assert isinstance(done.news, Delta)
    assert [c.change.version for c in done.news.changes] == sorted(
        c.change.version for c in done.news.changes
    )
    return list(done.answers), done.news.changes


def steps(*ops: Op) -> Steps:
    return steps_of(ops, None, DECLARED)


def contents(connection: apsw.Connection) -> list[object]:
    return [
        connection.execute(query).fetchall()
        for query in (
            "SELECT * FROM row ORDER BY tab, key",
            "SELECT seq, tab, key FROM change ORDER BY seq",
            "SELECT * FROM claim ORDER BY tab, path, text",
        )
    ]


def comparable(answer: Answer) -> object:
    return (type(answer), str(answer)) if isinstance(answer, Exception) else answer


@given(st.lists(SINGLE_PUTS | SINGLE_PUTS | WRITES, min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_a_batch_does_what_its_writes_do_one_by_one(writes: list[list[Op]]) -> None:
    with closing(database()) as one, closing(database()) as two:
        batch = [steps(*ops) for ops in writes]
        together, changes = commit(one, batch, 0)
        singly: list[Answer] = []
        rows: dict[tuple[str, str], RowChange] = {}
        version = 0
        for work in batch:
            answers, found = commit(two, [work], version)
            singly += answers
            for change in found:
                row_id = (change.change.table, change.change.key)
                rows.pop(row_id, None)
                rows[row_id] = change
                version = change.change.version
        assert [comparable(a) for a in together] == [comparable(a) for a in singly]
        assert list(changes) == list(rows.values())
        assert contents(one) == contents(two)


def test_one_of_many_puts_that_takes_a_value_of_another_fails_alone() -> None:
    with closing(database()) as connection:
        commit(connection, [steps(Put(NOTES, "holder", Note("1", ("x",))))], 0)
        tags = [("x",) if n == 21 else () for n in range(50)]
        batch = [steps(Put(NOTES, f"{n}", Note("1", tags[n]))) for n in range(50)]
        answers, changes = commit(connection, batch, 1)
        refused = [answer for answer in answers if isinstance(answer, RowConflict)]
        assert [(error.key, error.holder) for error in refused] == [("21", "holder")]
        assert answers[21] is refused[0]
        versions = [answer for answer in answers if not isinstance(answer, Exception)]
        assert versions == [(n,) for n in range(2, 51)]
        assert len(changes) == 49


@pytest.mark.parametrize("how", ["many at once", "one by one"])
def test_triggers_that_count_otherwise_are_found_out(how: str) -> None:
    with closing(database()) as connection:
        connection.execute("DROP TRIGGER row_inserted")
        count = 20 if how == "many at once" else 1
        batch = [steps(Put(NOTES, f"{n}", Note("1"))) for n in range(count)]
        with pytest.raises(StoreError, match="its triggers were changed"):
            commit(connection, batch, 0)
        assert connection.execute("SELECT count(*) FROM row").get == 0


EDITS: list[tuple[str, Callable[[int], list[tuple[int, str]]]]] = [
    ('UPDATE row SET value = \'{"text":"2"}\'', lambda n: [(n + 1, "a")]),
    ("UPDATE row SET key = 'b'", lambda n: [(n + 1, "a"), (n + 2, "b")]),
    ("UPDATE row SET key = 'b', value = '{}'", lambda n: [(n + 1, "a"), (n + 2, "b")]),
    ("DELETE FROM row", lambda n: [(n + 1, "a")]),
]


@pytest.mark.parametrize(("edit", "expected"), EDITS, ids=[edit for edit, _ in EDITS])
def test_each_edit_of_a_row_is_numbered(
    edit: str, expected: Callable[[int], list[tuple[int, str]]]
) -> None:
    with closing(database()) as connection:
        commit(connection, [steps(Put(NOTES, "a", Note("1")))], 0)
        connection.execute(edit)
        found = connection.execute("SELECT seq, key FROM change WHERE seq > 1").fetchall()
        assert found == expected(1)
        version = connection.execute("SELECT version FROM row").get
        assert version in (None, found[-1][0])
