"""What every identity store promises, run on each of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from alknet.core.identity import ApiKey, Grant, Identity, NodeId, Peer
from alknet.core.storage import Store
from alknet.core.tokens import MintedToken, mint_token
from alknet.errors import Conflict, Denied, LocalError, NotFound
from alknet.stores.identities import StoredIdentities
from alknet.stores.memory_store import open_memory_store
from alknet.stores.sqlite import open_sqlite_store
from alknet.stores.tables import NODE_TABLES
from alknet.testing import cancel_at_every_checkpoint

KEYS = [NodeId(bytes([n]) * 32) for n in range(1, 6)]
A = Peer(
    name="a",
    fingerprints=(KEYS[0].fingerprint, KEYS[1].fingerprint),
    scopes=("echo", "fs:*"),
    resources=(Grant("tty", "a:b", "read"),),
    display_name="Ä node",
    addresses=("[::1]:4433",),
)
B = Peer(name="b", fingerprints=(KEYS[2].fingerprint,))
NOW = 1_000_000.0


class Time:
    """A wall clock that tests set."""

    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Time:
    return Time()


@asynccontextmanager
async def memory(_: Path) -> AsyncGenerator[Store]:
    async with open_memory_store(NODE_TABLES) as store:
        yield store


@asynccontextmanager
async def sqlite(directory: Path) -> AsyncGenerator[Store]:
    async with open_sqlite_store(directory / "node.db", NODE_TABLES) as store:
        yield store


@pytest.fixture(params=[memory, sqlite])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Time
) -> AsyncGenerator[StoredIdentities]:
    async with request.param(tmp_path) as engine:
        yield StoredIdentities(engine, clock=clock)


def api_key(token: MintedToken, expires_at: float | None = None) -> ApiKey:
    return ApiKey(
        prefix=token.prefix,
        name="ci",
        hash=token.hash,
        scopes=("echo",),
        created_at=NOW,
        expires_at=expires_at,
    )


async def test_a_new_store_knows_nobody(store: StoredIdentities) -> None:
    assert store.peers() == []
    assert store.api_keys() == []
    assert store.peer("a") is None
    assert store.identify_key(KEYS[0]) is None


async def test_a_peer_is_known_by_each_of_its_keys(store: StoredIdentities) -> None:
    await store.put_peer(A)
    expected = Identity("peer:a", A.scopes, A.resources)
    assert store.identify_key(KEYS[0]) == expected
    assert store.identify_key(KEYS[1]) == expected
    assert store.identify_key(KEYS[2]) is None
    assert store.peer("a") == A
    assert store.peers() == [A]


async def test_peers_are_listed_by_name(store: StoredIdentities) -> None:
    await store.put_peer(B)
    await store.put_peer(A)
    assert [peer.name for peer in store.peers()] == ["a", "b"]


async def test_records_are_brought_into_one_form(store: StoredIdentities) -> None:
    await store.put_peer(Peer(name="a", fingerprints=(str(KEYS[0]),), read_only=True))
    stored = store.peer("a")
    assert stored is not None
    assert stored.fingerprints == (KEYS[0].fingerprint,)
    assert not stored.read_only


async def test_a_certificate_is_known_by_its_fingerprint(store: StoredIdentities) -> None:
    await store.put_peer(Peer(name="x", fingerprints=("sha256:" + "AB" * 32,)))
    assert store.identify_fingerprint("SHA256:" + "ab" * 32) == Identity("peer:x")


async def test_names_and_keys_belong_to_one_peer(store: StoredIdentities) -> None:
    await store.put_peer(A)
    with pytest.raises(Conflict, match="a peer named 'a' exists"):
        await store.put_peer(Peer(name="a"))
    thief = Peer(name="c", fingerprints=(KEYS[4].fingerprint, KEYS[1].fingerprint))
    with pytest.raises(Conflict, match=f"key {KEYS[1].fingerprint} belongs to peer 'a'"):
        await store.put_peer(thief)
    await store.put_peer(B)
    with pytest.raises(Conflict, match="belongs to peer 'a'"):
        await store.update_peer(Peer(name="b", fingerprints=(KEYS[0].fingerprint,)))
    assert store.peers() == [A, B]


async def test_an_invalid_record_changes_nothing(store: StoredIdentities) -> None:
    version = store.version
    with pytest.raises(LocalError):
        await store.put_peer(Peer(name="owner"))
    with pytest.raises(LocalError):
        await store.put_api_key(ApiKey(prefix="x", name="x"))
    assert store.version == version
    assert store.peers() == []


async def test_an_update_replaces_the_record(store: StoredIdentities) -> None:
    await store.put_peer(A)
    changed = msgspec.structs.replace(A, fingerprints=(KEYS[1].fingerprint,), scopes=("x",))
    await store.update_peer(changed)
    assert store.identify_key(KEYS[0]) is None
    assert store.identify_key(KEYS[1]) == Identity("peer:a", ("x",), A.resources)
    with pytest.raises(NotFound, match="no peer named 'b'"):
        await store.update_peer(B)


async def test_a_disabled_peer_is_refused_not_unknown(store: StoredIdentities) -> None:
    await store.put_peer(msgspec.structs.replace(A, enabled=False))
    with pytest.raises(Denied, match="disabled") as caught:
        store.identify_key(KEYS[0])
    assert caught.value.is_failed_authentication
    assert store.peer("a") is not None
    await store.update_peer(A)
    assert store.identify_key(KEYS[0]) is not None


async def test_a_renamed_peer_is_another_identity(store: StoredIdentities) -> None:
    await store.put_peer(A)
    await store.put_peer(B)
    with pytest.raises(Conflict, match="a peer named 'b' exists"):
        await store.rename_peer("a", "b")
    with pytest.raises(LocalError, match="peer name"):
        await store.rename_peer("a", "any")
    with pytest.raises(NotFound):
        await store.rename_peer("c", "d")
    await store.rename_peer("a", "a")
    assert store.peers() == [A, B]
    await store.rename_peer("a", "c")
    found = store.identify_key(KEYS[0])
    assert found is not None
    assert found.id == "peer:c"
    assert store.peer("a") is None


async def test_a_removed_peer_frees_its_name_and_keys(store: StoredIdentities) -> None:
    await store.put_peer(A)
    await store.remove_peer("a")
    assert store.identify_key(KEYS[0]) is None
    with pytest.raises(NotFound):
        await store.remove_peer("a")
    await store.put_peer(Peer(name="b", fingerprints=A.fingerprints))


async def test_a_token_stands_for_its_key(store: StoredIdentities) -> None:
    token = mint_token()
    await store.put_api_key(api_key(token))
    identity = store.identify_token(token.text)
    assert identity == Identity(f"key:{token.prefix}", ("echo",))
    assert store.token_expires_at(identity) is None
    assert store.token_expires_at(Identity("peer:a")) is None


async def test_all_refused_tokens_get_the_same_answer(store: StoredIdentities, clock: Time) -> None:
    known, revoked, expiring = mint_token(), mint_token(), mint_token()
    for key in (api_key(known), api_key(revoked), api_key(expiring, NOW + 60)):
        await store.put_api_key(key)
    await store.remove_api_key(revoked.prefix)
    clock.now = NOW + 60
    wrong_secret = known.text[:-1] + ("y" if known.text[-1] != "y" else "b")
    bad = ["", "owner", "\ud800", wrong_secret, mint_token().text, revoked.text, expiring.text]
    for text in bad:
        with pytest.raises(Denied) as caught:
            store.identify_token(text)
        assert caught.value.reason == "token unknown, revoked or expired"
        assert caught.value.is_failed_authentication
    assert store.identify_token(known.text).id == f"key:{known.prefix}"


async def test_a_token_expires_at_its_moment(store: StoredIdentities, clock: Time) -> None:
    token = mint_token()
    await store.put_api_key(api_key(token, NOW + 60))
    clock.now = NOW + 59.9
    identity = store.identify_token(token.text)
    assert store.token_expires_at(identity) == NOW + 60
    clock.now = NOW + 60
    with pytest.raises(Denied):
        store.identify_token(token.text)


async def test_a_revoked_key_has_expired(store: StoredIdentities) -> None:
    token = mint_token()
    await store.put_api_key(api_key(token))
    identity = store.identify_token(token.text)
    await store.remove_api_key(token.prefix)
    assert store.token_expires_at(identity) == 0.0
    with pytest.raises(NotFound, match="no api key"):
        await store.remove_api_key(token.prefix)


async def test_an_api_key_of_the_same_prefix_is_replaced(store: StoredIdentities) -> None:
    token = mint_token()
    await store.put_api_key(api_key(token))
    narrower = msgspec.structs.replace(api_key(token), scopes=())
    await store.put_api_key(narrower)
    assert store.api_keys() == [narrower]


async def test_each_change_is_announced(store: StoredIdentities, nursery: trio.Nursery) -> None:
    seen: list[int] = []

    async def watch() -> None:
        version = store.version
        while True:
            version = await store.wait_changed(version)
            seen.append(version)

    before = store.version
    nursery.start_soon(watch)
    await trio.testing.wait_all_tasks_blocked()
    await store.put_peer(A)
    await trio.testing.wait_all_tasks_blocked()
    await store.update_peer(A)  # changes nothing
    await store.update_peer(msgspec.structs.replace(A, enabled=False))
    await trio.testing.wait_all_tasks_blocked()
    assert len(seen) == 2
    assert before < seen[0] < seen[1] == store.version
    assert await store.wait_changed(before) == store.version
    nursery.cancel_scope.cancel()


async def test_a_refused_change_is_not_announced(store: StoredIdentities) -> None:
    await store.put_peer(A)
    version = store.version
    with pytest.raises(Conflict):
        await store.put_peer(A)
    assert store.version == version


async def test_config_peers_are_read_only_and_replaceable(store: StoredIdentities) -> None:
    store.set_config_peers([A])
    listed = store.peer("a")
    assert listed is not None
    assert listed.read_only
    assert store.identify_key(KEYS[0]) == A.identity()
    change: list[Callable[[], Awaitable[None]]] = [
        lambda: store.put_peer(A),
        lambda: store.update_peer(A),
        lambda: store.rename_peer("a", "c"),
        lambda: store.remove_peer("a"),
    ]
    for make in change:
        with pytest.raises(Conflict, match=r"node\.toml|exists"):
            await make()
    with pytest.raises(Conflict, match="belongs to peer 'a'"):
        await store.put_peer(Peer(name="z", fingerprints=(KEYS[1].fingerprint,)))
    store.set_config_peers([B])
    assert [peer.name for peer in store.peers()] == ["b"]
    await store.put_peer(A)


async def test_config_peers_win_over_those_of_commands(store: StoredIdentities) -> None:
    await store.put_peer(A)
    await store.put_peer(B)
    same_name = Peer(name="a", fingerprints=(KEYS[4].fingerprint,))
    same_key = Peer(name="c", fingerprints=B.fingerprints, scopes=("c",))
    store.set_config_peers([same_name, same_key])
    assert [peer.name for peer in store.peers()] == ["a", "c"]
    assert store.identify_key(KEYS[0]) is None
    assert store.identify_key(KEYS[2]) == Identity("peer:c", ("c",))
    assert list(store.conflicts) == [
        "peer 'a' is ignored: node.toml has a peer of that name",
        f"peer 'b' is ignored: node.toml gives its key {B.fingerprints[0]} to 'c'",
    ]
    await store.remove_peer("a")  # the shadowed ones can be cleaned up
    await store.remove_peer("b")
    assert list(store.conflicts) == []
    store.set_config_peers([])
    assert store.peers() == []


async def test_config_peers_that_clash_with_one_another_change_nothing(
    store: StoredIdentities,
) -> None:
    store.set_config_peers([A])
    for peers in ([B, B], [B, Peer(name="c", fingerprints=B.fingerprints)]):
        with pytest.raises(Conflict):
            store.set_config_peers(peers)
    assert [peer.name for peer in store.peers()] == ["a"]


async def test_a_cancelled_write_was_made_whole_or_not_at_all(store: StoredIdentities) -> None:
    made = 0

    async def write() -> None:
        nonlocal made
        await store.put_peer(A)
        made += 1

    async def check() -> None:
        nonlocal made
        assert [peer.name for peer in store.peers()] in ([], ["a"])
        if store.peers():
            await store.remove_peer("a")

    assert await cancel_at_every_checkpoint(write, check) >= 1
    assert made >= 1
