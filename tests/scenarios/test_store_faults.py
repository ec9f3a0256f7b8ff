"""A node whose store fails under it: it says so, goes on with what it knows, and loses nothing."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.client import open_control_session, open_session
from alknet.core.config import NodeConfig
from alknet.errors import AlknetError, StoreError
from alknet.node import Node
from alknet.stores.home import DATABASE_FILE, open_home_identities
from tests.scenarios.homes import LOOPBACK, make_home
from tests.scenarios.rig import eventually, make_friend

FRIEND = make_friend("friend", "echo")
OTHER = make_friend("other", "echo")


@contextmanager
def no_room(home: Path) -> Iterator[None]:
    """No file of this process may grow: what a full disk does."""
    longest = max(path.stat().st_size for path in home.iterdir() if path.is_file())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (min(longest, 4096), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def replaced(home: Path) -> Iterator[None]:
    """Another file lies where the database was."""
    path = home / DATABASE_FILE
    path.rename(home / "away")
    path.write_bytes(b"")
    try:
        yield
    finally:
        (home / "away").rename(path)


@contextmanager
def removed(home: Path) -> Iterator[None]:
    """The database is gone."""
    path = home / DATABASE_FILE
    path.rename(home / "away")
    try:
        yield
    finally:
        (home / "away").rename(path)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [no_room, replaced, removed])
async def test_a_node_goes_on_with_what_it_knows_and_writes_again_when_it_can(
    tmp_path: Path, fault: object
) -> None:
    assert callable(fault)
    home = await make_home(tmp_path, FRIEND.peer)
    async with Node.from_home(home, listen=LOOPBACK) as node:
        async with open_session(node.ticket, key=FRIEND.key) as session:
            with fault(home):
                with pytest.raises(StoreError, match=r"node\.db"):
                    await node.identities.put_peer(OTHER.peer)
                answer = await session.call("echo/unary", {"message": 1})
                assert msgspec.json.decode(answer) == {"message": 1}
                async with open_control_session(home) as owner:
                    status = msgspec.json.decode(await owner.call("node/status"))
                assert [peer["name"] for peer in status["peers"]] == ["friend"]
                assert status["store"]["kind"] == "sqlite"
            await node.identities.put_peer(OTHER.peer)
        async with open_session(node.ticket, key=OTHER.key) as session:
            await session.call("echo/unary", {"message": 2})
    async with open_home_identities(home, NodeConfig()) as identities:
        assert [peer.name for peer in identities.peers()] == ["friend", "other"]
        assert (await identities.audit.verify()).broken_at is None


@pytest.mark.slow
async def test_a_store_that_stays_away_ends_what_it_granted_but_not_the_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = await make_home(tmp_path, FRIEND.peer)
    async with Node.from_home(home, listen=LOOPBACK) as node:
        async with (
            open_session(node.ticket, key=FRIEND.key) as session,
            open_control_session(home) as owner,
        ):
            # It is looked at every second: a look that comes late is no fault yet.
            node.identities.max_staleness_s = 2.5
            with removed(home):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_refused_in_the_end, session)
                    with pytest.raises(CallError, match="UNAVAILABLE") as caught:  # noqa: PT012
                        while True:
                            await session.call("node/ping")
                            await trio.sleep(0.05)
                    assert caught.value.retryable
                    assert session.close_reason is None
                    await eventually(lambda: session.close_reason is not None, 20)
                    status = msgspec.json.decode(await owner.call("node/status"))
                    assert status["store"]["staleness_s"] > 3 * 2.5
            await eventually(lambda: node.identities.staleness < 1.5, 20)
        async with open_session(node.ticket, key=FRIEND.key) as session:
            await session.call("node/ping")


async def _refused_in_the_end(session: object) -> None:
    from alknet.call.session import CallSession

    assert isinstance(session, CallSession)
    with pytest.raises(CallError, match="UNAVAILABLE"):
        await session.call("echo/unary", {"message": 1, "delay_ms": 60_000})


@pytest.mark.parametrize("damage", [b"", b"no database", b"SQLite format 3\0" + b"\xff" * 4096])
async def test_a_node_does_not_start_on_a_damaged_store_and_leaves_it_as_it_is(
    tmp_path: Path, damage: bytes
) -> None:
    home = await make_home(tmp_path, FRIEND.peer)
    for path in home.glob(f"{DATABASE_FILE}-*"):
        path.unlink()
    path = home / DATABASE_FILE
    path.write_bytes(damage)
    node = Node.from_home(home, listen=LOOPBACK)
    if not damage:  # an empty file is a new database to SQLite
        async with node:
            assert node.identities.peers() == []
        return
    with pytest.raises(AlknetError, match=r"node\.db"):
        async with node:
            pass
    assert path.read_bytes() == damage
