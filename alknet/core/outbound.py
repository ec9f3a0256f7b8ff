"""Peers to which a node keeps a connection of its own: workers dial their hubs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from alknet.core.address import Address
from alknet.core.nodeid import NodeId

__all__ = ["OutboundConfig", "OutboundSource", "OutboundTarget"]


class OutboundConfig(msgspec.Struct, frozen=True):
    """``[[outbound]]``, understood.

    Attributes:
        name: Of a peer.
        addresses: Where it is, before those of its record.
    """

    name: str
    addresses: tuple[Address, ...] = ()


class OutboundTarget(msgspec.Struct, frozen=True, kw_only=True):
    """A peer to keep a connection to, as it is known now.

    Attributes:
        name: Of the peer.
        keys: Of which it must prove one.
        addresses: Where to dial it.
        problem: Why it cannot be dialled as things are; empty if it can.
        in_config: It stands in ``node.toml``, and ends only there.
        joined: Differs each time that the node has joined it: who joins wants a connection now.
    """

    name: str
    keys: tuple[NodeId, ...] = ()
    addresses: tuple[Address, ...] = ()
    problem: str = ""
    in_config: bool = False
    joined: int = 0


class OutboundSource(Protocol):
    """Says which peers to keep a connection to."""

    @property
    def version(self) -> int:
        """Grows with each change that could alter `targets`."""

    def targets(self) -> Sequence[OutboundTarget]:
        """Return them all, by name, those that cannot be dialled now included."""

    async def wait_changed(self, version: int) -> int:
        """Wait until `version` differs from *version* and return it. Cancelled, nothing happens."""
