"""The identity store in a file: other processes, damage, crashes and staleness."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from alknet.core.identity import ApiKey, Grant, NodeId, Peer
from alknet.core.tokens import mint_token
from alknet.errors import Conflict, Denied, StoreError, Unavailable
from alknet.stores import statefile
from alknet.stores.file import FileIdentityStore

KEYS = [NodeId(bytes([n]) * 32) for n in range(1, 6)]
A = Peer(
    name="a",
    fingerprints=(KEYS[0].fingerprint,),
    scopes=("x",),
    resources=(Grant("tty", "*"),),
    addresses=("h:1",),
    display_name="A",
    enabled=False,
)
B = Peer(name="b", fingerprints=(KEYS[1].fingerprint,))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await trio.sleep(0.1)


async def test_what_was_written_is_read_by_the_next_process(path: Path) -> None:
    token = mint_token()
    key = ApiKey(prefix=token.prefix, name="ci", hash=token.hash, scopes=("y",), expires_at=2e9)
    store = FileIdentityStore(path)
    await store.put_peer(A)
    await store.put_api_key(key)
    again = FileIdentityStore(path)
    assert again.peers() == [A]
    assert again.api_keys() == [key]
    assert path.stat().st_mode & 0o777 == 0o600
    assert token.text.encode() not in path.read_bytes()


async def test_only_the_file_its_lock_and_its_backup_remain(path: Path) -> None:
    store = FileIdentityStore(path)
    await store.put_peer(A)
    first = path.read_bytes()
    await store.put_peer(B)
    names = {entry.name for entry in path.parent.iterdir()}
    assert names == {"state.json", "state.json.lock", "state.json.bak"}
    assert path.with_name("state.json.bak").read_bytes() == first
    assert all(entry.stat().st_mode & 0o077 == 0 for entry in path.parent.iterdir())


async def test_config_peers_are_merged_and_not_written(path: Path) -> None:
    store = FileIdentityStore(path, [B])
    await store.put_peer(A)
    assert [peer.name for peer in store.peers()] == ["a", "b"]
    assert FileIdentityStore(path).peers() == [A]
    with pytest.raises(Conflict):
        FileIdentityStore(path, [B, B])


async def test_conflicts_with_config_are_logged_by_name(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await FileIdentityStore(path).put_peer(A)
    store = FileIdentityStore(path, [Peer(name="a")])
    assert [record.message for record in caplog.records] == ["store.conflict"]
    assert list(store.conflicts) == ["peer 'a' is ignored: node.toml has a peer of that name"]


async def test_a_change_sees_what_others_wrote_in_between(path: Path) -> None:
    first, second = FileIdentityStore(path), FileIdentityStore(path)
    await first.put_peer(A)
    with pytest.raises(Conflict, match="exists"):
        await second.put_peer(A)
    await second.put_peer(B)
    assert [peer.name for peer in second.peers()] == ["a", "b"]


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
async def test_a_damaged_file_is_named_and_never_overwritten(path: Path, damage: bytes) -> None:
    store = FileIdentityStore(path)
    await store.put_peer(A)
    path.write_bytes(damage)
    with pytest.raises(StoreError, match=r"state\.json (is damaged|has format 2)"):
        FileIdentityStore(path)
    with pytest.raises(StoreError):
        await store.put_peer(B)
    with pytest.raises(StoreError):
        await store.refresh()
    assert path.read_bytes() == damage
    assert store.peers() == [A]


async def test_a_truncated_file_at_every_byte_is_damaged(path: Path) -> None:
    store = FileIdentityStore(path)
    await store.put_peer(A)
    whole = path.read_bytes()
    for size in range(len(whole) - 2):  # the last two are "}" and a line feed
        path.write_bytes(whole[:size])
        with pytest.raises(StoreError, match="is damaged"):
            FileIdentityStore(path)


async def test_a_kill_between_write_and_rename_does_no_harm(path: Path) -> None:
    await FileIdentityStore(path).put_peer(A)
    (path.parent / ".state.json.new").write_bytes(b'{"format": 1, "pe')
    (path.parent / ".state.json.bak.new").write_bytes(b"")
    store = FileIdentityStore(path)
    assert store.peers() == [A]
    await store.put_peer(B)
    assert FileIdentityStore(path).peers() == [A, B]
    assert not [entry for entry in path.parent.iterdir() if entry.name.endswith(".new")]


@pytest.mark.parametrize("failing", ["fsync", "open"])
async def test_a_full_disk_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    store = FileIdentityStore(path)
    await store.put_peer(A)
    before = path.read_bytes()

    def full(*args: object, **kwargs: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(StoreError, match="No space left on device"):
            await store.put_peer(B)
    assert path.read_bytes() == before
    assert store.peers() == [A]
    await store.put_peer(B)


async def test_a_lock_that_another_holds_for_ever_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statefile, "LOCK_TIMEOUT_S", 0.02)
    store = FileIdentityStore(path)
    with path.with_name("state.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=r"another process holds .*state\.json\.lock"):
            await store.put_peer(A)
        fcntl.flock(lock, fcntl.LOCK_UN)
        await store.put_peer(A)


async def test_a_missing_directory_is_a_store_error(tmp_path: Path) -> None:
    store = FileIdentityStore(tmp_path / "gone" / "state.json")
    with pytest.raises(StoreError, match="cannot lock"):
        await store.put_peer(A)
    (tmp_path / "state.json").mkdir()
    with pytest.raises(StoreError, match="cannot read"):
        FileIdentityStore(tmp_path / "state.json")


WRITER = """
import sys, trio
from pathlib import Path
from alknet.core.identity import Peer
from alknet.stores.file import FileIdentityStore

