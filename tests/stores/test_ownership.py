"""Who owns what: durable, of one node, and never inherited."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from alknet.core.identity import ApiKey, NodeId, Peer
from alknet.core.ownership import OwnedResource
from alknet.core.storage import Put, Store
from alknet.core.tokens import mint_token
from alknet.errors import Conflict, LocalError, NotFound, Unavailable
from alknet.stores.identities import StoredIdentities
from alknet.stores.memory_store import open_memory_store
from alknet.stores.ownership import StoredOwnership
from alknet.stores.tables import NODE_TABLES, OWNERSHIP
from tests.stores.engines import Opener

NODE, OTHER = NodeId(b"\x01" * 32), NodeId(b"\x02" * 32)


async def ownership(store: Store, node: NodeId = NODE) -> StoredOwnership:
    identities = StoredIdentities(store)
    for name in "ab":
        with suppress(Conflict):  # another handle has added it
            await identities.put_peer(Peer(name=name))
        with trio.fail_after(60):
            while identities.peer(name) is None:
                await identities.wait_changed(identities.version)
    return StoredOwnership(identities, node)


async def test_who_spawned_owns_until_the_resource_is_torn_down(opener: Opener) -> None:
    async with opener() as store:
        owned = await ownership(store)
        for kind, resource in (("tty", "2"), ("tty", "1"), ("pod", "1"), ("tty", "1")):
            await owned.record("peer:a", kind, resource)
        assert owned.owns("peer:a", "tty", "1")
        assert owned.owned_by("tty", "1") == "peer:a"
        assert not owned.owns("peer:b", "tty", "1")
        assert not owned.owns("peer:a", "tty", "3")
        assert owned.owned("peer:a", "tty") == ["2", "1"]
        await owned.release("tty", "1")
        assert not owned.owns("peer:a", "tty", "1")
        assert owned.owned_by("tty", "1") is None
        assert owned.owned("peer:a", "tty") == ["2"]
        assert [found.resource_id for found in owned.recorded()] == ["2", "1"]
        with pytest.raises(NotFound):
            await owned.release("tty", "1")
    async with opener() as again:
        owned = await ownership(again)
        assert owned.owned("peer:a", "tty") == ["2"]


async def test_a_resource_has_one_owner(opener: Opener) -> None:
    async with opener() as first, opener() as second:
        one, two = await ownership(first), await ownership(second)
        await one.record("peer:a", "tty", "1")
        with pytest.raises(Conflict, match="tty '1' has another owner"):
            await two.record("peer:b", "tty", "1")
        await two.record("peer:a", "tty", "1")
        assert one.owns("peer:a", "tty", "1")


async def test_a_node_sees_only_its_own(opener: Opener) -> None:
    async with opener() as store:
        mine, others = await ownership(store), await ownership(store, OTHER)
        await mine.record("peer:a", "tty", "1")
        await others.record("peer:b", "tty", "1")
        assert mine.owned_by("tty", "1") == "peer:a"
        assert others.owned_by("tty", "1") == "peer:b"
        assert mine.owned("peer:b", "tty") == []
        await mine.release("tty", "1")
        assert mine.recorded() == []
        assert others.recorded() == [OwnedResource("tty", "1", "peer:b", ends_with_node=False)]


async def test_a_node_with_a_new_key_keeps_what_it_had(opener: Opener) -> None:
    async with opener() as store:
        before, after = await ownership(store, OTHER), await ownership(store)
        await before.record("peer:a", "pod", "1")
        await before.record("peer:b", "tty", "1", ends_with_node=True)
        await before.record("peer:b", "tty", "2")
        await after.record("peer:a", "tty", "2")  # made anew meanwhile
        for _ in range(2):
            await after.take_over([OTHER])
            assert before.recorded() == []
            assert sorted(after.recorded(), key=lambda one: (one.resource_type, one.owner)) == [
                OwnedResource("pod", "1", "peer:a", ends_with_node=False),
                OwnedResource("tty", "2", "peer:a", ends_with_node=False),
                OwnedResource("tty", "1", "peer:b", ends_with_node=True),
            ]
        assert after.owns("peer:a", "pod", "1")
        await before.take_over([])
        assert len(after.recorded()) == 3


@pytest.mark.parametrize("how", ["removed", "renamed"])
async def test_a_new_peer_of_an_old_name_inherits_nothing(opener: Opener, how: str) -> None:
    async with opener() as store:
        owned = await ownership(store)
        identities = owned.identities
        await owned.record("peer:a", "tty", "1")
        await owned.record("peer:b", "tty", "2")
        if how == "removed":
            await identities.remove_peer("a")
        else:
            await identities.rename_peer("a", "c")
        assert owned.owned_by("tty", "1") is None
        assert not owned.owns("peer:c", "tty", "1")
        await identities.put_peer(Peer(name="a"))
        assert not owned.owns("peer:a", "tty", "1")
        assert owned.owned("peer:a", "tty") == []
        assert owned.owns("peer:b", "tty", "2")
        assert [row.value.owner for row in store.rows(OWNERSHIP)] == ["peer:b"]
        await owned.record("peer:a", "tty", "1")


async def test_a_row_that_was_written_while_its_peer_was_removed_counts_for_nobody(
    opener: Opener,
) -> None:
    async with opener() as store:
        owned = await ownership(store)
        await owned.record("peer:a", "tty", "1")
        [row] = store.rows(OWNERSHIP)
        await owned.identities.remove_peer("a")
        await owned.identities.put_peer(Peer(name="a"))
        await store.write(Put(OWNERSHIP, row.key, row.value))
        assert not owned.owns("peer:a", "tty", "1")
        assert owned.owned("peer:a", "tty") == []
        await owned.record("peer:b", "tty", "1")  # and is in nobody's way
        assert owned.owns("peer:b", "tty", "1")


async def test_who_is_gone_can_own_nothing_and_a_revoked_token_owns_nothing(
    opener: Opener,
) -> None:
    token = mint_token()
    identity = f"key:{token.prefix}"
    async with opener() as store:
        owned = await ownership(store)
        for gone in ("peer:x", identity):
            with pytest.raises(NotFound, match="any more"):
                await owned.record(gone, "tty", "1")
        key = ApiKey(prefix=token.prefix, name="ci", hash=token.hash)
        await owned.identities.put_api_key(key)
        await owned.record(identity, "tty", "1")
        await owned.identities.remove_api_key(token.prefix)
        assert owned.owned_by("tty", "1") is None
        assert list(store.rows(OWNERSHIP)) == []


async def test_a_peer_of_the_file_with_other_keys_is_another(opener: Opener) -> None:
    key, new = (NodeId(bytes([n]) * 32).fingerprint for n in (7, 8))
    async with opener() as store:
        identities = StoredIdentities(store, [Peer(name="hub", fingerprints=(key,))])
        owned = StoredOwnership(identities, NODE)
        await owned.record("peer:hub", "tty", "1")
        assert owned.owns("peer:hub", "tty", "1")
        identities.set_config_peers([Peer(name="hub", fingerprints=(key,), scopes=("x",))])
        assert owned.owns("peer:hub", "tty", "1")
        identities.set_config_peers([Peer(name="hub", fingerprints=(new,))])
        assert not owned.owns("peer:hub", "tty", "1")


async def test_much_that_a_peer_owns_ends_with_it(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alknet.stores.identities.OWNED_ROWS", 3)
    async with opener() as store:
        owned = await ownership(store)
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(owned.record, "peer:a", "tty", str(number))
        await owned.identities.remove_peer("a")
        assert list(store.rows(OWNERSHIP)) == []


async def test_a_stale_store_says_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_store(NODE_TABLES) as store:
        owned = await ownership(store)
        await owned.record("peer:a", "tty", "1")
        store.lose_listener()
        await trio.sleep(6)
        with pytest.raises(Unavailable):
            owned.owns("peer:a", "tty", "1")
        with pytest.raises(Unavailable):
            owned.owned("peer:a", "tty")


async def test_a_type_that_could_be_mistaken_is_refused(opener: Opener) -> None:
    async with opener() as store:
        owned = await ownership(store)
        for kind in ("", "a/b"):
            with pytest.raises(LocalError):
                await owned.record("peer:a", kind, "1")
        assert owned.recorded() == []


async def test_many_are_released_at_once(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.stores.ownership.MAX_OPS", 2)
    async with opener() as store:
        owned, others = await ownership(store), await ownership(store, OTHER)
        await others.record("peer:b", "tty", "1")
        for number in range(5):
            await owned.record("peer:a", "tty", str(number), ends_with_node=True)
        assert all(found.ends_with_node for found in owned.recorded())
        await owned.release_all([("tty", str(number)) for number in (1, 2, 4, 7)])
        assert owned.owned("peer:a", "tty") == ["0", "3"]
        assert others.owns("peer:b", "tty", "1")
        await owned.release_all([])
