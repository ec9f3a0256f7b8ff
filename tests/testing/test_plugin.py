"""The pytest fixtures that users get with ``alknet[testing]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from trio.testing import MockClock

from alknet.call.codes import CallError
from alknet.call.operations import Operation, operation, scopes
from alknet.client import open_session
from alknet.node import Node
from alknet.testing.network import FakeNetwork
from alknet.testing.nodes import NodePair, open_peer_session


@operation("sums/add", access=scopes("sums"))
async def add(numbers: list[int]) -> int:
    """Add numbers."""
    return sum(numbers)


@pytest.fixture
def node_operations() -> Sequence[Operation[..., Any]]:
    """What the nodes of this module serve."""
    return (add,)


async def test_a_node_serves_the_operations_of_the_module(node: Node) -> None:
    async with open_peer_session(node, scopes=["sums"]) as session:
        assert await session.call_as(int, "sums/add", [1, 2, 3]) == 6
    assert not node.identities.peers()


async def test_a_stranger_of_the_node_gets_nothing(node: Node) -> None:
    async with open_session(node.ticket) as session:
        with pytest.raises(CallError, match="FORBIDDEN"):
            await session.call("sums/add", [1])


@pytest.mark.parametrize("transport", ["quic", "tcp"])
async def test_a_pair_know_each_other(node_pair: NodePair, transport: str) -> None:
    async with node_pair.session(transports=[transport]) as session:
        assert await session.call_as(int, "sums/add", [4, 5]) == 9
        who = await session.call_as(dict[str, Any], "node/whoami")
    assert who["id"] == "peer:left"


async def test_the_fake_network_carries_datagrams(
    fake_network: FakeNetwork, autojump_clock: MockClock
) -> None:
    here = fake_network.socket(("192.0.2.1", 1))
    there = fake_network.socket(("192.0.2.2", 2))
    assert here.send(b"hello", ("192.0.2.2", 2))
    assert await there.receive() == [(b"hello", ("192.0.2.1", 1))]