async def main(path, name):
    store = FileIdentityStore(Path(path))
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(10):
        await store.put_peer(Peer(name=f"{name}{n}"))

trio.run(main, *sys.argv[1:])
"""


@pytest.mark.slow
async def test_two_processes_that_write_at_once_lose_nothing(path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.communicate("go\n", timeout=30)
        assert writer.returncode == 0
    names = {peer.name for peer in FileIdentityStore(path).peers()}
    assert names == {f"{name}{n}" for name in "ab" for n in range(10)}


async def test_many_tasks_that_write_at_once_lose_nothing(path: Path) -> None:
    store = FileIdentityStore(path)
    async with trio.open_nursery() as nursery:
        for n in range(10):
            nursery.start_soon(store.put_peer, Peer(name=f"p{n}"))
    assert len(FileIdentityStore(path).peers()) == len(store.peers()) == 10


async def test_a_follower_sees_a_peer_disabled_elsewhere_within_a_second(
    path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    node, command = FileIdentityStore(path), FileIdentityStore(path)
    await nursery.start(node.follow)
    await command.put_peer(B)
    await until(lambda: node.identify_key(KEYS[1]) is not None)
    await command.update_peer(msgspec.structs.replace(B, enabled=False))
    before, version = trio.current_time(), node.version
    if (peer := node.peer("b")) is not None and peer.enabled:
        autojump_clock.autojump_threshold = 0.01  # the file is read in a thread
        await node.wait_changed(version)
    assert trio.current_time() - before <= 1.0
    with pytest.raises(Denied):
        node.identify_key(KEYS[1])
    nursery.cancel_scope.cancel()


async def test_a_follower_is_not_woken_by_its_own_writes(path: Path) -> None:
    store = FileIdentityStore(path)
    await store.put_peer(A)
    version = store.version
    await store.refresh()
    assert store.version == version


async def test_a_deleted_file_is_an_empty_store(path: Path) -> None:
    store = FileIdentityStore(path)
    await store.put_peer(B)
    path.unlink()
    await store.refresh()
    assert store.peers() == []


async def test_a_store_that_stays_unreadable_identifies_nobody_until_it_is_repaired(
    path: Path,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = FileIdentityStore(path)
    await store.put_peer(B)
    good = path.read_bytes()
    await nursery.start(store.follow)
    path.write_bytes(b"{")
    await until(lambda: bool(caplog.records))
    began = trio.current_time()
    token = mint_token().text

    def is_stale() -> bool:
        try:
            assert store.identify_key(KEYS[1]) is not None
        except Unavailable as exc:
            return exc.retry_after_s is not None
        return False

    assert not is_stale()
    await until(is_stale)
    assert 4.5 <= trio.current_time() - began <= 6.0
    with pytest.raises(Unavailable):
        store.identify_token(token)
    path.write_bytes(good)
    await until(lambda: not is_stale())
    assert [record.message for record in caplog.records] == ["store.unreadable"]
    nursery.cancel_scope.cancel()
