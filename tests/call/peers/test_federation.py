"""From whom a node takes operations."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.testing

from alknet.call.codes import CallError
from alknet.call.operations import operation, public
from alknet.call.session import CallSession
from alknet.core.config_re_export import FederationTable
from alknet.core.contracts import CloseCode
from alknet.testing.memory import memory_connection_pair
from alknet.testing.operations import peer
from tests.call.peers.federated import MemoryNode, open_world, rule


@operation("math/add", access=public())
async def add() -> int:
    return 1


@asynccontextmanager
async def connected(
    hub: MemoryNode, other: MemoryNode
) -> AsyncGenerator[tuple[CallSession, CallSession]]:
    """Yield the session of *other*, which has opened the connection, and the hub's."""
    async with (
        memory_connection_pair(alpn="alknet/call") as (out, in_),
        trio.open_nursery() as nursery,
    ):
        out.identity, in_.identity = peer(hub.name, "*"), peer(other.name, "*")
        theirs = CallSession(out, other.dispatcher, limits=other.config.limits)
        ours = CallSession(in_, hub.dispatcher, limits=hub.config.limits)
        await nursery.start(theirs.run)
        await nursery.start(ours.run)
        yield theirs, ours
        nursery.cancel_scope.cancel()


def hub_and(*names: str, offers_from: tuple[str, ...]) -> list[MemoryNode]:
    federation = FederationTable(offers_from=offers_from)
    hub = MemoryNode("hub", rules=[rule("any")], federation=federation)
    return [hub, *(MemoryNode(name, [add]) for name in names)]


async def test_a_peer_that_may_not_offer_gets_no_call_for_any() -> None:
    hub, worker, thief = hub_and("w1", "thief", offers_from=("w*",))
    async with open_world(hub, worker, thief) as world, connected(hub, thief) as (theirs, ours):
        with pytest.raises(CallError, match="FORBIDDEN: this node takes no operations from"):
            await theirs.call("peers/offer")
        client = await world.client(hub, peer("user"))
        with pytest.raises(CallError, match="NOT_FOUND"):
            await client.call("math/add", peer=("any",))
        await world.link(worker, hub)
        assert bytes(await client.call("math/add", peer=("any",))) == b"1"
        assert [attached.name for attached in hub.peers] == ["w1"]
        assert ours.close_reason is None  # it may call all the same


async def test_peers_that_the_node_dials_may_always_offer() -> None:
    hub, other = hub_and("other", offers_from=())
    async with open_world(hub, other) as world:
        await world.link(hub, other)
        assert [attached.name for attached in hub.peers] == ["other"]
        hub.federation.apply(hub.config)
        assert hub.session("other").close_reason is None


async def test_who_may_not_offer_any_more_loses_its_connection() -> None:
    hub, one, two = hub_and("w1", "x1", offers_from=("*",))
    async with open_world(hub, one, two) as world:
        await world.link(one, hub)
        async with connected(hub, two) as (theirs, ours):
            await theirs.call("peers/offer")
            await trio.testing.wait_all_tasks_blocked()
            assert len(hub.peers) == 2
            fewer = FederationTable(offers_from=("w*",))
            hub.federation.apply(msgspec.structs.replace(hub.config, federation=fewer))
            with trio.fail_after(5):
                reason = await ours.connection.wait_closed()
            assert reason.code == CloseCode.REVOKED
            await trio.testing.wait_all_tasks_blocked()
            assert [attached.name for attached in hub.peers] == ["w1"]
            assert hub.session("w1").close_reason is None
