from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.core.contracts import CloseCode
from alknet.core.endpoint.admission import Admission
from alknet.core.endpoint.live import LiveConnection, LiveConnections
from alknet.core.identity import ANONYMOUS, OWNER, Identity, NodeId
from alknet.core.limits import Limits
from alknet.errors import Denied, Unavailable
from alknet.testing.memory import MemoryConnection, memory_connection_pair
from tests.core.endpoint_kit import ALICE, TableIdentities

PEER = Identity("peer:alice", scopes=("echo",))


@asynccontextmanager
async def followed(
    identities: TableIdentities, key: NodeId | None = ALICE
) -> AsyncGenerator[tuple[LiveConnections, LiveConnection, MemoryConnection]]:
    """A live connection of *key*, judged anew at each change; its far end comes last."""
    live = LiveConnections(identities)
    async with memory_connection_pair(dialer_key=key) as (dialer, acceptor):
        with live.registered(acceptor, now=0.0) as entry:
            acceptor.identity = live.identify(entry)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(live.follow)
                await wait_all_tasks_blocked()
                yield live, entry, dialer
                nursery.cancel_scope.cancel()


async def test_removing_a_peer_closes_its_connection() -> None:
    identities = TableIdentities({ALICE: PEER})
    async with followed(identities) as (_, _, dialer):
        identities.forget(ALICE)
        assert (await dialer.wait_closed()).code == CloseCode.REVOKED


async def test_other_rights_are_told_with_the_new_identity_in_place() -> None:
    identities = TableIdentities({ALICE: PEER})
    async with followed(identities) as (_, entry, dialer):
        seen: list[Identity] = []
        entry.connection.identity_changed = lambda: seen.append(entry.connection.identity)
        identities.set(ALICE, Identity("peer:alice", scopes=("echo",)))
        await wait_all_tasks_blocked()
        assert seen == []  # nothing that matters has changed
        identities.set(ALICE, Identity("peer:alice"))
        await wait_all_tasks_blocked()
        assert seen == [Identity("peer:alice")]
        assert dialer.close_reason is None


async def test_a_revocation_before_the_follower_runs_is_not_missed() -> None:
    identities = TableIdentities({ALICE: PEER})
    live = LiveConnections(identities)
    async with memory_connection_pair(dialer_key=ALICE) as (dialer, acceptor):
        with live.registered(acceptor, now=0.0) as entry:
            acceptor.identity = live.identify(entry)
            identities.forget(ALICE)
            with trio.move_on_after(0):
                await live.follow()
            assert dialer.close_reason is not None


async def test_disabling_a_peer_closes_its_connection() -> None:
    identities = TableIdentities({ALICE: PEER})
    async with followed(identities) as (_, _, dialer):
        identities.set(ALICE, None)
        reason = await dialer.wait_closed()
    assert (reason.code, reason.reason) == (CloseCode.REVOKED, "this peer is disabled")


async def test_disabling_a_key_closes_also_a_stranger_that_holds_it() -> None:
    identities = TableIdentities()
    async with followed(identities) as (_, _, dialer):
        identities.set(ALICE, None)
        assert (await dialer.wait_closed()).code == CloseCode.REVOKED


async def test_a_key_that_becomes_another_peers_closes_its_connection() -> None:
    identities = TableIdentities({ALICE: PEER})
    async with followed(identities) as (_, _, dialer):
        identities.set(ALICE, Identity("peer:bob", scopes=("echo",)))
        reason = await dialer.wait_closed()
    assert (reason.code, reason.reason) == (CloseCode.REVOKED, "this key is another peer's now")


async def test_changed_scopes_reach_a_live_connection() -> None:
    identities = TableIdentities({ALICE: PEER})
    async with followed(identities) as (_, entry, dialer):
        changed = Identity("peer:alice", scopes=())
        identities.set(ALICE, changed)
        await wait_all_tasks_blocked()
        assert entry.connection.identity == changed
        assert dialer.close_reason is None


async def test_a_stranger_whose_key_becomes_a_peers_gets_its_identity() -> None:
    identities = TableIdentities()
    async with followed(identities) as (_, entry, _):
        entry.place = Admission(Limits()).admit("192.0.2.1", ANONYMOUS, 0.0)
        identities.set(ALICE, PEER)
        await wait_all_tasks_blocked()
        assert entry.connection.identity == PEER


async def test_a_change_that_concerns_others_changes_nothing() -> None:
    identities = TableIdentities({ALICE: PEER})
    async with followed(identities) as (_, entry, dialer):
        identities.touch()
        await wait_all_tasks_blocked()
        assert entry.connection.identity is PEER
        assert dialer.close_reason is None


async def test_a_stale_store_ends_nobody() -> None:
    identities = TableIdentities({ALICE: PEER})
    async with followed(identities) as (_, entry, dialer):
        identities.is_stale = True
        identities.forget(ALICE)
        await wait_all_tasks_blocked()
        assert entry.connection.identity == PEER
        assert dialer.close_reason is None
        identities.is_stale = False
        identities.touch()
        assert (await dialer.wait_closed()).code == CloseCode.REVOKED


async def test_a_store_that_is_stale_for_too_long_ends_what_it_granted() -> None:
    identities = TableIdentities({ALICE: PEER})
    async with followed(identities) as (_, _, dialer):
        identities.is_too_stale = True
        identities.touch()
        reason = await dialer.wait_closed()
    assert (reason.code, reason.reason) == (
        CloseCode.INTERNAL,
        "unavailable: the store is stale",
    )


async def test_a_connection_without_a_key_is_never_judged() -> None:
    identities = TableIdentities()
    identities.is_stale = True
    async with followed(identities, key=None) as (_, entry, _):
        identities.touch()
        await wait_all_tasks_blocked()
        assert entry.connection.identity == ANONYMOUS


async def test_the_control_sockets_connection_is_the_owners_whatever_the_store_says() -> None:
    identities = TableIdentities({ALICE: None})
    identities.is_stale = True
    live = LiveConnections(identities)
    async with memory_connection_pair(dialer_key=ALICE) as (_, acceptor):
        with live.registered(acceptor, now=0.0, is_owner=True) as entry:
            assert live.identify(entry) == OWNER


async def test_look_ups_fail_closed() -> None:
    identities = TableIdentities({ALICE: None})
    live = LiveConnections(identities)
    async with memory_connection_pair(dialer_key=ALICE) as (_, acceptor):
        with live.registered(acceptor, now=0.0) as entry:
            with pytest.raises(Denied):
                live.identify(entry)
            identities.is_stale = True
            with pytest.raises(Unavailable):
                live.identify(entry)


async def test_the_snapshot_shows_people_what_lives() -> None:
    identities = TableIdentities({ALICE: PEER})
    async with followed(identities) as (live, _, _):
        (status,) = live.snapshot(now=12.5)
        assert status.id == "c1"
        assert (status.alpn, status.carrier) == ("test/1", "memory")
        assert (status.identity, status.peer) == ("peer:alice", ALICE.short)
        assert (status.address, status.age_s) == ("memory:dialer", 12.5)
        assert not status.is_dialer
    assert live.snapshot(now=13.0) == []


async def test_waiting_for_none_to_be_left_ends_with_the_last_one() -> None:
    live = LiveConnections(TableIdentities())
    await live.wait_empty()
    async with memory_connection_pair() as (one, two), trio.open_nursery() as nursery:
        with live.registered(one, now=0.0):
            with live.registered(two, now=0.0):
                nursery.start_soon(live.wait_empty)
            await wait_all_tasks_blocked()
            assert nursery.child_tasks
            assert live.find(one) is not None
        assert live.find(one) is None
