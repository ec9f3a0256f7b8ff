"""A connection that Trio drives: cancelling, silence, sharing."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import psycopg
import pytest
import trio

from alknet.stores.postgres.link import Link, dial
from alknet.stores.postgres.pool import Pool
from alknet.stores.postgres.target import Target
from alknet.testing.store_contract.harness import until
from tests.stores.postgres.proxy import open_proxy
from tests.stores.postgres.server import PostgresServer

pytestmark = pytest.mark.interop


@pytest.fixture
async def link(server: PostgresServer) -> AsyncGenerator[Link]:
    found = await dial(Target(server.url()))
    yield found
    found.drop()


async def one(link: Link, query: str) -> object:
    row = await (await link.execute(query.encode())).fetchone()
    assert row is not None
    return row[0]


async def test_a_cancelled_query_is_stopped_and_the_connection_goes_on(
    server: PostgresServer, link: Link
) -> None:
    pid = link.info.backend_pid
    state = f"SELECT state FROM pg_stat_activity WHERE pid = {pid}"

    async def cancel_what_runs(scope: trio.CancelScope) -> None:
        # The server ignores it before: then the connection would be given up.
        await until(lambda: server.execute(state) == [("active",)])
        scope.cancel()

    for _ in range(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_what_runs, nursery.cancel_scope)
            await link.execute("SELECT pg_sleep(600)")
        assert nursery.cancel_scope.cancelled_caught
        assert link.is_idle
        assert server.execute(state) == [("idle",)]
    assert await one(link, "SELECT 42") == 42
    assert link.info.backend_pid == pid


async def test_a_cancelled_query_that_does_not_stop_costs_the_connection(
    server: PostgresServer,
) -> None:
    async with open_proxy(server.socket_path) as proxy:
        link = await dial(Target(proxy.url("postgres")))
        link.stop_timeout_s = 0.1
        proxy.pause()
        with trio.move_on_after(0.01):
            await link.execute("SELECT 1")
        assert link.closed
        link.drop()


async def test_a_server_that_says_nothing_is_taken_for_lost(link: Link) -> None:
    link.silence_s = 0.05
    with pytest.raises(psycopg.OperationalError, match="the server said nothing"):
        await link.execute("SELECT pg_sleep(600)")
    assert link.closed


async def test_tasks_that_share_a_connection_take_turns(link: Link) -> None:
    found: list[object] = []

    async def ask(n: int) -> None:
        found.append(await one(link, f"SELECT {n} FROM pg_sleep(0.001)"))

    async with trio.open_nursery() as nursery:
        for n in range(5):
            nursery.start_soon(ask, n)
    assert sorted(map(str, found)) == ["0", "1", "2", "3", "4"]


async def test_much_is_sent_and_received(link: Link) -> None:
    text = "x" * 5_000_000
    found = await link.execute("SELECT %s || %s", (text, text))
    row = await found.fetchone()
    assert row is not None
    assert row[0] == text + text


async def test_no_commit_is_less_than_durable(server: PostgresServer) -> None:
    for asked, got in {"off": "on", "remote_apply": "remote_apply", "local": "local"}.items():
        link = await dial(Target(server.url(options=f"-c synchronous_commit={asked}")))
        assert await one(link, "SHOW synchronous_commit") == got
        link.drop()


async def test_a_pool_replaces_what_died_and_is_never_larger(server: PostgresServer) -> None:
    opened = 0

    async def open_link() -> Link:
        nonlocal opened
        opened += 1
        return await dial(Target(server.url()))

    async def pid(link: Link) -> int:
        return int(str(await one(link, "SELECT pg_backend_pid()")))

    pool = Pool(open_link, 2)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(pool.run, pid)
    assert opened <= 2
    first = await pool.run(pid)
    for link in pool._idle:
        server.execute(f"SELECT pg_terminate_backend({link.info.backend_pid}, 10000)")
    assert await pool.run(pid) != first
    pool.close()
    with pytest.raises(trio.ClosedResourceError):
        await pool.run(pid)


async def test_a_pool_gives_no_open_transaction_to_the_next(server: PostgresServer) -> None:
    async def leave_open(link: Link) -> None:
        await link.execute("BEGIN")

    async def status(link: Link) -> str:
        return link.info.transaction_status.name

    pool = Pool(lambda: dial(Target(server.url())), 1)
    await pool.run(leave_open)
    assert await pool.run(status) == "IDLE"
    pool.close()
