"""A peer that this node can call: one for each name, over as many sessions as it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias

from alknet.core.identity import NodeId

if TYPE_CHECKING:
    from alknet.call.peers.imports import ImportedOperation
    from alknet.call.session import CallSession

__all__ = ["AttachedPeer", "Listing"]

SMOOTHING = 1 / 8
"""The share of the newest latency in the average, as for TCP's round-trip time (RFC 6298)."""


Listing: TypeAlias = "Mapping[str, ImportedOperation]"


class AttachedPeer:
    """A peer while at least one session of it is attached.

    Attributes:
        name: Its PeerId: the name of its record.
        in_flight: Calls of ours that it runs now, over all its sessions.
        rtt_s: How long small calls take of late, the work of the peer included; None before one.
        is_healthy: It is not ejected; see `alknet.call.peers.health`.
        operations: What it offers, by name: as the newest session that has said so tells it.
        operations_version: Which state of them that is, in the peer's words.
        order: Rises with each peer that is attached.
        point: Its place among the keys of `alknet.call.peers.policies.Sticky`.
        failures: Calls in a row that failed by the peer's fault or the network's.
    """

    __slots__ = (
        "_holds",
        "_newest",
        "_on_operations",
        "_said",
        "failures",
        "in_flight",
        "is_healthy",
        "name",
        "operations",
        "operations_version",
        "order",
        "point",
        "rtt_s",
    )

    def __init__(
        self, name: str, order: int, on_operations: Callable[[AttachedPeer, Listing], None]
    ) -> None:
        """Make one without a session; only a `PeerEnvironment` does."""
        self.name = name
        self.order = order
        self.point = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
        self.in_flight = 0
        self.rtt_s: float | None = None
        self.is_healthy = True
        self.failures = 0
        self.operations: Listing = {}
        self.operations_version: str | None = None
        self._on_operations = on_operations
        # By session, oldest first: what it has said, if it has.
        self._said: dict[CallSession, tuple[Listing, str | None] | None] = {}
        self._holds: dict[CallSession, int] = {}
        self._newest: CallSession | None = None

    def __repr__(self) -> str:
        state = "" if self.is_healthy else ", ejected"
        return f"<AttachedPeer {self.name}, {len(self._said)} sessions{state}>"

    @property
    def sessions(self) -> Sequence[CallSession]:
        """Those that are attached, newest first."""
        return tuple(reversed(self._said))

    @property
    def session(self) -> CallSession | None:
        """The newest that has not ended, for new calls; None for the moment until it is detached.

        One by which the peer takes its leave is the last choice. Older ones get no new calls while
        it lives, and end what they have.
        """
        newest = self._newest
        if newest is not None and newest.close_reason is None and not newest.is_leaving:
            return newest
        alive = [session for session in self.sessions if session.close_reason is None]
        return min(alive, key=_IS_LEAVING, default=None)

    @property
    def node_id(self) -> NodeId | None:
        """The key that it has proven on the newest session; None where the carrier has no keys."""
        return None if self._newest is None else self._newest.connection.peer_key

    def set_operations(
        self, session: CallSession, operations: Listing, version: str | None = None
    ) -> None:
        """Replace what the peer offers by what it has said on *session*.

        What an older session says counts only once the newer ones have ended. Of a session that
        is not attached any more it counts for nothing.

        Args:
            session: One of `sessions`.
            operations: By name; not to be changed afterwards, and may be shared between peers.
            version: Of the peer's list.
        """
        if session not in self._said:
            return
        self._said[session] = (operations, version)
        self._adopt()

    # --- for the environment

    def join(self, session: CallSession) -> None:
        """Add a session, the newest from now on. What is known of the peer stays until it speaks.

        For the same session once more, it takes one `leave` more.
        """
        holds = self._holds.get(session, 0)
        self._holds[session] = holds + 1
        if not holds:
            self._said[session] = None
            self._newest = session

    def leave(self, session: CallSession) -> bool:
        """Take a session out; True if none is left."""
        self._holds[session] -= 1
        if not self._holds[session]:
            del self._holds[session], self._said[session]
            self._newest = next(reversed(self._said), None)
            self._adopt()
        return self._newest is None

    def took(self, seconds: float) -> None:
        """Note how long a small call has taken."""
        known = self.rtt_s
        self.rtt_s = seconds if known is None else known + SMOOTHING * (seconds - known)

    def _adopt(self) -> None:
        """Take what the newest session that spoke has said for what the peer offers."""
        for said in reversed(self._said.values()):
            if said is not None:
                operations, version = said
                if operations is not self.operations:
                    self._on_operations(self, operations)
                self.operations_version = version
                return


_IS_LEAVING = attrgetter("is_leaving")
