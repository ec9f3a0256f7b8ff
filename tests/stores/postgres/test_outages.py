"""Lost connections, a server that restarts, networks that stop: fail closed, catch up, lose
nothing that was acknowledged."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio

from alknet.core.storage import ABSENT, Changed, Delete, OutcomeUnknown, Put, Reloaded, Store
from alknet.errors import Unavailable
from alknet.stores.postgres import follower, link, store
from alknet.stores.postgres.store import PostgresStore, open_store
from alknet.testing.store_contract import NOTES, TABLES, Note
from alknet.testing.store_contract.harness import until, values
from tests.stores.postgres.harness import PostgresHarness
from tests.stores.postgres.proxy import open_proxy
from tests.stores.postgres.server import open_server

pytestmark = pytest.mark.interop

# More than the heartbeat of these tests, which is 0.05 s.
STALE_S = 0.5


async def write_until_it_lands(target: Store, key: str) -> None:
    while True:
        try:
            await target.write(Put(NOTES, key, Note("1")))
        except Unavailable:
            await trio.sleep(0.01)
        else:
            return


async def test_nothing_is_missed_while_the_listener_dies_again_and_again(
    harness: PostgresHarness,
) -> None:
    seen: list[str] = []

    async def follow(two: PostgresStore) -> None:
        async for change in two.changes():
            assert isinstance(change, Changed)
            seen.append(change.key)

    async with harness.open() as one, harness.open() as two, trio.open_nursery() as nursery:
        nursery.start_soon(follow, two)
        await trio.testing.wait_all_tasks_blocked()
        for n in range(30):
            if n % 6 == 0 and two._follower._link is not None:
                harness.break_listener(two)
            await one.write(Put(NOTES, f"{n}", Note("1")))
        await until(lambda: len(seen) == 30)
        nursery.cancel_scope.cancel()
    assert seen == [f"{n}" for n in range(30)]


async def test_a_restart_of_the_server_is_survived(harness: PostgresHarness) -> None:
    async with harness.open() as one, harness.open() as two:
        await one.write(Put(NOTES, "before", Note("1")))
        await until(lambda: two.get(NOTES, "before") is not None)
        harness.server.stop()
        with pytest.raises(Unavailable, match="cannot"):
            await one.write(Put(NOTES, "while", Note("1")))
        with pytest.raises(Unavailable):
            await one.fetch(NOTES, "before")
        assert one.get(NOTES, "before") is not None
        await until(lambda: one.staleness > STALE_S)
        harness.server.start()
        await one.write(Put(NOTES, "after", Note("1")))
        await until(lambda: two.get(NOTES, "after") is not None)
        await until(lambda: max(one.staleness, two.staleness) < STALE_S)
        assert values(two.rows(NOTES)) == {"before": "1", "after": "1"}
        assert await two.fetch(NOTES, "after") == two.get(NOTES, "after")


@pytest.mark.parametrize("is_noticed", [False, True])
async def test_a_network_that_stops_makes_reads_stale_and_loses_nothing(
    is_noticed: bool, harness: PostgresHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "SILENCE_S", 60.0)
    async with open_proxy(harness.server.socket_path) as proxy, harness.open() as near:
        async with open_store(proxy.url(harness.name), TABLES) as far:
            # Short, so that attempts to connect again give up while nothing is forwarded.
            far.target.connect_timeout_s = 1.0
            await near.write([Put(NOTES, key, Note(key)) for key in ("kept", "revoked")])
            await until(lambda: len(far.rows(NOTES)) == 2)
            feed = far.changes()
            if is_noticed:  # only by the connection that the network stops for
                assert far._follower._link is not None
                far._follower._link.silence_s = 0.3
            proxy.pause()
            await near.write(Delete(NOTES, "revoked"))
            await near.write(Put(NOTES, "new", Note("new")))
            await until(lambda: far.staleness > STALE_S)
            if is_noticed:
                await until(lambda: far._follower._link is None)
            assert far.get(NOTES, "revoked") is not None
            proxy.resume()
            await until(lambda: far.version == near.version)
            assert far.rows(NOTES) == near.rows(NOTES)
            await until(lambda: far.staleness < STALE_S)
            found = [await anext(feed), await anext(feed)]
            assert [c.key for c in found if isinstance(c, Changed)] == ["revoked", "new"]


async def test_a_write_into_a_network_that_stopped_is_refused_in_time(
    harness: PostgresHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_proxy(harness.server.socket_path) as proxy:
        async with open_store(proxy.url(harness.name), TABLES) as far:
            far.target.connect_timeout_s = 1.0
            await far.write(Put(NOTES, "a", Note("1")))
            for kept in far._writers._idle:
                kept.silence_s = 0.2
            proxy.pause()
            with pytest.raises(Unavailable, match="cannot"):
                await far.write(Put(NOTES, "b", Note("1")))
            proxy.resume()
            await write_until_it_lands(far, "c")
            assert values(far.rows(NOTES)) == {"a": "1", "c": "1"}


async def test_closing_does_not_wait_long_for_a_network_that_stopped(
    harness: PostgresHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "CLOSE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(link, "STOP_TIMEOUT_S", 0.2)
    failed: list[int] = []

    async def write(target: Store, n: int) -> None:
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await target.write(Put(NOTES, f"{n}", Note("1")))
        failed.append(n)

    async with (
        open_proxy(harness.server.socket_path) as proxy,
        trio.open_nursery() as nursery,
        open_store(proxy.url(harness.name), TABLES) as far,
    ):
        proxy.pause()
        for n in range(3):
            nursery.start_soon(write, far, n)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(link.SILENCE_S):
            await far.aclose()
    assert sorted(failed) == [0, 1, 2]


async def test_a_commit_whose_answer_was_lost_is_found_done(harness: PostgresHarness) -> None:
    async with (
        open_proxy(harness.server.socket_path) as proxy,
        open_store(proxy.url(harness.name), TABLES) as far,
    ):
        proxy.cut_at, proxy.is_cut_after = b"COMMIT", True
        (version,) = await far.write(Put(NOTES, "a", Note("1")), expect=ABSENT)
        assert proxy.cuts == 1
        row = far.get(NOTES, "a")
        assert row is not None
        assert row.version == version


async def test_a_commit_that_did_not_arrive_changed_nothing(harness: PostgresHarness) -> None:
    async with (
        open_proxy(harness.server.socket_path) as proxy,
        open_store(proxy.url(harness.name), TABLES) as far,
    ):
        proxy.cut_at = b"COMMIT"
        with pytest.raises(Unavailable, match="lost before the commit"):
            await far.write(Put(NOTES, "a", Note("1")))
        assert proxy.cuts == 1
        assert await far.fetch(NOTES, "a") is None
        await far.write(Put(NOTES, "a", Note("2")), expect=ABSENT)


async def test_a_commit_that_nobody_can_be_asked_about_is_unknown(
    harness: PostgresHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SETTLE_S", 0.1)
    async with (
        open_proxy(harness.server.socket_path) as proxy,
        open_store(proxy.url(harness.name), TABLES) as far,
    ):
        proxy.cut_at, proxy.is_cut_after = b"COMMIT", True

        async def refuse(_: object, __: object) -> str | None:
            return "in progress"

        monkeypatch.setattr(store, "outcome", refuse)
        with pytest.raises(OutcomeUnknown, match="read before you try again"):
            await far.write(Put(NOTES, "a", Note("1")))
        await until(lambda: far.get(NOTES, "a") is not None)


async def test_a_batch_that_loses_its_connection_is_done_again(harness: PostgresHarness) -> None:
    async with (
        open_proxy(harness.server.socket_path) as proxy,
        open_store(proxy.url(harness.name), TABLES) as far,
    ):
        await far.write(Put(NOTES, "a", Note("1")))
        proxy.cut_at, proxy.is_cut_after = b"do_batch", True
        for kept in far._writers._idle:
            kept.prepare_threshold = None  # its text is sent each time
        (version,) = await far.write(Put(NOTES, "b", Note("1")))
        assert proxy.cuts == 1
        assert version == 2


async def test_a_server_that_lost_changes_is_read_anew_and_numbers_go_on(
    harness: PostgresHarness, caplog: pytest.LogCaptureFixture
) -> None:
    async with harness.open() as one:
        await one.write(Put(NOTES, "a", Note("old")))
        for n in range(5):
            await one.write(Put(NOTES, "lost", Note(str(n))))
        feed = one.changes()
        # As a backup that was put in place, or a standby that lagged.
        harness.execute(
            "BEGIN; ALTER TABLE alknet.row DISABLE TRIGGER USER;"
            "ALTER TABLE alknet.change DISABLE TRIGGER USER;"
            "DELETE FROM alknet.row WHERE version > 1; DELETE FROM alknet.change WHERE seq > 1;"
            "ALTER TABLE alknet.row ENABLE TRIGGER USER;"
            "ALTER TABLE alknet.change ENABLE TRIGGER USER; COMMIT"
        )
        await until(lambda: one.get(NOTES, "lost") is None)
        assert values(one.rows(NOTES)) == {"a": "old"}
        assert await anext(feed) == Reloaded(7)
        assert await one.write(Put(NOTES, "b", Note("1"))) == (8,)
    assert "store.reloaded" in caplog.messages


async def test_a_standby_that_takes_over_is_found(harness: PostgresHarness) -> None:
    server = harness.server
    with open_server(server) as standby:
        hosts = f"{standby.directory},{server.directory}"
        url = f"postgresql://postgres@/{harness.name}?host={hosts}"
        async with open_store(url, TABLES) as one, open_store(url, TABLES) as two:
            await one.write(Put(NOTES, "before", Note("1")))
            written = server.execute("SELECT pg_current_wal_lsn()")[0][0]
            replayed = f"SELECT pg_last_wal_replay_lsn() >= '{written}'"
            await until(lambda: standby.execute(replayed) == [(True,)])
            server.stop()
            standby.execute("SELECT pg_promote()")
            try:
                await write_until_it_lands(one, "after")
                await until(lambda: two.get(NOTES, "after") is not None)
                assert values(two.rows(NOTES)) == {"before": "1", "after": "1"}
            finally:
                server.start()


async def test_nothing_is_written_to_another_server_before_it_was_read(
    harness: PostgresHarness,
) -> None:
    async with harness.open() as one:
        await one.write(Put(NOTES, "a", Note("1")))
        one._follower.history = "the server before"
        with pytest.raises(Unavailable, match="another server has taken over"):
            await one.write(Put(NOTES, "b", Note("1")))
        assert not one._writers._idle
        harness.break_listener(one)
        await write_until_it_lands(one, "b")
        assert values(one.rows(NOTES)) == {"a": "1", "b": "1"}


async def test_attempts_to_connect_again_grow_apart(
    harness: PostgresHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    sleep = trio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(min(seconds, 0.001))

    async with harness.open() as one:
        async with harness.cut_off(one):
            monkeypatch.setattr(trio, "sleep", noted)
            while len(pauses) < 20:
                await trio.lowlevel.checkpoint()
            monkeypatch.undo()
        await until(lambda: one.staleness < STALE_S)
    assert pauses[-1] == follower.RETRY_MAX_S
    assert all(later == min(2 * earlier, 2.0) for earlier, later in pairwise(pauses))
    assert [m for m in caplog.messages if m == "store.unreadable"] == ["store.unreadable"]
