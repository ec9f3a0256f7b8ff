"""Enrolment tokens: an invitation that makes whoever shows it, once, a peer of a given name.

A token that was used stays for a while, with the key that has used it: who did not hear the answer
asks again, and whoever comes late is told why it is refused. That helps nobody to guess one: all
but "unknown" is said only to who has the secret.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from itertools import islice

import msgspec

from alknet.core import zbase32
from alknet.core.clock import WallClock, wall_clock
from alknet.core.identity import ANONYMOUS, Grant, NodeId, Peer, check_peer_name, check_rights
from alknet.core.rate import RateLimit
from alknet.core.storage import ABSENT, Delete, Op, Put, Row, RowConflict
from alknet.errors import Conflict, Denied, LocalError, NotFound, Unavailable
from alknet.stores.audit import Entry, acting_as
from alknet.stores.identities import StoredIdentities, new_peer_row
from alknet.stores.tables import ENROLMENTS, PEERS, EnrolmentRow

__all__ = ["LONGEST_LIFE_S", "EnrolmentTokens", "MintedEnrolment"]

# An invitation that lies about for longer is forgotten by whom it was for, and found by others.
LONGEST_LIFE_S = 30 * 86_400.0
# For so long after its end a token is known still, to say what became of it.
KEPT_S = 30 * 86_400.0
# What is older is removed when another is made, so many at a time.
REMOVED_AT_ONCE = 100
# Secrets that memory does not know are looked for in the engine, for another process may just
# have made one. Strangers can have no more of that than this, whatever their number.
LOOK_UPS_PER_S, LOOK_UPS_BURST = 5.0, 20.0


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
        look_ups: Bounds how often strangers make it look in the engine.
    """

    def __init__(
        self,
        identities: StoredIdentities,
        *,
        clock: WallClock = wall_clock,
        look_ups: RateLimit | None = None,
    ) -> None:
        self._identities = identities
        self._store = identities.store
        self._clock = clock
        self._look_ups = look_ups or RateLimit(LOOK_UPS_PER_S, LOOK_UPS_BURST)

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
        ops: list[Op] = [*self._forgotten(now), Put(ENROLMENTS, row.id, row, ABSENT)]
        await self._identities.audit.write(ops, entry)
        return MintedEnrolment(row.id, secret)

    def tokens(self) -> Sequence[EnrolmentRow]:
        """Return those that were not used, expired ones included, by id."""
        return [row.value for row in self._store.rows(ENROLMENTS) if not row.value.used_by]

    async def consume(
        self,
        secret: str,
        key: NodeId,
        *,
        name: str | None = None,
        addresses: tuple[str, ...] = (),
    ) -> Peer:
        """Make the node that has *key* a peer, and the token useless, in one step.

        Asked again with the same secret and key, it returns the peer that was made. Cancelled,
        both was done or nothing.

        Args:
            secret: As somebody sent it.
            key: The key whose possession the sender has proven.
            name: The name that the sender expects to get; None takes any.

        Raises:
            Denied: The secret is unknown, revoked, expired or used by another key, or it is for
                another name; then the token stays.
            Conflict: The key, or meanwhile the name, belongs to another peer. The token stays.
            StoreError: The store could not be written.
            Unavailable: The store is busy or out of reach, or too many unknown secrets came.
        """
        row = await self._found(secret)
        if name is not None and name != row.value.name:
            raise Denied(f"the invitation is for {row.value.name!r}, not for {name!r}")
        if row.value.used_by:
            return await self._made_before(row.value, key)
        if row.value.expires_at <= self._clock():
            raise _refused("the invitation has expired")
        peer = Peer(
            name=row.value.name,
            fingerprints=(key.fingerprint,),
            scopes=row.value.scopes,
            resources=row.value.resources,
            addresses=addresses,
            may_offer=True,  # who is invited comes to work
        ).normalized()
        self._identities.check_new(peer)
        used = msgspec.structs.replace(row.value, used_by=key.fingerprint)
        ops: list[Op] = [
            Put(ENROLMENTS, row.key, used, row.version),
            Put(PEERS, peer.name, new_peer_row(peer), ABSENT),
        ]
        entry = Entry("enrolment.use", row.key, {"peer": peer.name, "key": key.fingerprint})
        try:
            with acting_as(ANONYMOUS.id):
                await self._identities.audit.write(ops, entry)
        except RowConflict as exc:
            if exc.table == ENROLMENTS.name:  # another was faster, perhaps the same one
                return await self.consume(secret, key, name=name, addresses=addresses)
            if exc.holder is not None:
                raise Conflict(f"key {key.fingerprint} belongs to peer {exc.holder!r}") from None
            raise Conflict(f"a peer named {peer.name!r} exists") from None
        return peer

    async def revoke(self, token_id: str) -> None:
        """Make a token useless. Raises NotFound, or like `create`. Cancelled, it was or not."""
        found = await self._store.fetch(ENROLMENTS, token_id) if token_id else None
        if found is None:
            raise NotFound(f"no invitation {token_id[:80]!r}")
        if found.value.used_by:
            raise _was_used(token_id)
        entry = Entry("enrolment.revoke", token_id, {"peer": found.value.name})
        try:
            await self._identities.audit.write([Delete(ENROLMENTS, token_id, found.version)], entry)
        except RowConflict:
            raise _was_used(token_id) from None

    async def _found(self, secret: str) -> Row[EnrolmentRow]:
        if not _SECRET.fullmatch(secret):
            raise _refused(_UNKNOWN)
        digest = _hash(secret)
        row_id = _id(digest)
        if self._store.get(ENROLMENTS, row_id) is None and not self._look_ups.take():
            wait_s = self._look_ups.wait_s
            raise Unavailable("too many unknown invitations are tried here", retry_after_s=wait_s)
        # The engine itself is asked: another process may have used it a moment ago.
        row = await self._store.fetch(ENROLMENTS, row_id)
        if row is None or not hmac.compare_digest(row.value.hash, digest):
            raise _refused(_UNKNOWN)
        return row

    async def _made_before(self, row: EnrolmentRow, key: NodeId) -> Peer:
        """Return the peer that was made with the token if *key* did; else refuse it."""
        if row.used_by == key.fingerprint:
            found = await self._store.fetch(PEERS, row.name)
            if found is not None and key.fingerprint in found.value.fingerprints:
                return found.value
            identity = self._identities.identify_key(key)  # it may have another name by now
            name = "" if identity is None else identity.id.removeprefix("peer:")
            if (peer := self._identities.peer(name)) is not None:
                return peer
        raise _refused("the invitation was used already")

    def _forgotten(self, now: float) -> list[Op]:
        rows = self._store.rows(ENROLMENTS)
        old = (row for row in rows if row.value.expires_at + KEPT_S < now)
        return [Delete(ENROLMENTS, row.key) for row in islice(old, REMOVED_AT_ONCE)]


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _id(digest: bytes) -> str:
    return zbase32.encode(digest[:5])


def _refused(reason: str) -> Denied:
    return Denied(reason, is_failed_authentication=True)


def _was_used(token_id: str) -> NotFound:
    return NotFound(f"no invitation {token_id!r} any more: it was used")


_UNKNOWN = "the invitation is unknown or was revoked"
_SECRET = re.compile(f"[{zbase32.ALPHABET}]{{52}}")
