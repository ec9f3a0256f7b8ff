"""``services/list-peers``: whom a caller reaches through this node, and how they are.

Each caller has its own view: a peer that it may not call anything of is not there. What it sees is
what the rules of this node (``[[re_export]]``) let it call, whether the peer allows it or not. The
owner sees everything; others only where ``[federation] list_peers`` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from alknet.call.context import Context
from alknet.call.operations import Operation, operation, public
from alknet.call.peers.attached import AttachedPeer, Listing
from alknet.call.peers.environment import PeerEnvironment
from alknet.call.peers.forwarding import Forwarder
from alknet.core.config_re_export import ReExport
from alknet.core.identity import Identity

__all__ = ["ListedPeer", "PeerFilter", "PeerList", "list_peers_operation"]

MOST_PEERS = 10_000
"""In one answer: some 2 MB without operations."""

MOST_NAME_BYTES = 4 * 1024 * 1024
"""Of the names of operations in one answer, far below the frame limit: a page rather ends early."""


class PeerFilter(msgspec.Struct, frozen=True):
    """Which peers to list, and how fully.

    Attributes:
        prefix: Of their names.
        with_operations: Name the operations that may be called of each, too.
        after: Continue after the peer of this name, which was the last of a page.
        limit: Peers of one page at the most.
    """

    prefix: str = ""
    with_operations: bool = False
    after: str = ""
    limit: Annotated[int, Meta(ge=1, le=MOST_PEERS)] = 1_000


class ListedPeer(msgspec.Struct, frozen=True, kw_only=True):
    """A peer that is attached.

    Attributes:
        name: What routes call it.
        is_healthy: It is not passed by for its failures of late.
        rtt_ms: How long small calls take of late, its work included; null before the first.
        in_flight: Calls of all callers of this node that it runs now.
        operations: Names of those that the caller may call, sorted.
        node_id: Its key, z-base-32; the owner alone is told.
        sessions: Connections that it has; the owner alone is told.
        operations_version: As the peer says it; the owner alone is told.
    """

    name: str
    is_healthy: bool
    rtt_ms: float | None
    in_flight: int
    operations: list[str] | UnsetType = UNSET
    node_id: str | UnsetType | None = UNSET
    sessions: int | UnsetType = UNSET
    operations_version: str | UnsetType | None = UNSET


class PeerList(msgspec.Struct, frozen=True):
    """What the caller reaches, sorted by name.

    Attributes:
        peers: One page of them.
        next: What to continue after; null if this was the last page.
    """

    peers: list[ListedPeer]
    next: str | None = None


def list_peers_operation(
    environment: PeerEnvironment, forwarder: Forwarder, *, is_enabled: Callable[[], bool]
) -> Operation[..., Any]:
    """Return ``services/list-peers``, to be registered with ``builtin=True``.

    Args:
        is_enabled: Whether callers but the owner see any peer.
    """

    @operation("services/list-peers", access=public(), large_output=True)
    async def list_peers(ctx: Context, wanted: PeerFilter) -> PeerList:
        """List the peers that the caller reaches through this node, by name, and how they are."""
        view = _View(forwarder, ctx.identity)
        if not view.sees_any or not (ctx.identity.is_owner or is_enabled()):
            return PeerList([])
        names = sorted(
            peer.name
            for peer in environment
            if peer.name > wanted.after and peer.name.startswith(wanted.prefix)
        )
        return _page(view, filter(None, map(environment.get, names)), wanted)

    return list_peers


class _View:
    """What one caller may call. Peers that offer the same share the work of finding out."""

    def __init__(self, forwarder: Forwarder, identity: Identity) -> None:
        self._is_owner = identity.is_owner
        self._rules = forwarder.rules_for(identity)
        # By id() of what is offered and the rules: both live as long as this does.
        self._known: dict[tuple[int, tuple[int, ...]], list[str]] = {}
        self._held: list[Listing] = []

    @property
    def sees_any(self) -> bool:
        """Whether there is a rule that could show the caller a peer."""
        return self._is_owner or bool(self._rules)

    def operations(self, peer: AttachedPeer) -> list[str]:
        """Return the names of what the caller may call of *peer*, sorted."""
        rules = () if self._is_owner else self._rules_about(peer.name)
        if not rules and not self._is_owner:
            return []
        key = (id(peer.operations), tuple(map(id, rules)))
        found = self._known.get(key)
        if found is None:
            self._held.append(peer.operations)
            found = self._known[key] = sorted(
                name
                for name in peer.operations
                if self._is_owner or any(rule.covers((peer.name,), name) for rule in rules)
            )
        return found

    def describe(self, peer: AttachedPeer, operations: list[str] | UnsetType) -> ListedPeer:
        listed = ListedPeer(
            name=peer.name,
            is_healthy=peer.is_healthy,
            rtt_ms=None if peer.rtt_s is None else round(peer.rtt_s * 1000, 3),
            in_flight=peer.in_flight,
            operations=operations,
        )
        if not self._is_owner:
            return listed
        key = peer.node_id
        return msgspec.structs.replace(
            listed,
            node_id=None if key is None else str(key),
            sessions=len(peer.sessions),
            operations_version=peer.operations_version,
        )

    def sees(self, peer: AttachedPeer) -> bool:
        """Whether *peer* is there for the caller."""
        return self._is_owner or bool(self.operations(peer))

    def _rules_about(self, name: str) -> Sequence[ReExport]:
        return tuple(rule for rule in self._rules if rule.is_about((name,)))


def _page(view: _View, peers: Iterator[AttachedPeer], wanted: PeerFilter) -> PeerList:
    seen = (peer for peer in peers if view.sees(peer))
    page: list[ListedPeer] = []
    name_bytes = 0
    for peer in islice(seen, wanted.limit):
        operations = view.operations(peer) if wanted.with_operations else UNSET
        page.append(view.describe(peer, operations))
        name_bytes += 0 if operations is UNSET else sum(map(len, operations))
        if name_bytes >= MOST_NAME_BYTES:
            break
    more = next(seen, None) is not None
    return PeerList(page, page[-1].name if more and page else None)
