"""The peers that offer an operation, by operation: kept up to date, never searched."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable
from hashlib import blake2b
from operator import attrgetter
from struct import Struct

from alknet.call.peers.attached import AttachedPeer

__all__ = ["Candidates", "OfferIndex"]


class Candidates:
    """The peers that offer one operation.

    Attributes:
        offering: How many do, available or not.
        available: Those that can be chosen, in order of attachment.
    """

    __slots__ = ("_ring", "_turn", "available", "offering")

    def __init__(self) -> None:
        self.offering = 0
        self.available: list[AttachedPeer] = []
        self._turn = 0
        self._ring: Ring | None = None

    def add(self, peer: AttachedPeer) -> None:
        """Let *peer*, which is not among them, be chosen."""
        available = self.available
        if not available or available[-1].order < peer.order:
            available.append(peer)
        else:
            index = bisect_left(available, peer.order, key=_ORDER)
            available.insert(index, peer)
            self._turn += index < self._turn
        if self._ring is not None:
            self._ring.add(peer)

    def remove(self, peer: AttachedPeer) -> None:
        """Let *peer*, which is among them, be chosen no more."""
        index = bisect_left(self.available, peer.order, key=_ORDER)
        del self.available[index]
        self._turn -= index < self._turn
        if self._ring is not None:
            self._ring.remove(peer)

    def next_in_turn(self) -> AttachedPeer:
        """Return each of the available after the other; there is at least one."""
        turn = self._turn
        if turn >= len(self.available):
            turn = 0
        self._turn = turn + 1
        return self.available[turn]

    def after(self, peer: AttachedPeer, tried: Collection[AttachedPeer]) -> AttachedPeer:
        """Return *peer* or the first after it that was not tried; *peer* if all were."""
        if peer not in tried:
            return peer
        available = self.available
        index = bisect_left(available, peer.order, key=_ORDER)
        for step in range(min(len(tried) + 1, len(available))):
            other = available[(index + step) % len(available)]
            if other not in tried:
                return other
        return peer

    def count_besides(self, tried: Collection[AttachedPeer]) -> int:
        """Return how many of the available were not tried."""
        return len(self.available) - sum(map(self._has, tried))

    def owner_of(self, key: str) -> AttachedPeer:
        """Return the available one that *key* belongs to; there is at least one."""
        if self._ring is None:  # few operations are ever called so
            self._ring = Ring(self.available)
        return self._ring.owner_of(key)

    def _has(self, peer: AttachedPeer) -> bool:
        index = bisect_left(self.available, peer.order, key=_ORDER)
        return index < len(self.available) and self.available[index] is peer


class Ring:
    """Consistent hashing with one point for each peer and several probes for each key.

    The key goes to the peer whose point follows one of the probes most closely. With eight probes
    the busiest peer has some 1.15 times its share, without the hundreds of points for each peer
    that a plain ring needs. Source: Appleton and O'Reilly, Multi-probe consistent hashing (2015).
    """

    __slots__ = ("_peers", "_points")

    def __init__(self, peers: Iterable[AttachedPeer]) -> None:
        self._peers = sorted(peers, key=_POINT)
        self._points = [peer.point for peer in self._peers]  # bisecting numbers is far faster

    def add(self, peer: AttachedPeer) -> None:
        """Give *peer* the keys that are nearest to it."""
        index = bisect_left(self._points, peer.point)
        self._points.insert(index, peer.point)
        self._peers.insert(index, peer)

    def remove(self, peer: AttachedPeer) -> None:
        """Give the keys of *peer* to others."""
        index = bisect_left(self._points, peer.point)
        while self._peers[index] is not peer:  # two names with one hash: as good as never
            index += 1
        del self._points[index], self._peers[index]

    def owner_of(self, key: str) -> AttachedPeer:
        """Return the peer of *key*; there is at least one."""
        points = self._points
        count = len(points)
        best, least = 0, _CIRCLE
        for probe in _PROBES.unpack(blake2b(key.encode(), person=_PERSON).digest()):
            index = bisect_left(points, probe)
            if index == count:  # past the last comes the first
                index, distance = 0, points[0] + _CIRCLE - probe
            else:
                distance = points[index] - probe
            if distance < least:
                best, least = index, distance
        return self._peers[best]


class OfferIndex:
    """`Candidates` by the name of the operation."""

    def __init__(self) -> None:
        self._by_operation: dict[str, Candidates] = {}

    def __len__(self) -> int:
        return len(self._by_operation)

    def find(self, operation: str) -> Candidates | None:
        """Return who offers *operation*; None if nobody attached does."""
        return self._by_operation.get(operation)

    def offer(self, peer: AttachedPeer, operations: Iterable[str], *, is_available: bool) -> None:
        """Note that *peer* offers *operations*, none of which it did before."""
        for name in operations:
            candidates = self._by_operation.get(name)
            if candidates is None:
                candidates = self._by_operation[name] = Candidates()
            candidates.offering += 1
            if is_available:
                candidates.add(peer)

    def withdraw(
        self, peer: AttachedPeer, operations: Iterable[str], *, is_available: bool
    ) -> None:
        """Note that *peer* no longer offers *operations*, all of which it did."""
        for name in operations:
            candidates = self._by_operation[name]
            candidates.offering -= 1
            if is_available:
                candidates.remove(peer)
            if not candidates.offering:
                del self._by_operation[name]

    def set_available(self, peer: AttachedPeer, *, is_available: bool) -> None:
        """Let *peer* be chosen for what it offers, or not; it was the other way round."""
        for name in peer.operations:
            candidates = self._by_operation[name]
            if is_available:
                candidates.add(peer)
            else:
                candidates.remove(peer)


_ORDER = attrgetter("order")
_POINT = attrgetter("point")
_CIRCLE = 2**64
_PROBES = Struct("<8Q")
_PERSON = b"alknet sticky"
