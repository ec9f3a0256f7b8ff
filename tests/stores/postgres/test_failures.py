"""What a user reads when a server cannot be used; and that nobody ever reads the password."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import psycopg
import pytest
import trio

from alknet.core.storage import Put
from alknet.errors import AlknetError, LocalError, StoreError, Unavailable
from alknet.stores.postgres import link, open_postgres_store, seams
from alknet.stores.postgres.failures import explain
from alknet.stores.postgres.store import open_store
from alknet.stores.postgres.target import Target
from alknet.testing.store_contract import LOG, NOTES, TABLES, Line, Note
from alknet.testing.store_contract.harness import until, values
from tests.stores.postgres.harness import PostgresHarness
from tests.stores.postgres.server import PostgresServer

pytestmark = pytest.mark.interop

PASSWORD = "tr0ub4dor"


async def error_of(url: str) -> AlknetError:
    with pytest.raises((StoreError, Unavailable)) as caught:
        async with open_postgres_store(url, TABLES):
            pass
    assert PASSWORD not in _everything(caught.value)
    return caught.value


def _everything(exc: BaseException | None) -> str:
    return "" if exc is None else f"{exc!r} {exc} {_everything(exc.__cause__ or exc.__context__)}"


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    found = await error_of(f"postgresql:///alknet?host={tmp_path}")
    assert isinstance(found, Unavailable)
    assert re.search(r"cannot connect to .*/alknet: the server cannot be reached", str(found))
    assert "check that it runs" in str(found)


async def test_a_port_on_which_nobody_listens() -> None:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        found = await error_of(f"postgresql://u:{PASSWORD}@127.0.0.1:{port}/d")
    assert isinstance(found, Unavailable)
    assert f"cannot connect to postgresql://u@127.0.0.1:{port}/d" in str(found)
    assert "refused" in str(found)


async def test_a_host_that_does_not_exist() -> None:
    found = await error_of(f"postgresql://u:{PASSWORD}@nowhere.invalid/d")
    assert isinstance(found, Unavailable)
    assert "the name of the host cannot be looked up" in str(found)


async def test_a_server_that_never_answers() -> None:
    with trio.socket.socket() as silent:
        await silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        found = await error_of(f"postgresql://u@127.0.0.1:{port}/d?connect_timeout=1")
    assert isinstance(found, Unavailable)
    assert "no answer within 1 s" in str(found)


async def test_a_wrong_password(server: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    server.execute(f"CREATE ROLE locked LOGIN PASSWORD '{PASSWORD}x'")
    with caplog.at_level(logging.DEBUG):
        found = await error_of(server.url(user=f"locked:{PASSWORD}"))
        missing = await error_of(server.url(user="locked"))
    server.execute("DROP ROLE locked")
    for one in (found, missing):
        assert isinstance(one, StoreError)
        assert "user or password is wrong: check both, also in ~/.pgpass" in str(one)
    assert PASSWORD not in caplog.text


async def test_a_role_or_a_database_that_does_not_exist(server: PostgresServer) -> None:
    role = await error_of(server.url(user=f"nobody:{PASSWORD}"))
    assert isinstance(role, StoreError)
    assert "there is no such role: make one with createuser" in str(role)
    database = await error_of(server.url("nothing"))
    assert isinstance(database, StoreError)
    assert "there is no such database: make it with createdb" in str(database)


async def test_a_server_without_tls_where_it_is_demanded(server: PostgresServer) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def refuse_tls(stream: trio.SocketStream) -> None:
        async with stream:
            assert (await stream.receive_some(8))[4:] == (80877103).to_bytes(4, "big")
            await stream.send_all(b"N")
            await stream.receive_some(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, refuse_tls, listeners)
        port = listeners[0].socket.getsockname()[1]
        found = await error_of(f"postgresql://u@127.0.0.1:{port}/d?sslmode=verify-full")
        nursery.cancel_scope.cancel()
    assert isinstance(found, StoreError)
    assert "TLS with the server failed: check sslmode" in str(found)


async def test_a_server_that_is_read_only(harness: PostgresHarness) -> None:
    harness.execute(f"ALTER DATABASE {harness.name} SET default_transaction_read_only = on")
    found = await error_of(harness.url)
    assert isinstance(found, StoreError)
    assert "the server is read-only, as a standby is: name the primary" in str(found)


async def test_a_server_that_is_too_old(
    harness: PostgresHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "OLDEST_SERVER", 990_000)
    found = await error_of(harness.url)
    assert re.search(r"the server is PostgreSQL \d+; alknet needs 99 or newer", str(found))


async def test_a_database_that_is_not_in_utf_8(server: PostgresServer) -> None:
    name = server.new_database("ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    found = await error_of(server.url(name))
    assert "the database's encoding is LATIN1: make one with createdb --encoding" in str(found)


async def test_a_role_needs_few_rights(harness: PostgresHarness) -> None:
    harness.execute("CREATE ROLE modest LOGIN")
    url = harness.server.url(harness.name, user="modest")
    try:
        found = await error_of(url)
        assert isinstance(found, StoreError)
        assert "GRANT CREATE ON DATABASE" in str(found)
        async with harness.open():
            pass
        harness.execute(
            "GRANT USAGE ON SCHEMA alknet TO modest;"
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA alknet TO modest"
        )
        async with open_store(url, TABLES) as store, harness.open() as other:
            await store.write([Put(NOTES, "a", Note("1", ("x",))), Put(LOG, "a", Line("1"))])
            await store._tidy()
            await until(lambda: other.rows(NOTES) == store.rows(NOTES))
    finally:
        harness.execute("DROP OWNED BY modest; DROP ROLE modest")


@pytest.mark.parametrize(
    ("state", "kind", "words"),
    [
        ("53100", StoreError, "the server's disk is full: free some space there"),
        ("25006", StoreError, "the server is read-only"),
        ("58030", StoreError, "the server's disk failed"),
        ("40001", Unavailable, "it met with another transaction"),
        ("57014", Unavailable, "the server broke it off"),
    ],
)
async def test_a_server_that_fails_while_it_writes(
    state: str, kind: type[AlknetError], words: str, harness: PostgresHarness
) -> None:
    async with harness.open() as store:
        await store.write(Put(NOTES, "a", Note("1")))
        harness.execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$BEGIN RAISE 'as the test wants' USING ERRCODE = '{state}'; END$$;"
            "CREATE TRIGGER fail BEFORE INSERT ON alknet.row EXECUTE FUNCTION fail()"
        )
        with pytest.raises(kind, match=f"cannot write .*: {words}"):
            await store.write(Put(NOTES, "b", Note("1")))
        assert values(store.rows(NOTES)) == {"a": "1"}
        harness.execute("DROP TRIGGER fail ON alknet.row")
        assert await store.write(Put(NOTES, "b", Note("1"))) == (2,)


async def test_a_schema_that_is_gone(harness: PostgresHarness) -> None:
    async with harness.open() as store:
        harness.execute("DROP SCHEMA alknet CASCADE")
        with pytest.raises(StoreError, match="restore a backup"):
            await store.write(Put(NOTES, "b", Note("1")))
        with pytest.raises(StoreError, match="restore a backup"):
            await store.fetch(NOTES, "b")


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{PASSWORD}@host:port/db",
        f"postgresql://user:{PASSWORD}@host/db?no_such_option=1",
        f"postgresql://user:{PASSWORD}%zz@host/db",
        f"postgresql://user:x@{PASSWORD}@[host/db",
        f"postgresql://user:{PASSWORD}@host/db?connect_timeout=soon",
        f"postgresql://user:{PASSWORD}/x@host/db",
        f"postgresql://user:12/{PASSWORD}@host/db",
        f"mysql://user:{PASSWORD}@host/db",
        PASSWORD,
        "",
    ],
)
def test_an_address_that_is_none_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(LocalError, match="expected postgresql://user:password@host") as caught:
        open_postgres_store(url, TABLES).__aenter__().send(None)
    assert PASSWORD not in f"{caught.value}"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


async def test_an_address_says_all_but_the_password() -> None:
    url = f"postgresql://me:{PASSWORD}@db.example:6432/alknet?sslmode=verify-full&sslrootcert=/ca"
    target = Target(url)
    assert str(target) == "postgresql://me@db.example:6432/alknet"
    assert PASSWORD not in repr(target)
    numbers = Target(f"postgresql://me:{PASSWORD}@127.0.0.1/alknet?sslmode=verify-full&options=-cx")
    (attempt,) = await numbers.attempts()
    for part in (f"password={PASSWORD}", "sslmode=verify-full", "hostaddr=127.0.0.1", "-cx"):
        assert part in attempt
    assert PASSWORD not in str(explain(psycopg.OperationalError("down"), "read", target))


async def test_several_servers_are_tried_in_turn(harness: PostgresHarness, tmp_path: Path) -> None:
    hosts = f"{tmp_path},{harness.server.directory}"
    url = f"postgresql://postgres@/{harness.name}?host={hosts}"
    async with open_store(url, TABLES) as store:
        await store.write(Put(NOTES, "a", Note("1")))
    split = await Target("postgresql://127.0.0.1:1,127.0.0.2:2/db").attempts()
    assert [re.findall(r"hostaddr=(\S+)|port=(\S+)", one) for one in split] == [
        [("", "1"), ("127.0.0.1", "")],
        [("", "2"), ("127.0.0.2", "")],
    ]


def test_the_installed_psycopg_has_what_is_built_on() -> None:
    assert seams.missing_names() == []
    seams.require()
    assert seams.missing_names(object) == ["_connect_gen", "_cancel_gen", "wait", *_ATTRIBUTES]
    with pytest.raises(ImportError, match=r"lacks .*wait; install psycopg>=3.3,<3.4"):
        seams.require(["wait"])


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "alknet.stores.postgres.store", None)
    with pytest.raises(LocalError, match=r"pip install 'alknet\[postgres\]'"):
        open_postgres_store("postgresql://host/db", TABLES)


_ATTRIBUTES = ("lock", "_autocommit")
