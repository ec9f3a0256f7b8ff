"""Workers that dial their hub: it calls them by that connection, and the connection comes back."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call.codes import CallError
from alknet.call.peers import PeerRef
from alknet.client import claim
from alknet.core.address import Address
from alknet.core.config import NodeConfig
from alknet.core.identity import NodeId, Peer
from alknet.core.invitation import Invitation
from alknet.core.outbound import OutboundConfig, OutboundTarget
from alknet.node import Node
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.nodes import open_node
from tests.scenarios import rig

LOOPBACK = Address("127.0.0.1", 0)
# For a loaded machine; nothing waits so long when all is well.
PATIENCE_S = 60.0


Losses = Callable[[], Sequence[str]]


@pytest.fixture
def losses(caplog: pytest.LogCaptureFixture) -> Losses:
    """What ended kept connections, by the log: a status may have changed before a look at it."""
    caplog.set_level(logging.INFO, "alknet")
    return lambda: [
        vars(record)["reason"] for record in caplog.records if record.message == "outbound.lost"
    ]


def fingerprint(key: Ed25519PrivateKey) -> str:
    return NodeId.from_public_key(key.public_key()).fingerprint


@asynccontextmanager
async def worker_of(hub: Node, *allowed: str) -> AsyncGenerator[Node]:
    """Run a worker that was invited to *hub* and allows it *allowed*; it is there at once."""
    minted = await hub.enrolments.create("w1", lifetime_s=60, scopes=("echo",))
    key = Ed25519PrivateKey.generate()
    claimed = await claim(Invitation(hub.ticket, minted.secret), key=key)
    record = Peer(
        name="hub",
        fingerprints=(hub.id.fingerprint,),
        scopes=allowed,
        addresses=tuple(map(str, hub.ticket.addresses)),
    )
    assert claimed.name == "w1"
    async with Node(key, config=NodeConfig(listen=(LOOPBACK,))) as worker:
        await worker.outbound.join(record)
        await eventually(lambda: state(worker) == "connected")
        yield worker


async def eventually(claim: Any) -> None:
    await rig.eventually(claim, PATIENCE_S)


def status(worker: Node) -> dict[str, Any]:
    [found] = worker.status()["outbound"]
    assert isinstance(found, dict)
    return found


def state(worker: Node) -> str:
    return str(status(worker)["state"]) if worker.status()["outbound"] else "none"


async def call_back(hub: Node, operation: str, value: object = None) -> bytes:
    """Call the worker of *hub* by the connection that the worker has made."""
    [session] = [
        session
        for session in hub._calls.sessions
        if session.connection.identity.id == "peer:w1" and session.close_reason is None
    ]
    return bytes(await session.call(operation, value, timeout_s=60))


async def test_the_hub_calls_the_worker_with_the_rights_that_the_worker_gave_it() -> None:
    async with open_node() as hub, worker_of(hub, "echo") as worker:
        assert await call_back(hub, "echo/unary", {"message": 1}) == b'{"message":1}'
        assert b'"peer:hub"' in await call_back(hub, "node/whoami")
        with pytest.raises(CallError) as caught:
            await call_back(hub, "node/status")
        assert caught.value.code == "FORBIDDEN"
        [connection] = worker.status()["connections"]
        assert (connection["identity"], connection["is_dialer"]) == ("peer:hub", True)


async def test_a_hub_that_is_allowed_nothing_can_call_public_operations_alone() -> None:
    async with open_node() as hub, worker_of(hub):
        assert b'"peer:hub"' in await call_back(hub, "node/whoami")
        with pytest.raises(CallError) as caught:
            await call_back(hub, "echo/unary", {"message": 1})
        assert caught.value.code == "FORBIDDEN"


async def test_each_side_attaches_the_other_and_learns_what_it_offers() -> None:
    async with open_node() as hub, worker_of(hub, "echo") as worker:
        for node, name in ((worker, "hub"), (hub, "w1")):
            await eventually(lambda node=node: len(node.peers.offering("echo/unary")) == 1)
            assert node.peers.get(name) is not None
        ref = PeerRef.any()
        output = await hub.peers.call(ref, "echo/unary", {"message": "to a worker"})
        assert bytes(output) == b'{"message":"to a worker"}'
        assert worker.status()["outbound"][0]["attempts"] == 0


async def test_a_peer_that_may_not_offer_stays_connected_and_is_called_as_soon_as_it_may(
    losses: Losses,
) -> None:
    async with open_node() as hub, worker_of(hub, "echo") as worker:
        record = hub.identities.peer("w1")
        assert record is not None
        await eventually(lambda: hub.peers.get("w1") is not None)
        await hub.identities.update_peer(msgspec.structs.replace(record, may_offer=False))
        await eventually(losses)
        assert "takes no operations" in losses()[0]
        # It has lost the connection, dials again, and may call as before.
        await eventually(lambda: state(worker) == "connected")
        ref = PeerRef.specific("hub")
        await eventually(lambda: worker.peers.get("hub") is not None)
        assert bytes(await worker.peers.call(ref, "echo/unary", {"message": 1})) == b'{"message":1}'
        assert hub.peers.get("w1") is None
        await eventually(lambda: status(worker)["is_called"] is False)
        connected_at = status(worker)["connected_for_s"]
        await hub.identities.update_peer(record)
        await eventually(lambda: len(hub.peers.offering("echo/unary")) == 1)
        assert status(worker)["connected_for_s"] >= connected_at  # the same connection
        assert status(worker)["is_called"] is True
        output = await hub.peers.call(PeerRef.any(), "echo/unary", {"message": 2})
        assert bytes(output) == b'{"message":2}'


async def test_who_is_left_may_not_offer_from_then_on() -> None:
    async with open_node() as node, open_node() as other:
        for one, its in ((node, other), (other, node)):
            addresses = tuple(map(str, its.ticket.addresses))
            await one.outbound.join(
                Peer(name="friend", fingerprints=(its.id.fingerprint,), addresses=addresses)
            )
        for one in (node, other):
            await eventually(lambda one=one: is_called(one) is True)
        await node.outbound.leave("friend")
        # The connection that the other keeps does not make it one whom this node calls.
        await eventually(lambda: is_called(other) is False)
        assert node.peers.get("friend") is None
        assert other.peers.get("friend") is not None
        await node.outbound.join(known_as_friend(node))
        await eventually(lambda: is_called(other) is True)


def is_called(node: Node) -> bool | None:
    """Return whether the peer that *node* dials calls it."""
    called = [one["is_called"] for one in node.status()["outbound"]]
    return bool(called[0]) if called and called[0] is not None else None


def known_as_friend(node: Node) -> Peer:
    record = node.identities.peer("friend")
    assert record is not None
    return record


async def test_a_hub_that_is_disabled_or_left_is_dropped_and_comes_back_when_it_may() -> None:
    async with open_node() as hub, worker_of(hub) as worker:
        record = worker.identities.peer("hub")
        assert record is not None
        await worker.identities.update_peer(msgspec.structs.replace(record, enabled=False))
        await eventually(lambda: state(worker) == "stopped")
        assert status(worker)["last_error"] == "the peer is disabled"
        await eventually(lambda: hub.status()["connections"] == [])
        await worker.identities.update_peer(record)
        await eventually(lambda: state(worker) == "connected")
        await worker.outbound.leave("hub")
        await eventually(lambda: worker.status()["outbound"] == [])
        await eventually(lambda: hub.status()["connections"] == [])
        config = msgspec.structs.replace(worker.config, outbound=(OutboundConfig("hub"),))
        assert worker.apply(config) == []
        await eventually(lambda: state(worker) == "connected")
        assert status(worker)["in_config"]


async def test_a_worker_that_the_hub_removes_is_refused_and_keeps_asking(losses: Losses) -> None:
    async with open_node() as hub, worker_of(hub) as worker:
        record = hub.identities.peer("w1")
        assert record is not None
        await hub.identities.remove_peer("w1")
        await eventually(losses)
        assert "no longer a peer" in losses()[0]
        # From then on it is a stranger there, who is let in but not taken for a worker.
        unknown = "peer 'hub' does not know this node"
        await eventually(lambda: unknown in (status(worker)["last_error"] or ""))
        assert hub.peers.get("w1") is None
        await eventually(lambda: hub.status()["connections"] == [])
        await hub.identities.put_peer(record)
        await eventually(lambda: state(worker) == "connected" and hub.peers.get("w1") is not None)


async def test_a_worker_that_stops_says_goodbye_once() -> None:
    async with open_node() as hub:
        async with worker_of(hub) as worker:
            with trio.fail_after(PATIENCE_S):
                await worker.endpoint.drain()
            await eventually(lambda: hub.status()["connections"] == [])
            await trio.sleep(0.1)
            assert hub.status()["connections"] == []


async def test_a_hub_that_stops_does_not_wait_for_its_workers(losses: Losses) -> None:
    async with open_node() as hub, worker_of(hub):
        with trio.fail_after(PATIENCE_S):
            await hub.endpoint.drain()
        await eventually(losses)
        assert "shutting down" in losses()[0]


@pytest.mark.slow
async def test_a_dial_cancelled_anywhere_leaves_nothing_on_either_side() -> None:
    key = Ed25519PrivateKey.generate()
    known = Peer(name="w1", fingerprints=(fingerprint(key),), may_offer=True)
    async with open_node(peers=[known]) as hub, open_node(key=key) as worker:
        sessions = worker._outbound
        ticket = hub.ticket
        target = OutboundTarget(name="hub", keys=(hub.id,), addresses=ticket.addresses)

        async def dial_and_serve() -> None:
            async with sessions.dial(target, hub.id) as session:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(sessions.serve, "hub", session)
                    while hub.peers.get("w1") is None:
                        await trio.sleep(0.001)
                    nursery.cancel_scope.cancel()

        async def check() -> None:
            assert worker.peers.get("hub") is None
            assert worker.status()["connections"] == []
            await eventually(lambda: hub.status()["connections"] == [])
            await eventually(lambda: hub.peers.get("w1") is None)

        assert await cancel_at_every_checkpoint(dial_and_serve, check) > 5
