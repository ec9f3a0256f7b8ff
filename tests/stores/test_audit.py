"""The audit log: complete, in order, and it shows whoever laid hands on it."""

from __future__ import annotations

import hashlib
import json

import msgspec
import pytest
import trio
import trio.testing

from alknet.core.identity import ApiKey, NodeId, Peer
from alknet.core.storage import Delete, Put, Store
from alknet.core.tokens import mint_token
from alknet.errors import Conflict
from alknet.stores import audit as audit_module
from alknet.stores.audit import FAILURES_NOTED, NOTED_WITHIN_S, Audit, Entry, acting_as
from alknet.stores.identities import StoredIdentities
from alknet.stores.memory_store import MemoryDatabase, open_memory_store
from alknet.stores.tables import AUDIT, AUDIT_HEADS, NODE_TABLES, AuditHead, AuditRow
from alknet.testing import cancel_at_every_checkpoint
from tests.stores.engines import Opener

A = Peer(name="a", fingerprints=(NodeId(bytes([1]) * 32).fingerprint,), scopes=("echo",))


def key_of(number: int) -> str:
    return f"{number:016d}"


async def filled(store: Store, rows: int) -> Audit:
    audit = Audit(store, clock=lambda: 1_700_000_000.5)
    for number in range(1, rows + 1):
        await audit.record(Entry("vault.put", f"path/{number}", {"b": "2", "a": "ä"}))
    return audit


async def test_each_change_leaves_a_row_that_says_who_did_what(opener: Opener) -> None:
    token = mint_token()
    async with opener() as store:
        identities = StoredIdentities(store)
        await identities.put_peer(A)
        with acting_as("peer:admin"):
            await identities.update_peer(msgspec.structs.replace(A, enabled=False))
        await identities.rename_peer("a", "b")
        await identities.remove_peer("b")
        await identities.put_api_key(ApiKey(prefix=token.prefix, name="ci", hash=token.hash))
        await identities.remove_api_key(token.prefix)
        rows = await identities.audit.newest(None)
        assert [(row.number, row.who, row.action, row.target) for row in rows] == [
            (1, "owner", "peer.add", "a"),
            (2, "peer:admin", "peer.change", "a"),
            (3, "owner", "peer.rename", "a"),
            (4, "owner", "peer.remove", "b"),
            (5, "owner", "token.create", token.prefix),
            (6, "owner", "token.revoke", token.prefix),
        ]
        assert rows[1].details == {"enabled": "no"}
        text = msgspec.json.encode(rows).decode()
        assert token.text not in text
        assert token.hash.hex() not in text


