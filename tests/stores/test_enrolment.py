"""Invitations: one use, by one key, under the name that was given."""

from __future__ import annotations

import pytest
import trio

from alknet.core import zbase32
from alknet.core.identity import Grant, Identity, NodeId, Peer
from alknet.core.rate import RateLimit
from alknet.errors import Conflict, Denied, LocalError, NotFound, Unavailable
from alknet.stores.enrolment import (
    KEPT_S,
    LONGEST_LIFE_S,
    LOOK_UPS_BURST,
    LOOK_UPS_PER_S,
    EnrolmentTokens,
)
from alknet.stores.identities import StoredIdentities
from alknet.stores.tables import ENROLMENTS
from alknet.testing.contract import cancel_at_every_checkpoint
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
            with pytest.raises(Denied, match="was used already"):
                await again.consume(minted.secret, KEYS[1])
        rows = await identities.audit.newest(None)
        assert [row.action for row in rows] == ["enrolment.create", "enrolment.use"]
        assert [row.who for row in rows] == ["owner", "anonymous"]
        assert minted.secret not in str(rows)


async def test_the_key_that_has_used_it_gets_the_same_answer_again(opener: Opener) -> None:
    now = 1_000.0
    async with opener() as first, opener() as second:
        identities = StoredIdentities(first)
        tokens = EnrolmentTokens(identities, clock=lambda: now)
        others = EnrolmentTokens(StoredIdentities(second), clock=lambda: now)
        minted = await tokens.create("bob", lifetime_s=60, scopes=("echo",))
        peer = await tokens.consume(minted.secret, KEYS[0], addresses=("h:1",))
        now += 3_600  # the answer was lost, and the machine was off
        for again in (tokens, others):
            found = await again.consume(minted.secret, KEYS[0])
            assert (found.name, found.scopes, found.addresses) == (
                peer.name,
                peer.scopes,
                peer.addresses,
            )
            assert found.may_offer  # it comes to work
        await identities.rename_peer("bob", "robert")
        assert (await tokens.consume(minted.secret, KEYS[0])).name == "robert"
        await identities.remove_peer("robert")
        with pytest.raises(Denied, match="was used already"):
            await tokens.consume(minted.secret, KEYS[0])
        assert identities.peers() == []
        with pytest.raises(NotFound, match="was used"):
            await tokens.revoke(minted.id)
        rows = await identities.audit.newest(None)
        assert [row.action for row in rows].count("enrolment.use") == 1


async def test_one_key_that_asks_many_times_at_once_becomes_one_peer(opener: Opener) -> None:
    async with opener() as first, opener() as second:
        minted = await EnrolmentTokens(StoredIdentities(first)).create("bob", lifetime_s=60)
        names: list[str] = []

        async def ask(tokens: EnrolmentTokens) -> None:
            names.append((await tokens.consume(minted.secret, KEYS[0])).name)

        async with trio.open_nursery() as nursery:
            for store in (first, second) * 4:
                nursery.start_soon(ask, EnrolmentTokens(StoredIdentities(store)))
        assert names == ["bob"] * 8


async def test_an_invitation_for_another_name_stays(opener: Opener) -> None:
    async with opener() as store:
        tokens = EnrolmentTokens(StoredIdentities(store))
        minted = await tokens.create("bob", lifetime_s=60)
        with pytest.raises(Denied, match="is for 'bob', not for 'carol'") as caught:
            await tokens.consume(minted.secret, KEYS[0], name="carol")
        assert not caught.value.is_failed_authentication
        assert (await tokens.consume(minted.secret, KEYS[0], name="bob")).name == "bob"


async def test_unknown_secrets_cost_a_bounded_number_of_look_ups(opener: Opener) -> None:
    look_ups = RateLimit(LOOK_UPS_PER_S, LOOK_UPS_BURST, now=lambda: 0.0)
    async with opener() as store:
        tokens = EnrolmentTokens(StoredIdentities(store), look_ups=look_ups)
        minted = await tokens.create("bob", lifetime_s=60)
        denied = 0
        waits: set[float | None] = set()
        for number in range(200):
            try:
                await tokens.consume(zbase32.encode(number.to_bytes(32, "big")), KEYS[0])
            except Denied:
                denied += 1
            except Unavailable as exc:
                waits.add(exc.retry_after_s)
        assert denied == LOOK_UPS_BURST
        assert waits == {1 / LOOK_UPS_PER_S}
        # Who has a real one is not held up.
        assert (await tokens.consume(minted.secret, KEYS[1])).name == "bob"


async def test_what_ended_long_ago_is_forgotten_when_another_is_made(opener: Opener) -> None:
    now = 1_000.0
    async with opener() as store:
        tokens = EnrolmentTokens(StoredIdentities(store), clock=lambda: now)
        used = await tokens.create("a", lifetime_s=10)
        await tokens.consume(used.secret, KEYS[0])
        await tokens.create("b", lifetime_s=10)
        now += KEPT_S
        await tokens.create("c", lifetime_s=10)
        assert len(store.rows(ENROLMENTS)) == 3
        now += 11
        await tokens.create("d", lifetime_s=10)
        assert {token.name for token in tokens.tokens()} == {"c", "d"}
        assert len(store.rows(ENROLMENTS)) == 2


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


async def test_what_is_refused_says_why_only_to_who_has_the_secret(opener: Opener) -> None:
    now = 1_000.0
    async with opener() as store:
        identities = StoredIdentities(store)
        tokens = EnrolmentTokens(identities, clock=lambda: now)
        expired = await tokens.create("a", lifetime_s=10)
        revoked = await tokens.create("b", lifetime_s=10)
        await tokens.revoke(revoked.id)
        now = 1_010.0
        unknown = ["", "x", "\ud800" * 52, "y" * 52, revoked.secret, expired.id]
        texts = dict.fromkeys(unknown, "the invitation is unknown or was revoked")
        for text, reason in {**texts, expired.secret: "the invitation has expired"}.items():
            with pytest.raises(Denied) as caught:
                await tokens.consume(text, KEYS[0])
            assert caught.value.reason == reason
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


async def test_a_claim_cancelled_anywhere_is_made_whole_or_not_at_all(opener: Opener) -> None:
    async with opener() as store:
        identities = StoredIdentities(store)
        tokens = EnrolmentTokens(identities)
        secrets = [(await tokens.create("bob", lifetime_s=60)).secret]

        async def check() -> None:
            is_used = not tokens.tokens()
            assert is_used == bool(identities.peers())
            if is_used:
                await identities.remove_peer("bob")
                secrets.append((await tokens.create("bob", lifetime_s=60)).secret)

        async def claim() -> None:
            await tokens.consume(secrets[-1], KEYS[0])

        assert await cancel_at_every_checkpoint(claim, check) > 1


async def test_an_invitation_made_or_revoked_and_cancelled_is_there_or_not(opener: Opener) -> None:
    async with opener() as store:
        tokens = EnrolmentTokens(StoredIdentities(store))

        async def make_and_revoke() -> None:
            minted = await tokens.create("bob", lifetime_s=60)
            await tokens.revoke(minted.id)

        async def check() -> None:
            for row in tokens.tokens():
                await tokens.revoke(row.id)
            assert store.rows(ENROLMENTS) == []

        assert await cancel_at_every_checkpoint(make_and_revoke, check) > 1


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
