"""From whom a node takes operations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from alknet.call.codes import CallError
from alknet.call.operations import operation, public
from alknet.call.peers.federation import FOLLOW_INTERVAL_S
from alknet.call.session import CallSession
from alknet.core.config import NodeConfig
from alknet.core.contracts import CloseCode
from alknet.core.identity import Peer
from alknet.core.outbound import OutboundConfig
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
        hub.known.add(other.name)
        theirs = CallSession(out, other.dispatcher, limits=other.config.limits)
        ours = CallSession(in_, hub.dispatcher, limits=hub.config.limits)
        await nursery.start(theirs.run)
        await nursery.start(ours.run)
        yield theirs, ours
        nursery.cancel_scope.cancel()


def hub_and(*names: str, offerers: Collection[str] = (), **options: Any) -> list[MemoryNode]:
    options.setdefault("rules", [rule("any")])
    hub = MemoryNode("hub", offerers=offerers, **options)
    return [hub, *(MemoryNode(name, [add]) for name in names)]


@asynccontextmanager
async def followed(hub: MemoryNode) -> AsyncGenerator[None]:
    """Have the hub follow what its peers may, for as long as the block."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.federation.follow_offerers)
        await trio.testing.wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


def attached(hub: MemoryNode) -> list[str]:
    return sorted(peer.name for peer in hub.peers)


async def test_a_peer_that_may_not_offer_gets_no_call_for_any(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub, worker, thief = hub_and("w1", "thief", offerers=["w1"])
    async with open_world(hub, worker, thief) as world, connected(hub, thief) as (theirs, ours):
        with pytest.raises(CallError, match="FORBIDDEN: this node takes no operations") as caught:
            await theirs.call("peers/offer")
        assert caught.value.details == {"reason": "may_not_offer"}
        assert "peer.not_taken" in caplog.messages
        client = await world.client(hub, peer("user"))
        with pytest.raises(CallError, match="NOT_FOUND"):
            await client.call("math/add", peer=("any",))
        await world.link(worker, hub)
        assert bytes(await client.call("math/add", peer=("any",))) == b"1"
        assert attached(hub) == ["w1"]
        assert ours.close_reason is None  # it may call all the same


async def test_by_default_no_peer_may_offer() -> None:
    assert not Peer(name="w1").may_offer
    assert not NodeConfig().re_exports


async def test_peers_that_the_node_dials_may_always_offer() -> None:
    hub, other = hub_and("other")
    async with open_world(hub, other) as world:
        await world.link(hub, other)
        assert attached(hub) == ["other"]
        hub.federation.apply(hub.config)
        assert hub.session("other").close_reason is None


# What node.toml says, and whether the peer w1 may then offer on a connection of its own.
ASKED: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({"outbound": (OutboundConfig("w1"),)}, True),
    ({"outbound": (OutboundConfig("w2"),)}, False),
    ({"re_exports": (rule("w1"),)}, True),
    ({"re_exports": (rule(["any", "w1/x*"]),)}, True),
    ({"re_exports": (rule(["any", "w*", "*", "**", "*/w1", "w2"]),)}, False),
]


@pytest.mark.parametrize(("config", "may"), ASKED)
async def test_peers_that_the_file_names_may_offer(config: dict[str, Any], may: bool) -> None:
    hub, worker = hub_and("w1", rules=())
    async with open_world(hub, worker), connected(hub, worker) as (theirs, _):
        hub.federation.apply(msgspec.structs.replace(hub.config, **config))
        with nullcontext() if may else pytest.raises(CallError, match="FORBIDDEN"):
            await theirs.call("peers/offer")
        await trio.testing.wait_all_tasks_blocked()
        assert attached(hub) == (["w1"] if may else [])


async def test_who_is_let_after_its_offer_is_called_at_once() -> None:
    hub, worker = hub_and("w1")
    async with (
        open_world(hub, worker) as world,
        connected(hub, worker) as (theirs, _),
        followed(hub),
    ):
        with pytest.raises(CallError, match="FORBIDDEN"):
            await theirs.call("peers/offer")
        client = await world.client(hub, peer("user"))
        hub.identities.let_offer("w2")
        await trio.testing.wait_all_tasks_blocked()
        assert attached(hub) == []
        await trio.sleep(2 * FOLLOW_INTERVAL_S)
        hub.identities.let_offer("w1")
        await trio.testing.wait_all_tasks_blocked()
        assert attached(hub) == ["w1"]
        assert bytes(await client.call("math/add", peer=("any",))) == b"1"


async def test_what_offered_and_is_gone_is_not_attached(
    autojump_clock: trio.testing.MockClock,
) -> None:
    hub, worker = hub_and("w1")
    async with open_world(hub, worker), followed(hub):
        async with connected(hub, worker) as (theirs, _):
            with pytest.raises(CallError, match="FORBIDDEN"):
                await theirs.call("peers/offer")
            theirs.end(CloseCode.OK)
            await trio.sleep(1)
            hub.identities.let_offer("w1")
            await trio.sleep(1)
            assert attached(hub) == []


async def test_who_may_not_offer_any_more_loses_its_connection() -> None:
    hub, one, two = hub_and("w1", "x1", offerers=["w1", "x1"])
    async with open_world(hub, one, two) as world, followed(hub):
        await world.link(one, hub)
        async with connected(hub, two) as (theirs, ours):
            await theirs.call("peers/offer")
            await trio.testing.wait_all_tasks_blocked()
            assert attached(hub) == ["w1", "x1"]
            hub.identities.let_offer("w1")
            with trio.fail_after(30):
                reason = await ours.connection.wait_closed()
            assert reason.code == CloseCode.REVOKED
            await trio.testing.wait_all_tasks_blocked()
            assert attached(hub) == ["w1"]
            assert hub.session("w1").close_reason is None


async def test_a_peer_that_may_not_offer_is_missed_by_its_name() -> None:
    hub, worker = hub_and("w1", rules=[rule("w*")])
    async with open_world(hub, worker) as world, connected(hub, worker):
        client = await world.client(hub, peer("user"))
        with pytest.raises(CallError, match="for calls: it may not offer operations"):
            await client.call("math/add", peer=("w1",))
        hub.identities.let_offer("w1")
        with pytest.raises(CallError, match=r"the peer 'w1' is not connected$"):
            await client.call("math/add", peer=("w1",))
