"""Who may connect: counts and bounds, without I/O; the caller passes the time.

Three things are bounded: handshakes and connections of strangers per *source*, connections per
identity, and connections in all. A source is what an attacker cannot multiply for free: an IPv4
address, an IPv6 /64 (one customer holds at least that), or the identity of the peer that relays.
Unix sockets have no source: file permissions have already decided.

Failed authentications (a refused token, the key of a disabled peer) are counted per connection
and per source. A source with too many is shut for a minute, but only to strangers: a proven peer
behind the same NAT is let in.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

from alknet.core.identity import ANONYMOUS, OWNER, Identity
from alknet.core.limits import Limits
from alknet.errors import Unavailable

__all__ = ["Admission", "Place"]

FAILURE_WINDOW_S = 60.0
SHUT_OUT_S = 60.0
# Sources with failures are swept when there are this many; entries older than a minute go.
SWEEP_ABOVE = 1_024


class Place:
    """One admitted connection's share of the counters; give it back with `release`."""

    def __init__(self, admission: Admission, source: str | None, identity: Identity) -> None:
        self._admission = admission
        self._identity_id = identity.id
        self.source = source
        self.failed_authentications = 0

    def move_to(self, identity: Identity) -> None:
        """Count the connection under *identity* from now on; never refused, for it is in."""
        self._admission.recount(self.source, self._identity_id, -1)
        self._identity_id = identity.id
        self._admission.recount(self.source, self._identity_id, +1)

    def release(self) -> None:
        """Give the place back; once."""
        self._admission.recount(self.source, self._identity_id, -1)
        self._admission.total -= 1


class Admission:
    """The counters of one endpoint.

    Attributes:
        limits: May be replaced at any time; what is already in stays in.
        total: Connections admitted and not released.
        handshakes: Handshakes in progress.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.total = 0
        self.handshakes = 0
        self._handshakes_by_source: Counter[str] = Counter()
        self._strangers_by_source: Counter[str] = Counter()
        self._by_identity: Counter[str] = Counter()
        self._failures: dict[str, deque[float]] = {}
        self._shut_out_until: dict[str, float] = {}

    @contextmanager
    def handshake(self, source: str | None) -> Iterator[None]:
        """Count a handshake while the block runs.

        Handshakes have a count of their own, beside that of strangers' connections: a source
        whose strangers fill theirs must still be able to prove that a peer is among them.

        Raises:
            Unavailable: This source, or the node, has too many.
        """
        if self.total + self.handshakes >= self.limits.connections:
            raise Unavailable("the node has too many connections")
        if source is not None:
            if self._handshakes_by_source[source] >= self.limits.connections_per_address:
                raise Unavailable("too many handshakes from this address")
            self._handshakes_by_source[source] += 1
        self.handshakes += 1
        try:
            yield
        finally:
            self.handshakes -= 1
            _take(self._handshakes_by_source, source)

    def admit(self, source: str | None, identity: Identity, now: float) -> Place:
        """Take a place for a connection whose handshake is over.

        Args:
            source: See `source_of`; None for a Unix socket.
            identity: Whom the proven key belongs to, or `ANONYMOUS`.
            now: Seconds of a monotonic clock, the same for all calls.

        Raises:
            Unavailable: A limit is reached. The owner is always admitted.
        """
        if identity.id != OWNER.id:
            self._check(source, identity, now)
        return self.enter(source, identity)

    def enter(self, source: str | None, identity: Identity) -> Place:
        """Take a place without being asked for: for connections that this node dialled."""
        self.total += 1
        self.recount(source, identity.id, +1)
        return Place(self, source, identity)

    def failed_authentication(self, place: Place, now: float) -> bool:
        """Count a refused token on an admitted connection; True if the connection must close."""
        place.failed_authentications += 1
        self.failed_key(place.source, now)
        allowed = self.limits.failed_authentications_per_connection
        return place.failed_authentications >= allowed

    def failed_key(self, source: str | None, now: float) -> None:
        """Count a failed authentication against *source*; it may shut strangers there out."""
        if source is None:
            return
        self._sweep(now)
        failures = self._failures.setdefault(source, deque())
        failures.append(now)
        while failures[0] <= now - FAILURE_WINDOW_S:
            failures.popleft()
        if len(failures) >= self.limits.failed_authentications_per_minute:
            self._shut_out_until[source] = now + SHUT_OUT_S
            del self._failures[source]

    def is_shut_out(self, source: str | None, now: float) -> bool:
        """Strangers from *source* have to wait."""
        return source is not None and now < self._shut_out_until.get(source, now)

    def recount(self, source: str | None, identity_id: str, by: int) -> None:
        """Add *by* (1 or -1) where a connection of that identity is counted; for `Place`."""
        if identity_id != ANONYMOUS.id:
            _add(self._by_identity, identity_id, by)
        elif source is not None:
            _add(self._strangers_by_source, source, by)

    def _check(self, source: str | None, identity: Identity, now: float) -> None:
        if self.total >= self.limits.connections:
            raise Unavailable("the node has too many connections")
        if identity.id != ANONYMOUS.id:
            if self._by_identity[identity.id] >= self.limits.connections_per_identity:
                raise Unavailable("this identity has too many connections")
            return
        if source is None:
            return
        if self.is_shut_out(source, now):
            wait_s = self._shut_out_until[source] - now
            raise Unavailable(
                "too many failed authentications from this address: wait a minute",
                retry_after_s=wait_s,
            )
        if self._strangers_by_source[source] >= self.limits.connections_per_address:
            raise Unavailable("too many connections from this address")

    def _sweep(self, now: float) -> None:
        if len(self._failures) + len(self._shut_out_until) < SWEEP_ABOVE:
            return
        oldest = now - FAILURE_WINDOW_S
        self._failures = {s: f for s, f in self._failures.items() if f[-1] > oldest}
        self._shut_out_until = {s: t for s, t in self._shut_out_until.items() if t > now}


def _add(counter: Counter[str], key: str, by: int) -> None:
    counter[key] += by
    if counter[key] <= 0:
        del counter[key]


def _take(counter: Counter[str], key: str | None) -> None:
    if key is not None:
        _add(counter, key, -1)
