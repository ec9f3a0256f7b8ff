"""New keys of peers wait for the owner, and no more than that; who was told is remembered."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.core.identity import NodeId, Peer
from alknet.core.succession import Succession, sign_succession
from alknet.errors import Conflict, Unavailable
from alknet.stores.identities import StoredIdentities
from alknet.stores.successors import MAX_WAITING, StoredSuccessors, StoredTold
from alknet.stores.tables import SUCCESSION_TOLD, SUCCESSORS
from tests.stores.engines import Opener

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(1, 20)]
IDS = [NodeId.from_public_key(key.public_key()) for key in KEYS]


def chain(*numbers: int) -> list[Succession]:
    return [sign_succession(KEYS[a], KEYS[b], now=100.0 + a) for a, b in pairwise(numbers)]


def bob(*keys: int, enabled: bool = True) -> Peer:
    prints = tuple(IDS[n].fingerprint for n in keys)
    return Peer(name="bob", fingerprints=prints, enabled=enabled)


def keys_that_wait(identities: StoredIdentities, name: str = "bob") -> Sequence[NodeId]:
    peer = identities.peer(name)
    assert peer is not None
    return [one.key for one in StoredSuccessors(identities).waiting(peer)]


async def test_a_new_key_waits_for_the_owner(
    opener: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        successors = StoredSuccessors(identities, clock=lambda: 7.0)
        await identities.put_peer(bob(0))
        with caplog.at_level(logging.WARNING):
            assert await successors.hear(chain(0, 1), "192.0.2.1:9") == "waits"
        assert [(r.message, r.accept) for r in caplog.records] == [  # type: ignore[attr-defined]  # extra
            ("peer.new_key_waits", "alknet peer follow bob")
        ]
        (one,) = successors.waiting(bob(0))
        assert (one.key, one.heard_at, one.address) == (IDS[1], 7.0, "192.0.2.1:9")
        assert list(one.statements) == chain(0, 1)
        assert identities.identify_key(IDS[1]) is None
        assert identities.peer("bob") == bob(0)
    async with opener() as store:
        identities = StoredIdentities(store)
        rows = await identities.audit.newest(None)
        assert (rows[-1].action, rows[-1].target) == ("peer.new_key", "bob")
        assert rows[-1].who == "anonymous"
        assert keys_that_wait(identities) == [IDS[1]]


async def test_said_again_it_writes_nothing(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        successors = StoredSuccessors(identities)
        await identities.put_peer(bob(0))
        await successors.hear(chain(0, 1, 2), "a:1")
        version = store.version
        for again in (chain(0, 1, 2), chain(1, 2), chain(0, 1)):
            assert await successors.hear(again, "b:2") in {"waits", "unknown"}
        assert store.version == version
        assert keys_that_wait(identities) == [IDS[2]]


async def test_a_later_key_takes_the_place_of_the_one_that_waits(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        successors = StoredSuccessors(identities)
        await identities.put_peer(bob(0))
        await successors.hear(chain(0, 1), "a:1")
        await successors.hear(chain(0, 1, 2), "a:1")
        assert keys_that_wait(identities) == [IDS[2]]


@pytest.mark.parametrize(
    ("peer", "answer"),
    [(None, "unknown"), (bob(5), "unknown"), (bob(0, enabled=False), "unknown")],
    ids=["nobody", "another", "disabled"],
)
async def test_the_key_of_nobody_here_leaves_nothing(
    opener: Opener, peer: Peer | None, answer: str
) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        if peer is not None:
            await identities.put_peer(peer)
        version = store.version
        assert await StoredSuccessors(identities).hear(chain(0, 1), "a:1") == answer
        assert store.version == version
        assert store.rows(SUCCESSORS) == []


async def test_a_key_that_the_peer_has_is_known(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        successors = StoredSuccessors(identities)
        await identities.put_peer(bob(1))
        assert await successors.hear(chain(0, 1), "a:1") == "known"
        await identities.update_peer(bob(0, 1))
        assert await successors.hear(chain(0, 1), "a:1") == "known"
        assert store.rows(SUCCESSORS) == []


async def test_a_followed_key_waits_no_more_and_its_row_goes_with_the_next(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        successors = StoredSuccessors(identities)
        await identities.put_peer(bob(0))
        carol = Peer(name="carol", fingerprints=(IDS[10].fingerprint,))
        await identities.put_peer(carol)
        await successors.hear(chain(0, 1), "a:1")
        await identities.update_peer(bob(1))
        assert keys_that_wait(identities) == []
        await successors.hear(chain(10, 11), "a:1")
        assert [row.key for row in store.rows(SUCCESSORS)] == ["carol"]


async def test_another_peer_of_the_name_inherits_no_key(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        await identities.put_peer(bob(0))
        await StoredSuccessors(identities).hear(chain(0, 1), "a:1")
        await identities.remove_peer("bob")
        await identities.put_peer(bob(5))
        assert keys_that_wait(identities) == []


async def test_a_thief_adds_a_few_keys_and_hides_none(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        successors = StoredSuccessors(identities)
        await identities.put_peer(bob(0))
        await successors.hear(chain(0, 1), "a:1")
        refused = 0
        for number in range(2, 12):
            try:
                await successors.hear(chain(0, number), "b:2")
            except Conflict:
                refused += 1
        assert keys_that_wait(identities) == [IDS[n] for n in range(1, 1 + MAX_WAITING)]
        assert refused == 11 - MAX_WAITING
        rows = await identities.audit.newest(None)
        assert [row.action for row in rows].count("peer.new_key") == MAX_WAITING


async def test_a_stale_store_is_not_asked() -> None:
    class Stale:
        staleness = 100.0

        def __getattr__(self, name: str) -> object:
            raise AssertionError(name)

    identities = StoredIdentities(Stale())  # type: ignore[arg-type]  # of a store that hangs
    with pytest.raises(Unavailable):
        await StoredSuccessors(identities).hear(chain(0, 1), "a:1")


async def test_two_processes_that_hear_at_once_lose_nothing(opener: Opener) -> None:
    async with opener() as first, opener() as second, trio.open_nursery() as nursery:
        identities = StoredIdentities(first)
        await identities.put_peer(bob(0))
        with trio.fail_after(60):
            while StoredIdentities(second).peer("bob") is None:
                await second.wait_changed(second.version)
        for store, new in ((first, 1), (second, 2)):
            successors = StoredSuccessors(StoredIdentities(store))
            nursery.start_soon(successors.hear, chain(0, new), "a:1")
    async with opener() as store:
        assert set(keys_that_wait(StoredIdentities(store))) == set(IDS[1:3])


async def test_who_was_told_is_remembered_for_this_key_alone(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        before = StoredTold(identities, IDS[0])
        await before.note("bob", "waits")
        assert before.has("bob")
        told = StoredTold(identities, IDS[1], chain(0, 1))
        assert not told.has("bob")
        await told.note("carol", "known")
        assert told.has("carol")
        assert [row.key for row in store.rows(SUCCESSION_TOLD)] == [f"{IDS[1]}/carol"]
