"""Tickets: one string with all that is needed to dial a node; and what else a user may type.

``alknet://<z-base-32 key>@host:port[,host:port...]``
"""

from __future__ import annotations

import msgspec

from alknet.core.address import Address
from alknet.core.identity import NodeId
from alknet.errors import LocalError

__all__ = ["Address", "Target", "Ticket", "parse_target"]

SCHEME = "alknet://"
# A node with more interfaces than this names the useful ones in ``[node] advertise``.
MAX_ADDRESSES = 16


class Ticket(msgspec.Struct, frozen=True):
    """A node's key and where it listens.

    Attributes:
        node_id: Whose key must be met there.
        addresses: In the order of preference; may be empty if none is known.
    """

    node_id: NodeId
    addresses: tuple[Address, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Ticket:
        """Read a ticket; the key may have any form of a node id, repeated addresses count once.

        Raises:
            LocalError: The scheme, the key or an address is wrong; the message says which.
        """
        text = text.strip()
        if not text.lower().startswith(SCHEME):
            raise LocalError(f"not a ticket: it does not begin with {SCHEME!r}")
        key, at, hosts = text[len(SCHEME) :].removesuffix("/").partition("@")
        if at and not hosts:
            raise LocalError("ticket without an address after '@'")
        found = dict.fromkeys(Address.parse(part) for part in hosts.split(",")) if at else {}
        if len(found) > MAX_ADDRESSES:
            raise LocalError(f"ticket with {len(found)} addresses, at most {MAX_ADDRESSES}")
        return cls(NodeId.parse(key), tuple(found))

    def __str__(self) -> str:
        hosts = ",".join(map(str, self.addresses))
        return f"{SCHEME}{self.node_id}@{hosts}" if hosts else f"{SCHEME}{self.node_id}"


Target = Ticket | NodeId | Address
"""What can be dialled: pinned with addresses, pinned without, or by the Web PKI."""


def parse_target(text: str) -> Target:
    """Read what a user typed to name a node: a ticket, a node id in any form, or ``host:port``.

    Raises:
        LocalError: It is none of them; the message follows what it looks most like.
    """
    text = text.strip()
    lower = text.lower()
    if lower.startswith(SCHEME):
        return Ticket.parse(text)
    if lower.startswith("alknet-invite://"):  # holds a secret: say nothing of it
        raise LocalError("this is an invitation, not a ticket")
    if "://" in text:
        raise LocalError(f"unknown scheme, expected {SCHEME!r}, a node id or 'host:port'")
    if lower.startswith("sha256:"):
        raise LocalError("the fingerprint of a certificate cannot be dialled, only a key can")
    if ":" in text and not lower.startswith("ed25519:"):
        return Address.parse(text)
    return NodeId.parse(text)
