"""Whose idempotency keys are whose, on a whole node."""

from __future__ import annotations

import msgspec

from alknet.call.operations import operation, scopes
from alknet.client import open_session
from alknet.core.identity import Peer
from alknet.testing.nodes import open_node
from tests.scenarios.rig import Friend, make_friend


async def test_a_new_peer_of_a_removed_ones_name_does_not_get_its_answers() -> None:
    bought: list[int] = []

    @operation("shop/buy", access=scopes("shop"), mutation=True)
    async def buy() -> int:
        bought.append(1)
        return len(bought)

    async def buy_as(friend: Friend) -> int:
        async with open_session(node.ticket, key=friend.key, transports=["tcp"]) as session:
            return await session.call_as(int, "shop/buy", idempotency_key="k")

    ann, other = make_friend("ann", "shop"), make_friend("ann", "shop")
    async with open_node(operations=[buy]) as node:
        await node.identities.put_peer(ann.peer)
        assert [await buy_as(ann), await buy_as(ann)] == [1, 1]
        second_key = with_keys_of(ann.peer, other.peer)
        await node.identities.update_peer(second_key)
        assert await buy_as(other) == 1  # the same peer, by another key of its
        await node.identities.remove_peer("ann")
        await node.identities.put_peer(other.peer)
        assert await buy_as(other) == 2


def with_keys_of(peer: Peer, other: Peer) -> Peer:
    both = (*peer.fingerprints, *other.fingerprints)
    return msgspec.structs.replace(peer, fingerprints=both)
