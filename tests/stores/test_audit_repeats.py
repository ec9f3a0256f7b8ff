"""What repeats in the audit log: its first row at once, then a count, and never a flood."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from alknet.stores import audit as audit_module
from alknet.stores.audit import NOTED_WITHIN_S, Audit
from alknet.stores.audit_repeats import OTHERS, TARGETS_NOTED, AuditRepeats
from alknet.stores.memory_store import MemoryDatabase, open_memory_store
from alknet.stores.tables import NODE_TABLES

Row = tuple[str, str, str, dict[str, str]]


@asynccontextmanager
async def counting() -> AsyncGenerator[tuple[Audit, AuditRepeats]]:
    """A log, and repeats that are told of when the block ends at the latest."""
    async with open_memory_store(NODE_TABLES, MemoryDatabase()) as store:
        audit = Audit(store)
        repeats = AuditRepeats(audit)
        async with trio.open_nursery() as nursery:
            await nursery.start(repeats.run)
            yield audit, repeats
            nursery.cancel_scope.cancel()


async def rows_of(audit: Audit) -> list[Row]:
    return [(row.who, row.action, row.target, row.details) for row in await audit.newest(None)]


async def test_the_first_of_a_kind_has_its_row_at_once_and_the_rest_are_counted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with counting() as (audit, repeats):
        for _ in range(1_000):
            await repeats.note("owner", "vault.sign", "release", {"key": "0"})
        await repeats.note("owner", "vault.sign", "release", {"key": "1"})
        await repeats.note("peer:w1", "vault.sign", "release", {"key": "0"})
        first = [
            ("owner", "vault.sign", "release", {"key": "0"}),
            ("owner", "vault.sign", "release", {"key": "1"}),
            ("peer:w1", "vault.sign", "release", {"key": "0"}),
        ]
        assert await rows_of(audit) == first
        await trio.sleep(NOTED_WITHIN_S + 1)
        told = ("owner", "vault.sign", "release", {"key": "0", "repeated": "999"})
        assert await rows_of(audit) == [*first, told]
        await trio.sleep(10 * NOTED_WITHIN_S)
        await repeats.note("owner", "vault.sign", "release", {"key": "0"})
        assert await rows_of(audit) == [*first, told, first[0]]
        assert (await audit.verify()).broken_at is None


async def test_what_was_counted_is_told_when_the_node_stops() -> None:
    async with open_memory_store(NODE_TABLES, MemoryDatabase()) as store:
        audit = Audit(store)
        repeats = AuditRepeats(audit)
        async with trio.open_nursery() as nursery:
            await nursery.start(repeats.run)
            for _ in range(3):
                await repeats.note("owner", "vault.decrypt", "mail")
            nursery.cancel_scope.cancel()
        assert (await rows_of(audit))[1:] == [("owner", "vault.decrypt", "mail", {"repeated": "2"})]
        for _ in range(2):  # nobody would tell of them any more
            await repeats.note("owner", "vault.decrypt", "mail")
        assert len(await rows_of(audit)) == 4


async def test_a_flood_of_targets_leaves_few_rows(autojump_clock: trio.testing.MockClock) -> None:
    async with counting() as (audit, repeats):
        for number in range(500):
            await repeats.note("owner", "vault.get.failed", f"path/{number}", {"code": "NOT_FOUND"})
        rows = await rows_of(audit)
        assert [row[2] for row in rows[:-1]] == [f"path/{n}" for n in range(TARGETS_NOTED)]
        assert rows[-1] == ("owner", "vault.get.failed", OTHERS, {})
        await repeats.note("owner", "vault.unlock.failed", "", {"code": "DAMAGED"})
        assert (await rows_of(audit))[-1][1] == "vault.unlock.failed"
        await trio.sleep(NOTED_WITHIN_S + 1)
        rest = str(500 - TARGETS_NOTED - 1)
        told = ("owner", "vault.get.failed", OTHERS, {"repeated": rest})
        assert (await rows_of(audit))[TARGETS_NOTED + 2 :] == [told]


async def test_a_caller_who_has_left_does_not_keep_the_row_from_being_written() -> None:
    async with counting() as (audit, repeats):
        with trio.CancelScope() as left:
            left.cancel()
            await repeats.note("owner", "vault.sign", "a")
        assert [row[2] for row in await rows_of(audit)] == ["a"]


async def test_a_store_that_does_not_answer_holds_neither_callers_nor_the_end_up_for_long(
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
) -> None:
    async with counting() as (audit, repeats):
        before = trio.current_time()

        async def hold() -> None:
            async with audit._turn:
                await trio.sleep_forever()

        nursery.start_soon(hold)
        await trio.testing.wait_all_tasks_blocked()
        await repeats.note("owner", "vault.sign", "a")
        await repeats.note("owner", "vault.sign", "a")
        assert trio.current_time() - before == audit_module.NOTE_WITHIN_S
    assert trio.current_time() - before == 2 * audit_module.NOTE_WITHIN_S
    told = [(record.message, vars(record)["details"]) for record in caplog.records]
    assert told == [("audit.failed", {}), ("audit.failed", {"repeated": "1"})]
