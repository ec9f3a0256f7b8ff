"""Enrolment tokens: an invitation that makes whoever shows it, once, a peer of a given name."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence

import msgspec

from alknet.core import zbase32
from alknet.core.clock import WallClock, wall_clock
from alknet.core.identity import Grant, NodeId, Peer, check_peer_name, check_rights
from alknet.core.storage import ABSENT, Delete, Op, Put, Row, RowConflict
from alknet.errors import Conflict, Denied, LocalError, NotFound
from alknet.stores.audit import Entry
from alknet.stores.identities import StoredIdentities, new_peer_row
from alknet.stores.tables import ENROLMENTS, PEERS, EnrolmentRow

__all__ = ["LONGEST_LIFE_S", "EnrolmentTokens", "MintedEnrolment"]

# An invitation that lies about for longer is forgotten by whom it was for, and found by others.
LONGEST_LIFE_S = 30 * 86_400.0


class MintedEnrolment(msgspec.Struct, frozen=True):
    """A new token. Its ``repr`` does not show the secret.

    Attributes:
        id: Names it in lists.
        secret: 52 characters of z-base-32, to be handed to one person and then forgotten.
    """

    id: str
    secret: str

    def __repr__(self) -> str:
        return f"<MintedEnrolment {self.id}>"


class EnrolmentTokens:
    """The tokens of a node.

    Args:
        identities: Whose store and audit log are used; what a token makes is a peer there.
        clock: What judges whether one has expired.
    """

    def __init__(self, identities: StoredIdentities, *, clock: WallClock = wall_clock) -> None:
        self._identities = identities
        self._store = identities.store
        self._clock = clock

    async def create(
        self,
        name: str,
        *,
        lifetime_s: float,
        scopes: tuple[str, ...] = (),
        resources: tuple[Grant, ...] = (),
    ) -> MintedEnrolment:
        """Make a token for a peer of that name. Cancelled, one that nobody knows was stored or not.

        Raises:
            LocalError: The name, a right or the lifetime is not valid.
            Conflict: There is a peer of that name.
            StoreError: The store could not be written.
            Unavailable: The store is busy or out of reach.
        """
        check_peer_name(name)
        check_rights(scopes, resources)
        if not 0 < lifetime_s <= LONGEST_LIFE_S:
            raise LocalError(f"an invitation lives for up to {LONGEST_LIFE_S:g} s")
        if self._identities.peer(name) is not None:
            raise Conflict(f"a peer named {name!r} exists")
        secret = zbase32.encode(secrets.token_bytes(32))
        digest = _hash(secret)
        now = self._clock()
        row = EnrolmentRow(
            id=_id(digest),
            hash=digest,
            name=name,
            scopes=scopes,
            resources=resources,
            created_at=now,
            expires_at=now + lifetime_s,
        )
        entry = Entry("enrolment.create", row.id, {"peer": name, "scopes": " ".join(scopes)})
        await self._identities.audit.write([Put(ENROLMENTS, row.id, row, ABSENT)], entry)
        return MintedEnrolment(row.id, secret)

    def tokens(self) -> Sequence[EnrolmentRow]:
        """Return those that were not used, expired ones included, by id."""
        return [row.value for row in self._store.rows(ENROLMENTS)]

    async def consume(self, secret: str, key: NodeId, *, addresses: tuple[str, ...] = ()) -> Peer:
        """Make the node that has *key* a peer, and the token useless, in one step.

        Cancelled, both was done or nothing.

        Args:
            secret: As somebody sent it.
            key: The key whose possession the sender has proven.

        Raises:
            Denied: The secret is unknown, used, revoked or expired (one message for all).
            Conflict: The key, or meanwhile the name, belongs to another peer. The token stays.
            StoreError: The store could not be written.
            Unavailable: The store is busy or out of reach.
        """
        row = await self._valid(secret)
        peer = Peer(
            name=row.value.name,
            fingerprints=(key.fingerprint,),
            scopes=row.value.scopes,
            resources=row.value.resources,
            addresses=addresses,
        ).normalized()
        self._identities.check_new(peer)
        ops: list[Op] = [
            Delete(ENROLMENTS, row.key, row.version),
            Put(PEERS, peer.name, new_peer_row(peer), ABSENT),
        ]
        entry = Entry("enrolment.use", row.key, {"peer": peer.name, "key": key.fingerprint})
        try:
            await self._identities.audit.write(ops, entry)
        except RowConflict as exc:
            if exc.table == ENROLMENTS.name:  # another was faster
                raise _bad() from None
            if exc.holder is not None:
                raise Conflict(f"key {key.fingerprint} belongs to peer {exc.holder!r}") from None
            raise Conflict(f"a peer named {peer.name!r} exists") from None
        return peer

    async def revoke(self, token_id: str) -> None:
        """Make a token useless. Raises NotFound, or like `create`. Cancelled, it was or not."""
        found = await self._store.fetch(ENROLMENTS, token_id) if token_id else None
        if found is None:
            raise NotFound(f"no invitation {token_id[:80]!r}")
        entry = Entry("enrolment.revoke", token_id, {"peer": found.value.name})
        try:
            await self._identities.audit.write([Delete(ENROLMENTS, token_id, found.version)], entry)
        except RowConflict:
            raise NotFound(f"no invitation {token_id!r} any more: it was used") from None

    async def _valid(self, secret: str) -> Row[EnrolmentRow]:
        if not _SECRET.fullmatch(secret):
            raise _bad()
        digest = _hash(secret)
        # The engine itself is asked: another process may have used it a moment ago.
        row = await self._store.fetch(ENROLMENTS, _id(digest))
        if row is None or not hmac.compare_digest(row.value.hash, digest):
            raise _bad()
        if row.value.expires_at <= self._clock():
            raise _bad()
        return row


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _id(digest: bytes) -> str:
    return zbase32.encode(digest[:5])


def _bad() -> Denied:
    return Denied("invitation unknown, used, revoked or expired", is_failed_authentication=True)


_SECRET = re.compile(f"[{zbase32.ALPHABET}]{{52}}")
