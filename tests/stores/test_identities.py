"""Peers and tokens that several processes share: nothing is lost, nobody is known twice."""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing

from alknet.core.contracts import TooStale
from alknet.core.identity import NodeId, Peer
from alknet.errors import Conflict, NotFound, Unavailable
from alknet.stores.audit import Entry
from alknet.stores.deferred import DeferredStore
from alknet.stores.identities import ENDS_AFTER, MAX_STALENESS_S, StoredIdentities
from alknet.stores.memory_store import MemoryDatabase, open_memory_store
from alknet.stores.tables import NODE_TABLES, PEERS
from tests.stores.engines import Opener

KEYS = [NodeId(bytes([n]) * 32) for n in range(1, 6)]
A = Peer(name="a", fingerprints=(KEYS[0].fingerprint,), scopes=("x",))
B = Peer(name="b", fingerprints=(KEYS[1].fingerprint,))


async def test_what_one_writes_the_other_identifies_and_both_are_told(opener: Opener) -> None:
    async with opener() as first, opener() as second:
        one, two = StoredIdentities(first), StoredIdentities(second)
        version = two.version
        await one.put_peer(A)
        with trio.fail_after(60):
            await two.wait_changed(version)
        assert two.identify_key(KEYS[0]) == A.identity()


async def test_a_key_that_two_processes_give_away_at_once_belongs_to_one(opener: Opener) -> None:
    taken: list[str] = []
    async with opener() as first, opener() as second:
        stores = StoredIdentities(first), StoredIdentities(second)

        async def add(identities: StoredIdentities, name: str) -> None:
            try:
                await identities.put_peer(msgspec.structs.replace(A, name=name))
            except Conflict as exc:
                taken.append(str(exc))

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(add, stores[number % 2], f"p{number}")
        rows = [peer.name for peer in StoredIdentities(first).peers()]
        assert len(rows) == 1
        assert taken == [f"key {KEYS[0].fingerprint} belongs to peer {rows[0]!r}"] * 5


async def test_two_who_change_one_peer_lose_nothing(opener: Opener) -> None:
    async with opener() as first, opener() as second:
        one, two = StoredIdentities(first), StoredIdentities(second)
        await one.put_peer(A)
        await one.update_peer(msgspec.structs.replace(A, enabled=False), was=A)
        with pytest.raises(Conflict, match="has changed meanwhile"):
            await two.update_peer(msgspec.structs.replace(A, scopes=("y",)), was=A)
        await two.remove_peer("a")
        with pytest.raises(NotFound):
            await one.update_peer(A)


async def test_many_tasks_that_write_at_once_lose_nothing(opener: Opener) -> None:
    peers = [
        Peer(name=f"p{n}", fingerprints=(NodeId(bytes([n]) * 32).fingerprint,))
        for n in range(1, 41)
    ]
    async with opener() as first, opener() as second:
        one, two = StoredIdentities(first), StoredIdentities(second)
        async with trio.open_nursery() as nursery:
            for number, peer in enumerate(peers):
                nursery.start_soon((one, two)[number % 2].put_peer, peer)
        verdict = await one.audit.verify()
        assert (verdict.rows, verdict.broken_at) == (40, None)
    async with opener() as again:
        assert len(StoredIdentities(again).peers()) == 40


async def test_a_change_elsewhere_in_the_store_is_no_change_of_identities(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        version = identities.version
        await identities.audit.record(Entry("config.change", "node.toml"))
        assert identities.version == version


async def test_the_peers_of_a_file_are_merged_and_not_written(opener: Opener) -> None:
    async with opener() as first, opener() as second:
        one = StoredIdentities(first, [B])
        await one.put_peer(A)
        assert [peer.name for peer in one.peers()] == ["a", "b"]
        await trio.testing.wait_all_tasks_blocked()
        assert await second.fetch(PEERS, "b") is None


async def test_a_store_out_of_reach_identifies_nobody_then_ends_all_then_is_trusted_again(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    database = MemoryDatabase()
    async with (
        open_memory_store(NODE_TABLES, database) as store,
        open_memory_store(NODE_TABLES, database) as other,
    ):
        identities = StoredIdentities(store)
        await identities.put_peer(A)
        await nursery.start(identities.watch_staleness)
        store.lose_listener()
        await StoredIdentities(other).remove_peer("a")
        await trio.sleep(MAX_STALENESS_S - 0.1)
        assert identities.identify_key(KEYS[0]) is not None
        await trio.sleep(0.2)
        with pytest.raises(Unavailable, match="out of reach") as caught:
            identities.identify_key(KEYS[0])
        assert not isinstance(caught.value, TooStale)
        with trio.fail_after(MAX_STALENESS_S * ENDS_AFTER):
            await identities.wait_changed(identities.version)  # those who hold a right are judged
        with pytest.raises(TooStale):
            identities.check_fresh()
        store.look()
        assert identities.identify_key(KEYS[0]) is None
        nursery.cancel_scope.cancel()


async def test_identities_whose_store_is_not_open_let_nobody_in() -> None:
    deferred = DeferredStore()
    identities = StoredIdentities(deferred, [B])
    with pytest.raises(Unavailable):
        identities.identify_key(KEYS[1])
    with pytest.raises(Unavailable, match="the node does not run"):
        identities.peers()
    version = identities.version
    async with open_memory_store(NODE_TABLES) as store:
        with deferred.attached(store):
            await identities.put_peer(A)
            assert identities.identify_key(KEYS[1]) is not None
            assert identities.version > version
            version = identities.version
    assert identities.version == version
    with pytest.raises(Unavailable):
        identities.identify_key(KEYS[0])
