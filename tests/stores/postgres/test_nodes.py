"""Whole nodes that share one database: one set of peers, one process for each identity."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import trio

from alknet.client import open_session
from alknet.core.config import load_config
from alknet.core.contracts import CloseCode
from alknet.core.home import CONFIG_FILE
from alknet.errors import Conflict, LocalError
from alknet.node import Node
from alknet.stores.home import DATABASE_FILE, open_home_identities
from alknet.vault.keyfile import create_home
from tests.scenarios.homes import LOOPBACK, make_home
from tests.scenarios.rig import ended, make_friend
from tests.stores.postgres.harness import PostgresHarness

CONFIG = 'node.store_file = "store.url"\n'
FRIEND = make_friend("friend", "echo")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a machine that is busy for two seconds refuse nobody: that is tested elsewhere."""
    monkeypatch.setattr("alknet.stores.home.STALE_AFTER_S", 60.0)


async def shared_home(directory: Path, harness: PostgresHarness) -> Path:
    """Make a home of a new node whose store is the database of *harness*."""
    directory.mkdir()
    home = await make_home(directory)
    address = home / "store.url"
    address.touch(0o600)
    address.write_text(f"{harness.url}\n")
    (home / CONFIG_FILE).write_text(CONFIG)
    for path in home.glob(f"{DATABASE_FILE}*"):
        path.unlink()
    return home


async def test_a_peer_that_is_disabled_on_one_node_loses_its_connections_on_the_other(
    tmp_path: Path, harness: PostgresHarness
) -> None:
    homes = [await shared_home(tmp_path / name, harness) for name in ("one", "two")]
    async with (
        Node.from_home(homes[0], listen=LOOPBACK) as one,
        Node.from_home(homes[1], listen=LOOPBACK) as two,
    ):
        await one.identities.put_peer(FRIEND.peer)
        with trio.fail_after(60):
            while two.identities.peer("friend") is None:
                await two.identities.wait_changed(two.identities.version)
        async with open_session(two.ticket, key=FRIEND.key) as session:
            await session.call("echo/unary", {"message": 1})
            disabled = msgspec.structs.replace(FRIEND.peer, enabled=False)
            await one.identities.update_peer(disabled)
            assert (await ended(session, within_s=60)).code == CloseCode.REVOKED
        store = two.status()["store"]
        assert store["kind"] == "postgresql"
        assert store["size_bytes"] is None
    assert not (homes[0] / DATABASE_FILE).exists()


async def test_a_second_process_with_one_identity_is_refused(
    tmp_path: Path, harness: PostgresHarness
) -> None:
    home = await shared_home(tmp_path / "one", harness)
    copy = tmp_path / "copy"
    create_home(copy)
    shutil.copytree(home, copy, dirs_exist_ok=True)
    async with Node.from_home(home, listen=LOOPBACK):
        with pytest.raises(Conflict, match="runs already on this store, on"):
            async with Node.from_home(copy, listen=LOOPBACK):
                pass
    async with Node.from_home(copy, listen=LOOPBACK):  # given back, so it begins at once
        pass


async def test_an_address_that_others_may_read_is_refused_and_not_shown(
    tmp_path: Path, harness: PostgresHarness
) -> None:
    home = await shared_home(tmp_path / "one", harness)
    (home / "store.url").chmod(0o644)
    with pytest.raises(LocalError, match="others may read") as caught:
        async with open_home_identities(home, load_config(home / CONFIG_FILE)):
            pass
    assert harness.url not in str(caught.value)
