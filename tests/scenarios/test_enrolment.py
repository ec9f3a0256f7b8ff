"""Strangers become peers of a running node by an invitation, and without one they do not."""

from __future__ import annotations

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call.codes import CallError
from alknet.call.enrolment import ALPN, OPERATION
from alknet.call.session import open_session as open_session_on
from alknet.client import claim, connect, join_hub, open_session
from alknet.core.endpoint.dial import DialError
from alknet.core.identity import NodeId, Peer
from alknet.core.invitation import Invitation
from alknet.core.limits import Limits
from alknet.core.ticket import Ticket
from alknet.node import Node
from alknet.stores.memory import MemoryIdentityStore
from alknet.stores.outbound import StoredOutbound
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.nodes import open_node
from tests.scenarios.rig import TRANSPORTS, bystander


async def invite(node: Node, name: str = "w1", *scopes: str) -> Invitation:
    minted = await node.enrolments.create(name, lifetime_s=60, scopes=scopes)
    return Invitation(node.ticket, minted.secret)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_stranger_with_an_invitation_is_a_peer_from_then_on(transport: str) -> None:
    key = Ed25519PrivateKey.generate()
    async with open_node() as node:
        invitation = await invite(node, "w1", "echo")
        claimed = await claim(invitation, key=key, transports=[transport])
        assert (claimed.name, claimed.scopes) == ("w1", ("echo",))
        assert Ticket.parse(claimed.ticket) == node.ticket
        assert await claim(invitation, key=key, transports=[transport]) == claimed
        async with open_session(claimed.ticket, key=key, transports=[transport]) as session:
            assert b'"peer:w1"' in bytes(await session.call("node/whoami"))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_secret_is_not_shown_to_whoever_answers(transport: str) -> None:
    async with open_node() as node, open_node() as impostor:
        invitation = await invite(node)
        lured = Invitation(Ticket(node.id, impostor.ticket.addresses), invitation.secret)
        with pytest.raises(DialError) as caught:
            await claim(lured, key=Ed25519PrivateKey.generate(), transports=[transport])
        assert "expected" in str(caught.value)
        assert len(node.enrolments.tokens()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_guessing_shuts_strangers_of_that_address_out_and_nobody_else(transport: str) -> None:
    limits = Limits(failed_authentications_per_minute=15)
    async with open_node(limits=limits) as node, bystander(node, transport):
        answered = connections = 0
        refused = False
        key = Ed25519PrivateKey.generate()
        while not refused and connections < 20:
            connections += 1
            try:
                async with (
                    connect(node.ticket, alpn=ALPN, key=key, transports=[transport]) as connection,
                    open_session_on(connection) as session,
                ):
                    for _ in range(1_000):
                        try:
                            await session.call(OPERATION, {"secret": "y" * 52})
                        except CallError as exc:
                            if exc.code != "FORBIDDEN":
                                break
                            answered += 1
                    reason = await connection.wait_closed()
                    refused = "from this address" in reason.reason
            except DialError as exc:
                refused = "from this address" in str(exc)
                break
        assert refused
        assert answered == 15
        assert connections == 4  # three of five guesses each, and the one that was not let in
        assert node.identities.peers()[0].name == "bystander"


async def test_claims_at_once_by_many_make_a_peer_of_each() -> None:
    async with open_node() as node:
        keys = {f"w{n}": Ed25519PrivateKey.generate() for n in range(8)}

        async def enrol(name: str, key: Ed25519PrivateKey) -> None:
            claimed = await claim(await invite(node, name), key=key)
            assert claimed.name == name

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for name, key in keys.items():
                    nursery.start_soon(enrol, name, key)
        for name, key in keys.items():
            found = node.identities.peer(name)
            assert found is not None
            assert found.fingerprints == (NodeId.from_public_key(key.public_key()).fingerprint,)


@pytest.mark.slow
async def test_joining_a_hub_cancelled_anywhere_is_completed_by_a_repeat() -> None:
    async with open_node() as hub:
        key = Ed25519PrivateKey.generate()
        me = NodeId.from_public_key(key.public_key())
        invitation = await invite(hub)
        store = MemoryIdentityStore()

        async def join() -> None:
            await join_hub(invitation, StoredOutbound(store, me), key=key, hub=Peer(name="hub"))

        async def check() -> None:
            # Known here is who knows us there; never the other way round.
            targets = StoredOutbound(store, me).targets()
            assert len(targets) == len(store.peers())
            assert len(targets) <= len(hub.identities.peers())
            for peer in store.peers():
                await store.remove_peer(peer.name)

        assert await cancel_at_every_checkpoint(join, check) > 5
        await join()
        assert [target.name for target in StoredOutbound(store, me).targets()] == ["hub"]
        assert [peer.name for peer in hub.identities.peers()] == ["w1"]
