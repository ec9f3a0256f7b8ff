"""Which peer a call is for: one by name, or any that offers the operation."""

from __future__ import annotations

from typing import Self

import msgspec

from alknet.call.peers.policies import LeastInFlight, Policy
from alknet.call.reach import ANY_PEER
from alknet.core.identity import check_peer_name

__all__ = ["PeerRef"]


class PeerRef(msgspec.Struct, frozen=True):
    """A peer by name, or a way to choose one. Made by `specific`, `any` and `named`.

    Attributes:
        name: The peer's name (its PeerId); None for any.
        policy: How one is chosen where there is no name.
        include_local: Where no peer takes the call, this node's own operation does.
    """

    name: str | None = None
    policy: Policy = LeastInFlight()
    include_local: bool = False

    def __str__(self) -> str:
        return f"@{self.name or ANY_PEER}"

    @classmethod
    def specific(cls, name: str) -> Self:
        """Return a reference to the peer *name* and to nobody else, whatever becomes of it.

        Raises:
            LocalError: No peer can have such a name.
        """
        check_peer_name(name)
        return cls(name)

    @classmethod
    def any(cls, policy: Policy | None = None, *, include_local: bool = False) -> PeerRef:
        """Return a reference to some healthy peer that offers the operation.

        Args:
            policy: How to choose; by default that with the fewest calls of ours.
            include_local: Call this node's own operation where no peer takes the call.
        """
        if policy is None and not include_local:
            return _ANY
        return cls(None, policy or LeastInFlight(), include_local)

    @classmethod
    def named(cls, name: str) -> PeerRef:
        """Return `any` for ``any``, else `specific`: as a route or a command line names it."""
        return _ANY if name == ANY_PEER else cls.specific(name)


_ANY = PeerRef()
