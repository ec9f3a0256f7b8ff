"""How a peer is chosen among the healthy ones that offer an operation.

Each choice costs the same with one peer as with ten thousand, or grows with the logarithm: none
looks at all of them. What a policy remembers is kept with the operation (`Candidates`), so that
handlers may make policies as they go.

| policy | chooses |
| --- | --- |
| `First` | the one that has been attached the longest |
| `RoundRobin` | the next in order of attachment |
| `LeastInFlight` | the one with the fewest calls of ours: among `EXACT` or fewer, of all; among \
more, of `DRAWS` drawn at random |
| `Sticky` | the same one for the same key, as long as it is there |
| `LatencyWeighted` | of two drawn at random, the faster one the more often the faster it is |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from alknet.call.peers.attached import AttachedPeer
from alknet.call.peers.candidates import Candidates

__all__ = ["Draw", "First", "LatencyWeighted", "LeastInFlight", "Policy", "RoundRobin", "Sticky"]

Draw: TypeAlias = Callable[[], float]
"""A random number in [0, 1): like that of the `random` module."""

EXACT = 8
"""Peers that are all looked at: a small fleet whose calls are long must not have one idle."""

DRAWS = 4
"""Peers that are drawn where there are more: two suffice against a queue, four find an idle one
among busy ones twice as often, for a microsecond."""

FEWEST = 1 / 64
"""Of two, the slow one still gets this part of the calls: how else would it show that it is fast
again?"""

UNKNOWN_S = 1e-4
"""Taken for the latency of a peer that has answered nothing yet, so that it is soon tried."""


class First(msgspec.Struct, frozen=True):
    """The one that has been attached the longest; the others are its reserve."""

    def choose(self, candidates: Candidates, draw: Draw) -> AttachedPeer:
        """Return one of the available, of which there is at least one."""
        return candidates.available[0]


class RoundRobin(msgspec.Struct, frozen=True):
    """Each in turn, in order of attachment; all calls of the operation share the turn."""

    def choose(self, candidates: Candidates, draw: Draw) -> AttachedPeer:
        """Return one of the available, of which there is at least one."""
        return candidates.next_in_turn()


class LeastInFlight(msgspec.Struct, frozen=True):
    """The one with the fewest calls of ours, whatever their operation; ties go by turns."""

    def choose(self, candidates: Candidates, draw: Draw) -> AttachedPeer:
        """Return one of the available, of which there is at least one."""
        peers = candidates.available
        best = candidates.next_in_turn()
        if best.in_flight == 0 or len(peers) == 1:
            return best
        drawn = peers if len(peers) <= EXACT else [_drawn(peers, draw) for _ in range(DRAWS)]
        for peer in drawn:
            if peer.in_flight < best.in_flight:
                best = peer
        return best


class Sticky(msgspec.Struct, frozen=True):
    """The same one for the same key; when a peer leaves, only its own keys move.

    By consistent hashing of peer names: nodes that have the same peers agree.

    Attributes:
        key: Of a user, a session, a document: whatever a peer keeps warm.
    """

    key: str

    def choose(self, candidates: Candidates, draw: Draw) -> AttachedPeer:
        """Return one of the available, of which there is at least one."""
        return candidates.owner_of(self.key)


class LatencyWeighted(msgspec.Struct, frozen=True):
    """Of two drawn at random, one that answers in half the time gets twice as many calls.

    What counts is the recent latency times the calls in flight, ours and this one.
    """

    def choose(self, candidates: Candidates, draw: Draw) -> AttachedPeer:
        """Return one of the available, of which there is at least one."""
        peers = candidates.available
        count = len(peers)
        index = int(draw() * count)
        one = peers[index]
        if count == 1:
            return one
        other = peers[(index + 1 + int(draw() * (count - 1))) % count]
        cost, others_cost = _cost(one), _cost(other)
        share = others_cost / (cost + others_cost)
        return one if draw() < min(max(share, FEWEST), 1 - FEWEST) else other


Policy: TypeAlias = First | RoundRobin | LeastInFlight | Sticky | LatencyWeighted


def _drawn(peers: list[AttachedPeer], draw: Draw) -> AttachedPeer:
    return peers[int(draw() * len(peers))]


def _cost(peer: AttachedPeer) -> float:
    return (peer.rtt_s or UNKNOWN_S) * (peer.in_flight + 1)
