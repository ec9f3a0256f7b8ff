"""What a node keeps in its store: the rows, and the tables that they are in.

A field that a later version adds needs a default; what it removes is ignored when read.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from alknet.core.identity import ApiKey, Grant, Peer
from alknet.core.storage import Table

__all__ = [
    "API_KEYS",
    "AUDIT",
    "AUDIT_HEADS",
    "CREDENTIALS",
    "ENROLMENTS",
    "LEASES",
    "LEASE_BEATS",
    "NODE_TABLES",
    "OUTBOUND",
    "OWNERSHIP",
    "PEERS",
    "SUCCESSORS",
    "SUCCESSION_TOLD",
    "AuditHead",
    "AuditRow",
    "CredentialRow",
    "EnrolmentRow",
    "LeaseBeat",
    "LeaseRow",
    "OutboundRow",
    "OwnershipRow",
    "PeerRow",
    "Successor",
    "SuccessorsRow",
    "ToldRow",
]


class PeerRow(
    Peer, frozen=True, kw_only=True, forbid_unknown_fields=False, omit_defaults=True, gc=False
):
    """A peer, under its name. There may be 100,000: what is as always is not written.

    Attributes:
        incarnation: Random; tells this peer from an earlier one of the same name.
    """

    incarnation: str = ""

    def __post_init__(self) -> None:
        # Many peers have the same scopes: one tuple serves them all.
        msgspec.structs.force_setattr(self, "scopes", _shared_scopes(self.scopes))


class OwnershipRow(msgspec.Struct, frozen=True, kw_only=True):
    """Who owns a runtime resource of a node, under ``<node>/<type>/<id>``.

    Attributes:
        node: The z-base-32 text of the node on which the resource lives.
        owner: The id of an identity, such as ``peer:bob``.
        incarnation: That of the peer; see `PeerRow`.
        ends_with_node: The resource lived in the process that wrote the row, and in no later one.
    """

    node: str
    owner: str
    incarnation: str
    resource_type: str
    resource_id: str
    ends_with_node: bool = False


class OutboundRow(msgspec.Struct, frozen=True, kw_only=True):
    """A peer to which a node keeps a connection, under ``<node>/<peer>``.

    Attributes:
        node: The z-base-32 text of the node that dials.
        peer: The name of the peer.
        incarnation: That of the peer; see `PeerRow`.
    """

    node: str
    peer: str
    incarnation: str


class CredentialRow(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed secret, under ``<service>/<name>``.

    Attributes:
        sealed: ``alkv1:…``; only the vault opens it.
        updated_at: Wall-clock seconds.
    """

    service: str
    name: str
    sealed: str
    updated_at: float


class EnrolmentRow(msgspec.Struct, frozen=True, kw_only=True):
    """An invitation, under its id. The secret itself is kept nowhere.

    Attributes:
        hash: SHA-256 of the secret.
        name: The name that its user gets as a peer.
        created_at: Wall-clock seconds.
        expires_at: Wall-clock seconds after which it is refused.
        used_by: The fingerprint of the key that has used it; empty while it can be used.
    """

    id: str
    hash: bytes
    name: str
    scopes: tuple[str, ...] = ()
    resources: tuple[Grant, ...] = ()
    created_at: float
    expires_at: float
    used_by: str = ""


class LeaseRow(msgspec.Struct, frozen=True, kw_only=True):
    """Which process runs a node, under the node's id. Written when it changes hands.

    Attributes:
        holder: Random, of one process's tenancy; empty when it was given back.
        epoch: Grows with each tenancy.
        host: Where it runs, for people.
        boot: What tells this run of the host's kernel from others; empty if unknown.
        pid: Its process there.
    """

    holder: str
    epoch: int
    host: str
    boot: str
    pid: int


class LeaseBeat(msgspec.Struct, frozen=True):
    """A sign of life of a lease's holder; that its version changes is all that counts."""

    holder: str
    number: int


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what, under its number in 16 digits; see `alknet.stores.audit`.

    Attributes:
        number: 1, 2, 3 … without a gap.
        at_ms: Wall-clock milliseconds.
        who: The id of an identity; ``owner`` also for whoever may write the home.
        action: What was done, as ``peer.add``.
        target: To what: a name, a prefix, a path.
        details: More, as text. Never a secret.
        previous: The hash of the row before, in hex.
        hash: That of this row, in hex.
    """

    number: int
    at_ms: int
    who: str
    action: str
    target: str
    details: dict[str, str] = {}
    previous: str
    hash: str


class AuditHead(msgspec.Struct, frozen=True, kw_only=True):
    """Where the chain ends, and the anchor where it begins since it was trimmed.

    Attributes:
        number: Of the newest row.
        hash: Of the newest row.
        first: The number of the oldest row that is kept.
        anchor: The hash of the row before that.
    """

    number: int
    hash: str
    first: int
    anchor: str


class Successor(msgspec.Struct, frozen=True):
    """A key that wants to take the place of a peer's.

    Attributes:
        statements: Encoded, oldest first; the last one leads to the key.
        heard_at: Wall-clock seconds.
        address: Whence it was told.
    """

    statements: tuple[bytes, ...]
    heard_at: float
    address: str


class SuccessorsRow(msgspec.Struct, frozen=True):
    """The keys that wait for a peer's owner, under the peer's name; one, unless one was stolen."""

    waiting: tuple[Successor, ...]


class ToldRow(msgspec.Struct, frozen=True):
    """That a peer has heard of a node's key, under ``<node>/<peer>``.

    Attributes:
        answer: What it made of it; see `alknet.call.succeed`.
        at: Wall-clock seconds.
    """

    answer: str
    at: float


# Kinds of peers, by their scopes, that share memory; more just take more of it.
SHARED_SCOPES = 1_024


@lru_cache(SHARED_SCOPES)
def _shared_scopes(scopes: tuple[str, ...]) -> tuple[str, ...]:
    return scopes


PEERS = Table("peer", PeerRow, unique=("fingerprints",), key_field="name")
API_KEYS = Table("api_key", ApiKey, key_field="prefix")
OWNERSHIP = Table("ownership", OwnershipRow, indexes=("owner",))
OUTBOUND = Table("outbound", OutboundRow, indexes=("peer",))
CREDENTIALS = Table("credential", CredentialRow, indexes=("service",))
ENROLMENTS = Table("enrolment", EnrolmentRow)
LEASES = Table("lease", LeaseRow)
LEASE_BEATS = Table("lease_beat", LeaseBeat)
SUCCESSORS = Table("successor", SuccessorsRow)
SUCCESSION_TOLD = Table("succession_told", ToldRow)
AUDIT = Table("audit", AuditRow, is_resident=False)
AUDIT_HEADS = Table("audit_head", AuditHead)

NODE_TABLES: tuple[Table[msgspec.Struct], ...] = (
    PEERS,
    API_KEYS,
    OWNERSHIP,
    OUTBOUND,
    CREDENTIALS,
    ENROLMENTS,
    LEASES,
    LEASE_BEATS,
    SUCCESSORS,
    SUCCESSION_TOLD,
    AUDIT,
    AUDIT_HEADS,
)
"""All tables of a node's store."""