async def test_what_was_refused_leaves_no_row(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        await identities.put_peer(A)
        with pytest.raises(Conflict):
            await identities.put_peer(A)
        await identities.update_peer(A)  # changes nothing
        assert await identities.audit.last_number() == 1


async def test_the_chain_is_what_the_documentation_says(opener: Opener) -> None:
    async with opener() as store:
        audit = await filled(store, 2)
        previous = "0" * 64
        for row in await audit.newest(None):
            fields = [
                previous, row.number, row.at_ms, row.who, row.action, row.target, row.details,
            ]  # fmt: skip
            text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
            previous = hashlib.sha256(b"alknet-audit-v1\0" + text.encode()).hexdigest()
            assert row.hash == previous
        verdict = await audit.verify()
        assert (verdict.rows, verdict.hash, verdict.broken_at) == (2, previous, None)


@pytest.mark.parametrize("how", ["altered", "removed", "removed at the end", "forged"])
async def test_the_first_row_that_was_touched_is_named(opener: Opener, how: str) -> None:
    async with opener() as store:
        audit = await filled(store, 5)
        touched = 5 if how == "removed at the end" else 3
        row = await store.fetch(AUDIT, key_of(touched))
        assert row is not None
        changed = msgspec.structs.replace(row.value, who="peer:innocent")
        if how.startswith("removed"):
            await store.write(Delete(AUDIT, key_of(touched)))
        elif how == "altered":
            await store.write(Put(AUDIT, key_of(touched), changed))
        else:  # with a hash that fits, but the next row does not follow it any more
            changed = msgspec.structs.replace(changed, hash=audit_module.row_hash(changed))
            await store.write(Put(AUDIT, key_of(touched), changed))
        verdict = await audit.verify()
        assert verdict.broken_at == (4 if how == "forged" else touched)
        assert verdict.reason
        assert verdict.rows == verdict.broken_at - 1


async def test_a_head_that_was_set_back_is_seen(opener: Opener) -> None:
    async with opener() as store:
        audit = await filled(store, 3)
        row = await store.fetch(AUDIT, key_of(3))
        assert row is not None
        await store.write(
            Put(AUDIT_HEADS, "head", AuditHead(number=3, hash="f" * 64, first=1, anchor="0" * 64))
        )
        assert (await audit.verify()).broken_at == 3


@pytest.mark.parametrize("number", [0, 4, 9])
async def test_a_row_before_or_after_the_chain_is_seen(opener: Opener, number: int) -> None:
    async with opener() as store:
        audit = await filled(store, 3)
        row = await store.fetch(AUDIT, key_of(3))
        assert row is not None
        stray = msgspec.structs.replace(row.value, number=number)
        await store.write(Put(AUDIT, key_of(number), stray))
        verdict = await audit.verify()
        assert verdict.broken_at == number
        assert ("before the first" if number == 0 else "after the one") in verdict.reason


async def test_a_tail_that_was_cut_off_is_missed_by_who_noted_its_hash(opener: Opener) -> None:
    async with opener() as store:
        audit = await filled(store, 3)
        noted = (await audit.verify()).hash
        await audit.record(Entry("vault.get", "path"))
        assert (await audit.verify(noted)).has_noted is True
        two = await store.fetch(AUDIT, key_of(2))
        assert two is not None
        cut = AuditHead(number=2, hash=two.value.hash, first=1, anchor="0" * 64)
        await store.write(
            [Delete(AUDIT, key_of(3)), Delete(AUDIT, key_of(4)), Put(AUDIT_HEADS, "head", cut)]
        )
        # All that is left is as it was written: nothing here could tell.
        assert (await audit.verify()).broken_at is None
        assert (await audit.verify(noted)).has_noted is False


async def test_what_was_done_is_noted_although_the_caller_left(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "NOTE_WITHIN_S", 60.0)  # no slow disk decides
    async with opener() as store:
        audit = Audit(store)
        with trio.CancelScope() as left:
            left.cancel()
            await audit.note("owner", "vault.put", "a")
        assert [row.action for row in await audit.newest(None)] == ["vault.put"]


async def test_a_store_that_does_not_answer_holds_nobody_up_for_long(
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
) -> None:
    async with open_memory_store(NODE_TABLES, MemoryDatabase()) as store:
        audit = Audit(store)

        async def hold() -> None:
            async with audit._turn:
                await trio.sleep_forever()

        nursery.start_soon(hold)
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
        await audit.note("owner", "vault.put", "a")
        assert trio.current_time() - before == audit_module.NOTE_WITHIN_S
        (record,) = caplog.records
        assert "did not answer" in record.error  # type: ignore[attr-defined]


async def test_a_flood_of_failures_leaves_few_rows_and_says_so(opener: Opener) -> None:
    now = 1_700_000_000.0
    async with opener() as store:
        audit = Audit(store, clock=lambda: now)
        failure = Entry("vault.unlock.failed", "", {"tried": "passphrase"})
        for _ in range(FAILURES_NOTED + 5):
            await audit.record_failure(failure)
        await audit.record_failure(Entry("other.failed", ""))
        rows = await audit.newest(None)
        assert [row.action for row in rows] == [failure.action] * FAILURES_NOTED + ["other.failed"]
        assert [dict(row.details) for row in rows[:-2]] == [failure.details] * (FAILURES_NOTED - 1)
        assert rows[-2].details == {"tried": "passphrase", "more": "left out for an hour"}
        now += NOTED_WITHIN_S + 1
        await audit.record_failure(failure)
        assert (await audit.newest(1))[0].details == failure.details
        assert (await audit.verify()).broken_at is None


async def test_rows_of_several_who_did_something_are_written_together(opener: Opener) -> None:
    async with opener() as store:
        audit = Audit(store)
        await audit.note_all([Entry("a", "x", who="peer:a"), Entry("b", "y", {"n": "1"}, "peer:b")])
        await audit.note_all([Entry("c", "z")])
        rows = await audit.newest(None)
        assert [(row.number, row.who, row.action) for row in rows] == [
            (1, "peer:a", "a"),
            (2, "peer:b", "b"),
            (3, "owner", "c"),
        ]
        assert (await audit.verify()).broken_at is None


async def test_an_empty_log_is_whole(opener: Opener) -> None:
    async with opener() as store:
        verdict = await Audit(store).verify()
        assert (verdict.rows, verdict.broken_at) == (0, None)
        assert await Audit(store).newest(10) == []


async def test_a_long_log_is_trimmed_and_still_verified(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "ROWS_KEPT", 10)
    monkeypatch.setattr(audit_module, "TRIM_ROWS", 4)
    async with opener() as store:
        audit = await filled(store, 40)
        verdict = await audit.verify()
        assert verdict.broken_at is None
        assert 10 <= verdict.rows < 16
        rows = await audit.newest(None)
        assert rows[0].number == verdict.first > 1
        assert "audit.trim" in {row.action for row in rows}
        await store.write(Delete(AUDIT, key_of(verdict.first)))
        assert (await audit.verify()).broken_at == verdict.first


async def test_several_processes_make_one_chain(opener: Opener) -> None:
    async with opener() as first, opener() as second:
        audits = Audit(first), Audit(second)

        async def append(audit: Audit) -> None:
            for _ in range(5):
                await audit.record(Entry("vault.put", "p"))

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(append, audits[number % 2])
        verdict = await audits[0].verify()
        assert (verdict.rows, verdict.broken_at) == (30, None)


async def test_a_follower_sees_each_row_once(opener: Opener, nursery: trio.Nursery) -> None:
    async with opener() as first, opener() as second:
        audit = await filled(first, 3)
        seen: list[int] = []

        async def follow() -> None:
            rows = Audit(second).follow(1)
            try:
                async for row in rows:
                    seen.append(row.number)  # noqa: PERF401  it never ends
            finally:
                with trio.CancelScope(shield=True):
                    await rows.aclose()

        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        await audit.record(Entry("vault.put", "p"))
        with trio.fail_after(60):
            while len(seen) < 3:
                await trio.sleep(0.01)
        assert seen == [2, 3, 4]
        nursery.cancel_scope.cancel()


async def test_a_cancelled_change_has_its_row_or_neither(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)

        async def check() -> None:
            count = await identities.audit.last_number()
            assert count % 2 == len(identities.peers())
            if identities.peers():
                await identities.remove_peer("a")

        assert await cancel_at_every_checkpoint(lambda: identities.put_peer(A), check) >= 1
        assert (await identities.audit.verify()).broken_at is None


async def test_text_of_others_is_cut(opener: Opener) -> None:
    async with opener() as store:
        audit = Audit(store)
        await audit.record(Entry("vault.put", "p" * 5_000, {"x": "y" * 5_000}))
        [row] = await audit.newest(None)
        assert isinstance(row, AuditRow)
        assert (len(row.target), len(row.details["x"])) == (1_024, 1_024)
