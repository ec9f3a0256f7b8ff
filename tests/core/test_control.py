from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from alknet.core.contracts import CARRIER_UNIX, Connection
from alknet.core.endpoint import Endpoint, connect_control, serve_control
from alknet.core.endpoint.control import UidCheck
from alknet.core.endpoint.unixsocket import is_own_uid
from alknet.core.identity import OWNER
from alknet.core.router import Router
from alknet.core.tcp.connection import StreamConnection
from alknet.errors import Denied, LocalError, Unavailable
from alknet.testing.contract import cancel_at_every_checkpoint
from tests.core.endpoint_kit import Handler, TableIdentities, ask, echo


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    return path


def nobody(uid: int) -> bool:
    return False


@asynccontextmanager
async def node(
    home: Path, handler: Handler | None = None, is_allowed: UidCheck = is_own_uid
) -> AsyncGenerator[Endpoint]:
    handler = handler or Handler(echo, alpns=("alknet/call",), requires_identity=True)
    identities = TableIdentities()
    identities.is_stale = True
    endpoint = Endpoint(Router([handler]), identities)
    async with endpoint.running() as nursery:
        path = await nursery.start(partial(serve_control, home, endpoint, is_allowed=is_allowed))
        assert path == home / "control.sock"
        yield endpoint
        endpoint.hurry()


@asynccontextmanager
async def client(home: Path) -> AsyncGenerator[StreamConnection]:
    connection = await connect_control(home)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.wait_closed)
        yield connection
        connection.close()


async def test_the_control_socket_speaks_as_the_owner_even_when_the_store_is_stale(
    home: Path,
) -> None:
    seen: list[Connection] = []

    async def look(connection: Connection) -> None:
        seen.append(connection)
        await echo(connection)

    handler = Handler(look, alpns=("alknet/call",), requires_identity=True)
    async with node(home, handler) as endpoint, client(home) as connection:
        assert await ask(connection) == b"ping"
        (status,) = endpoint.connections()
        assert (status.carrier, status.identity, status.peer) == ("unix", "owner", None)
        assert f"pid {os.getpid()}" in status.address
    assert seen[0].identity == OWNER
    assert seen[0].carrier is CARRIER_UNIX


async def test_the_socket_is_its_users_alone_and_the_umask_is_as_before(home: Path) -> None:
    umask = os.umask(0o022)
    try:
        async with node(home):
            assert stat.S_IMODE((home / "control.sock").stat().st_mode) == 0o600
            assert os.umask(0o022) == 0o022
    finally:
        os.umask(umask)


async def test_the_socket_file_goes_with_the_node(home: Path) -> None:
    async with node(home):
        pass
    assert not (home / "control.sock").exists()


async def test_a_socket_file_that_another_put_there_stays(home: Path) -> None:
    async with node(home):
        (home / "control.sock").unlink()
        (home / "control.sock").write_text("mine")
    assert (home / "control.sock").read_text() == "mine"


async def test_another_user_is_shut_out_and_logged(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with node(home, is_allowed=nobody) as endpoint, client(home) as connection:
        await connection.wait_closed()
        assert endpoint.connections() == []
    refused = [r for r in caplog.records if r.getMessage() == "control.refused"]
    assert [(r.levelno, r.__dict__["uid"]) for r in refused] == [(logging.WARNING, os.geteuid())]


async def test_a_client_does_not_talk_to_another_users_node(home: Path) -> None:
    async with node(home):
        with pytest.raises(Denied, match="run by another user"):
            await connect_control(home, is_allowed=nobody)


async def test_a_socket_left_by_a_dead_node_is_replaced(home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home / "control.sock"))
    with pytest.raises(Unavailable, match="no node runs"):
        await connect_control(home)
    async with node(home), client(home) as connection:
        assert await ask(connection) == b"ping"


async def test_a_living_nodes_socket_is_not_taken(home: Path) -> None:
    async with node(home):
        endpoint = Endpoint(Router([]), TableIdentities())
        with pytest.raises(LocalError, match="already"):
            await serve_control(home, endpoint)
        async with client(home) as connection:
            assert await ask(connection) == b"ping"


async def test_a_file_that_is_no_socket_is_not_removed(home: Path) -> None:
    (home / "control.sock").write_text("precious")
    with pytest.raises(LocalError, match="not a socket"):
        await serve_control(home, Endpoint(Router([]), TableIdentities()))
    assert (home / "control.sock").read_text() == "precious"


async def test_a_home_that_others_can_write_to_is_refused(home: Path) -> None:
    home.chmod(0o770)
    with pytest.raises(LocalError, match="chmod 700"):
        await serve_control(home, Endpoint(Router([]), TableIdentities()))


async def test_a_home_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="alknet init"):
        await serve_control(tmp_path / "none", Endpoint(Router([]), TableIdentities()))


async def test_a_path_that_is_too_long_is_explained_at_both_ends(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 120)
    home.mkdir(mode=0o700)
    with pytest.raises(LocalError, match="at most 107: choose a shorter home"):
        await serve_control(home, Endpoint(Router([]), TableIdentities()))
    with pytest.raises(LocalError, match="at most 107"):
        await connect_control(home)


async def test_where_no_node_runs_the_client_says_how_to_start_one(home: Path) -> None:
    with pytest.raises(Unavailable, match="`alknet up`"):
        await connect_control(home)


async def test_a_client_cancelled_anywhere_leaves_the_node_as_it_was(home: Path) -> None:
    async with node(home) as endpoint:

        async def talk() -> None:
            connection = await connect_control(home)
            try:
                stream = await connection.open_stream()
                await stream.send_all(b"ping")
                assert await stream.receive_some() == b"ping"
            finally:
                with trio.CancelScope(shield=True):
                    await connection.aclose()

        async def nobody_is_left() -> None:
            with trio.fail_after(60):
                while endpoint.connections():
                    await trio.lowlevel.checkpoint()

        assert await cancel_at_every_checkpoint(talk, nobody_is_left) >= 4
