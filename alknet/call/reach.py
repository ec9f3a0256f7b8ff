"""What an operation may call: the names that it declares in ``calls``, parsed once.

| entry | reaches |
| --- | --- |
| ``math/add`` | the operation of this node |
| ``@any/math/add`` | that of any attached peer, as the node chooses |
| ``@w1/math/add`` | that of the peer ``w1``, and of no other |
| ``@*/math/add`` | that of any peer, or of one that the call names |

What is not declared is `NOT_FOUND`, like what does not exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from alknet.call.spec import check_operation_name
from alknet.core.identity import check_peer_name
from alknet.errors import LocalError

__all__ = ["ANY_PEER", "EVERY_PEER", "Reach"]

ANY_PEER = "any"
"""Stands for the peer in a call that leaves the choice to the node. No peer has this name."""

EVERY_PEER = "*"
"""Stands in a declaration for `ANY_PEER` and each peer's own name."""


class Reach(msgspec.Struct, frozen=True):
    """The operations that one operation may call.

    Attributes:
        local: Names of operations of this node.
        peers: ``(peer, name)`` of operations of peers; the peer may be `ANY_PEER` or `EVERY_PEER`.
    """

    local: frozenset[str] = frozenset()
    peers: frozenset[tuple[str, str]] = frozenset()

    @classmethod
    def parse(cls, entries: Sequence[str]) -> Reach:
        """Read what stands in ``calls``.

        Raises:
            LocalError: An entry names neither an operation nor a peer's operation.
        """
        local, peers = set(), set()
        for entry in entries:
            if entry.startswith("@"):
                peers.add(_parse_peers(entry))
            else:
                check_operation_name(entry)
                local.add(entry)
        return cls(frozenset(local), frozenset(peers))

    def allows_local(self, name: str) -> bool:
        """Whether it may call the operation *name* of this node."""
        return name in self.local

    def allows_peer(self, peer: str, name: str) -> bool:
        """Whether it may call the operation *name* of *peer*: a peer's name, or `ANY_PEER`."""
        return (peer, name) in self.peers or (EVERY_PEER, name) in self.peers

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return what it calls on this node and is not among *names*, sorted."""
        return sorted(self.local.difference(names))


def _parse_peers(entry: str) -> tuple[str, str]:
    peer, _, name = entry[1:].partition("/")
    try:
        if peer not in {ANY_PEER, EVERY_PEER}:
            check_peer_name(peer)
        check_operation_name(name)
    except LocalError as exc:
        raise LocalError(
            f"{entry[:320]!r} is not '@peer/operation', '@any/operation' or '@*/operation': {exc}"
        ) from exc
    return peer, name
