"""A resource nursery for tests of operations that spawn things: nothing of it is on a disk."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from alknet.call.resources import Resources
from alknet.core.identity import NodeId, Peer
from alknet.core.limits import Limits
from alknet.core.ownership import OwnershipStore
from alknet.core.scopes import open_background
from alknet.stores.memory import MemoryIdentityStore
from alknet.stores.ownership import StoredOwnership

__all__ = ["open_resources"]


@asynccontextmanager
async def open_resources(
    peers: Sequence[str] = ("w1",),
    *,
    ownership: OwnershipStore | None = None,
    limits: Limits | None = None,
) -> AsyncGenerator[Resources]:
    """Hold what operations spawn while the block runs.

    Give it to `alknet.testing.operations.call_operation` as *ownership*.

    Args:
        peers: The names of the peers that can own something.
        ownership: Instead of *peers*, who owns what already.
        limits: How many resources there may be.
    """
    if ownership is None:
        identities = MemoryIdentityStore([Peer(name=name) for name in peers])
        ownership = StoredOwnership(identities, NodeId(b"\x01" * 32))
    resources = Resources(ownership, limits or Limits())
    async with open_background() as nursery:
        await nursery.start(resources.serve)
        yield resources
        await resources.aclose()
