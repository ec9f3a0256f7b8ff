"""The pytest plugin: fixtures with which users test their own operations and handlers.

``pip install alknet[testing]`` makes them available; tests are ``async def`` with pytest-trio.

* ``node``: a running node on free ports of loopback. The fixtures ``node_operations`` and
  ``node_handlers`` say what it serves; override them in your module or conftest.
* ``node_pair``: two of them that know each other (`alknet.testing.nodes.NodePair`).
* ``fake_network``: a network under a virtual clock, with seeded loss, delay and reordering.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import pytest_trio

if TYPE_CHECKING:
    from alknet.call.operations import Operation
    from alknet.core.contracts import ProtocolHandler
    from alknet.node import Node
    from alknet.testing.network import FakeNetwork
    from alknet.testing.nodes import NodePair

__all__ = ["fake_network", "node", "node_handlers", "node_operations", "node_pair"]


@pytest.fixture
def node_operations() -> Sequence[Operation[..., Any]]:
    """Operations of the fixtures ``node`` and ``node_pair``; override it."""
    return ()


@pytest.fixture
def node_handlers() -> Sequence[ProtocolHandler]:
    """Handlers of the fixture ``node``; override it."""
    return ()


@pytest_trio.trio_fixture
async def node(
    node_operations: Sequence[Operation[..., Any]], node_handlers: Sequence[ProtocolHandler]
) -> AsyncGenerator[Node]:
    """Run a node with ``node_operations`` and ``node_handlers`` for the test."""
    from alknet.testing.nodes import open_node

    async with open_node(operations=node_operations, handlers=node_handlers) as running:
        yield running


@pytest_trio.trio_fixture
async def node_pair(node_operations: Sequence[Operation[..., Any]]) -> AsyncGenerator[NodePair]:
    """Run two nodes that know each other and grant each other everything but ``admin:*``."""
    from alknet.testing.nodes import open_node_pair

    async with open_node_pair(operations=node_operations) as pair:
        yield pair


@pytest.fixture
def fake_network() -> FakeNetwork:
    """Make an unreliable network; use it with the fixture ``autojump_clock``."""
    from alknet.testing.network import FakeNetwork

    return FakeNetwork(seed=0)
