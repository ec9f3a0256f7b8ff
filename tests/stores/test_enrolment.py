"""Invitations: one use, by one key, under the name that was given."""

from __future__ import annotations

import pytest
import trio

from alknet.core.identity import Grant, Identity, NodeId, Peer
from alknet.errors import Conflict, Denied, LocalError, NotFound
from alknet.stores.enrolment import LONGEST_LIFE_S, EnrolmentTokens
from alknet.stores.identities import StoredIdentities
from tests.stores.engines import Opener

KEYS = [NodeId(bytes([n]) * 32) for n in range(1, 10)]


async def test_an_invitation_makes_a_peer_once(opener: Opener) -> None:
    async with opener() as first, opener() as second:
        identities = StoredIdentities(first)
        tokens = EnrolmentTokens(identities)
        grant = Grant("tty", "1")
        minted = await tokens.create("bob", lifetime_s=60, scopes=("echo",), resources=(grant,))
        assert minted.secret not in repr(minted)
        assert [token.name for token in tokens.tokens()] == ["bob"]
        peer = await tokens.consume(minted.secret, KEYS[0], addresses=("h:1",))
        assert (peer.name, peer.addresses) == ("bob", ("h:1",))
        assert identities.identify_key(KEYS[0]) == Identity("peer:bob", ("echo",), (grant,))
        assert tokens.tokens() == []
        for again in (tokens, EnrolmentTokens(StoredIdentities(second))):
            with pytest.raises(Denied, match="unknown, used, revoked or expired"):
                await again.consume(minted.secret, KEYS[1])
        rows = await identities.audit.newest(None)
        assert [row.action for row in rows] == ["enrolment.create", "enrolment.use"]
        assert minted.secret not in str(rows)


async def test_of_many_who_show_it_at_once_one_is_let_in(opener: Opener) -> None:
    refused = 0
    async with opener() as first, opener() as second:
        minted = await EnrolmentTokens(StoredIdentities(first)).create("bob", lifetime_s=60)

        async def show(tokens: EnrolmentTokens, key: NodeId) -> None:
            nonlocal refused
            try:
                await tokens.consume(minted.secret, key)
            except Denied:
                refused += 1

        async with trio.open_nursery() as nursery:
            for number, key in enumerate(KEYS):
                store = (first, second)[number % 2]
                nursery.start_soon(show, EnrolmentTokens(StoredIdentities(store)), key)
        assert refused == len(KEYS) - 1
        assert len(StoredIdentities(first).peers()) == 1


async def test_all_that_is_refused_gets_one_answer(opener: Opener) -> None:
    now = 1_000.0
    async with opener() as store:
        identities = StoredIdentities(store)
        tokens = EnrolmentTokens(identities, clock=lambda: now)
        expired = await tokens.create("a", lifetime_s=10)
        revoked = await tokens.create("b", lifetime_s=10)
        await tokens.revoke(revoked.id)
        now = 1_010.0
        texts = ["", "x", "\ud800" * 52, "y" * 52, expired.secret, revoked.secret, expired.id]
        for text in texts:
            with pytest.raises(Denied) as caught:
                await tokens.consume(text, KEYS[0])
            assert caught.value.reason == "invitation unknown, used, revoked or expired"
            assert caught.value.is_failed_authentication
        assert identities.peers() == []
        with pytest.raises(NotFound):
            await tokens.revoke(revoked.id)


async def test_a_key_or_name_that_is_taken_meanwhile_leaves_the_invitation(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        tokens = EnrolmentTokens(identities)
        minted = await tokens.create("bob", lifetime_s=60)
        await identities.put_peer(Peer(name="alice", fingerprints=(KEYS[0].fingerprint,)))
        with pytest.raises(Conflict, match="belongs to peer 'alice'"):
            await tokens.consume(minted.secret, KEYS[0])
        await identities.put_peer(Peer(name="bob"))
        with pytest.raises(Conflict, match="a peer named 'bob' exists"):
            await tokens.consume(minted.secret, KEYS[1])
        await identities.remove_peer("bob")
        await tokens.consume(minted.secret, KEYS[1])


async def test_what_cannot_be_a_peer_gets_no_invitation(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        tokens = EnrolmentTokens(identities)
        for name, lifetime_s in (("owner", 60.0), ("a", 0.0), ("a", LONGEST_LIFE_S + 1)):
            with pytest.raises(LocalError):
                await tokens.create(name, lifetime_s=lifetime_s)
        await identities.put_peer(Peer(name="a"))
        with pytest.raises(Conflict):
            await tokens.create("a", lifetime_s=60)
        assert tokens.tokens() == []
