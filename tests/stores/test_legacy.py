"""Homes from before there were stores: nothing is lost on the way, whatever interrupts it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.core.address import Address
from alknet.core.config import NodeConfig
from alknet.core.identity import Grant, NodeId, Peer
from alknet.errors import StoreError
from alknet.node import Node
from alknet.stores.home import open_home_identities
from alknet.stores.legacy import BACKUP_DIRECTORY, needs_migration

FIXTURE = Path(__file__).with_name("old_home")
"""A home as alknet 0.2 wrote it: a key in PEM, ``node.toml`` and ``state.json``."""
OLD_KEY = Ed25519PrivateKey.from_private_bytes(b"\x42" * 32)
CONFIG = NodeConfig()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    target = tmp_path / "home"
    shutil.copytree(FIXTURE, target)
    target.chmod(0o700)
    return target


async def names(home: Path) -> list[str]:
    async with open_home_identities(home, CONFIG) as identities:
        return [peer.name for peer in identities.peers()]


async def test_an_old_home_is_brought_into_the_store_with_a_backup(home: Path) -> None:
    before = (home / "state.json").read_bytes()
    async with open_home_identities(home, CONFIG) as identities:
        hub = identities.peer("hub")
        assert hub == Peer(
            name="hub",
            fingerprints=(NodeId(b"\x11" * 32).fingerprint,),
            scopes=("echo", "fs:*"),
            resources=(Grant("tty", "a:b", "read"),),
            display_name="the hub",
            addresses=("hub.example.org:4433",),
        )
        assert [peer.enabled for peer in identities.peers()] == [True, False]
        [key] = identities.api_keys()
        assert (key.prefix, key.name, key.expires_at) == ("yyyyyyyb", "ci", 2_000_000_000.0)
        [row] = await identities.audit.newest(None)
        assert (row.action, row.details) == ("store.migrate", {"rows": "3"})
    assert not needs_migration(home)
    backup = home / BACKUP_DIRECTORY / "state.json"
    assert backup.read_bytes() == before
    assert backup.stat().st_mode & 0o777 == 0o600
    assert not list(home.glob("state.json*"))
    assert await names(home) == ["hub", "laptop"]


async def test_it_happens_once(home: Path) -> None:
    async with open_home_identities(home, CONFIG) as identities:
        await identities.remove_peer("hub")
    assert await names(home) == ["laptop"]


async def test_a_second_file_is_backed_up_beside_the_first(home: Path) -> None:
    await names(home)
    (home / "state.json").write_text('{"format":1,"peers":[{"name":"later"}]}')
    assert await names(home) == ["hub", "laptop", "later"]
    assert sorted(path.name for path in (home / BACKUP_DIRECTORY).iterdir()) == [
        "state.json",
        "state.json.1",
    ]


async def test_two_processes_that_start_at_once_do_it_once(home: Path) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(names, home)
    async with open_home_identities(home, CONFIG) as identities:
        assert len(identities.peers()) == 2
        assert await identities.audit.last_number() == 1


@pytest.mark.slow
@pytest.mark.parametrize("point", ["_back_up", "_take_over", "sync_directory"])
async def test_killed_half_way_it_goes_on_at_the_next_start(home: Path, point: str) -> None:
    arguments = [sys.executable, "-c", _KILLED, str(home), point]
    result = await trio.run_process(arguments, check=False, stderr=subprocess.DEVNULL)
    assert result.returncode == -signal.SIGKILL
    assert await names(home) == ["hub", "laptop"]
    assert (home / BACKUP_DIRECTORY / "state.json").exists()
    assert not needs_migration(home)


_KILLED = """
import inspect, os, pathlib, signal, sys, trio
from alknet.core.config import NodeConfig
from alknet.stores import legacy
from alknet.node import Node
from alknet.stores.home import open_home_identities

home, point = pathlib.Path(sys.argv[1]), sys.argv[2]
done = getattr(legacy, point)

def die(*args):
    result = done(*args)
    if inspect.iscoroutine(result):
        async def last():
            await result
            os.kill(os.getpid(), signal.SIGKILL)
        return last()
    os.kill(os.getpid(), signal.SIGKILL)

setattr(legacy, point, die)

async def main():
    async with open_home_identities(home, NodeConfig()):
        pass

trio.run(main)
"""


async def test_what_the_store_has_already_is_kept_and_named(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = home / "state.json"
    kept = state.read_bytes()
    state.unlink()
    other = Peer(name="mine", fingerprints=(NodeId(b"\x11" * 32).fingerprint,))
    async with open_home_identities(home, CONFIG) as identities:
        await identities.put_peer(other)
    state.write_bytes(kept)
    assert await names(home) == ["laptop", "mine"]
    [record] = [r for r in caplog.records if r.message == "store.not_migrated"]
    assert vars(record)["peer"] == "hub"


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"format": 1, "peers": [{"name": "a"}',
        b'{"format": 1, "peers": [{"name": "a"}, {"name": "a"}]}',
        b'{"format": 1, "peers": [{"name": "A"}]}',
        b'{"format": 1, "peers": [{"name": "a", "superpower": true}]}',
        b'{"format": 1, "api_keys": [{"prefix": "x", "name": "x"}]}',
        b'{"format": 2}',
        b'{"format": 1, "peers": ' + b"[" * 100_000,
    ],
)
async def test_a_damaged_file_is_named_and_left_as_it_is(home: Path, damage: bytes) -> None:
    (home / "state.json").write_bytes(damage)
    with pytest.raises(StoreError, match=r"state\.json (is damaged|has format 2)"):
        await names(home)
    assert (home / "state.json").read_bytes() == damage
    assert json.loads((FIXTURE / "state.json").read_bytes())["format"] == 1


async def test_a_node_starts_on_an_old_home_and_knows_its_peers(home: Path) -> None:
    (home / "node.key").chmod(0o600)
    async with Node.from_home(home, listen=[Address("127.0.0.1", 0)]) as node:
        assert [peer.name for peer in node.identities.peers()] == ["hub", "laptop"]
        assert node.id == NodeId.from_public_key(OLD_KEY.public_key())
    assert not needs_migration(home)
