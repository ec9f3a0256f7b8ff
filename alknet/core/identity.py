"""Who is who: node ids, fingerprints, peers, API keys and the identity that a request runs under.

A node *is* its Ed25519 public key. People see it in z-base-32 (52 characters), peer lists hold
fingerprints (``ed25519:<64 hex>``), tickets carry it with addresses (`alknet.core.ticket`).
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import msgspec

from alknet.core import zbase32
from alknet.core.address import Address
from alknet.core.nodeid import NodeId, parse_fingerprint
from alknet.errors import LocalError

__all__ = [
    "ANONYMOUS",
    "OWNER",
    "RESERVED_SCOPES",
    "ApiKey",
    "Grant",
    "Identity",
    "NodeId",
    "Peer",
    "check_display_name",
    "check_peer_name",
    "check_rights",
    "check_scope",
    "parse_fingerprint",
]

# Scopes that no wildcard reaches, unless the grant itself begins with them.
RESERVED_SCOPES = ("admin:", "vault:")


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A right to resources: ``type:id[:action]`` in text.

    Attributes:
        type: The kind of resource.
        id: One resource, as it is (not percent-encoded), or ``*`` for all of the type.
        action: What may be done, or None for anything.
    """

    type: str
    id: str
    action: str | None = None

    @classmethod
    def parse(cls, text: str) -> Grant:
        """Read ``type:id[:action]``; ``:``, ``*`` and ``%`` inside the id are percent-encoded.

        Raises:
            LocalError: A part is missing or has a character that it must not have.
        """
        parts = text.split(":")
        if len(parts) not in {2, 3}:
            raise LocalError(
                f"grant {text[:80]!r} is not 'type:id' or 'type:id:action' "
                "(write ':' inside an id as %3A)"
            )
        action = parts[2] if len(parts) == 3 and parts[2] != "*" else None
        grant = cls(parts[0], _decode_resource_id(parts[1], text), action)
        grant.validate()
        return grant

    def validate(self) -> None:
        """Raise LocalError if a field could not be written as text."""
        for what, name in (("type", self.type), ("action", self.action)):
            if name is not None and not _NAME.fullmatch(name):
                raise LocalError(f"grant {what} {name[:80]!r} must match {_NAME.pattern}")
        if not self.id:
            raise LocalError("grant without a resource id (write '*' for all)")

    def __str__(self) -> str:
        text = f"{self.type}:{self.id if self.id == '*' else _encode_resource_id(self.id)}"
        return text if self.action is None else f"{text}:{self.action}"

    def covers(self, resource_type: str, resource_id: str, action: str | None) -> bool:
        """Whether this grant allows *action* (None: any use at all) on the resource."""
        return (
            self.type == resource_type
            and self.id in {"*", resource_id}
            and self.action in {None, action}
        )


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whom a request runs as.

    Attributes:
        id: ``peer:<name>``, ``key:<prefix>``, ``op:<label>``, ``owner`` or ``anonymous``.
        scopes: Flat names (``fs:read``); one may end in ``*``.
        resources: Static grants.
    """

    id: str
    scopes: tuple[str, ...] = ()
    resources: tuple[Grant, ...] = ()

    @property
    def is_owner(self) -> bool:
        """The person at the control socket, who may do everything."""
        return self.id == "owner"

    @property
    def is_anonymous(self) -> bool:
        """Nobody that this node knows."""
        return self.id == "anonymous"

    def has_scope(self, scope: str) -> bool:
        """Whether *scope* is granted, literally or by a grant that ends in ``*``.

        No wildcard reaches the reserved scopes, unless it begins with ``admin:`` or ``vault:``.
        The owner has every scope.
        """
        return self.is_owner or any(_scope_matches(grant, scope) for grant in self.scopes)

    def has_grant(self, resource_type: str, resource_id: str, action: str | None) -> bool:
        """Whether a static grant allows *action* on the resource. Ownership is not looked at."""
        return any(grant.covers(resource_type, resource_id, action) for grant in self.resources)


ANONYMOUS = Identity("anonymous")
OWNER = Identity("owner")


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A remote node that this one knows.

    Attributes:
        name: What people call it; see `check_peer_name`.
        fingerprints: Its keys, each in the form that `parse_fingerprint` returns.
        scopes: What its key may do.
        resources: Static grants.
        display_name: Free text for people.
        addresses: ``host:port`` where it may be reached.
        may_offer: It may offer operations, on connections that it opens: then this node calls it,
            also where any peer will do, and hands it the input.
        enabled: If not, its keys are refused.
        read_only: It stands in ``node.toml`` and can be changed only there.
    """

    name: str
    fingerprints: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    resources: tuple[Grant, ...] = ()
    display_name: str = ""
    addresses: tuple[str, ...] = ()
    may_offer: bool = False
    enabled: bool = True
    read_only: bool = False

    def identity(self) -> Identity:
        """Return whom a connection under one of the peer's keys runs as."""
        return Identity(f"peer:{self.name}", self.scopes, self.resources)

    def normalized(self) -> Peer:
        """Return the record with fingerprints and addresses in their one form, without doubles.

        Raises:
            LocalError: A name, fingerprint, address, scope or grant is not valid.
        """
        check_peer_name(self.name)
        check_rights(self.scopes, self.resources)
        check_display_name(self.display_name)
        fingerprints = dict.fromkeys(map(parse_fingerprint, self.fingerprints))
        addresses = dict.fromkeys(str(Address.parse(text)) for text in self.addresses)
        return msgspec.structs.replace(
            self, fingerprints=tuple(fingerprints), addresses=tuple(addresses)
        )


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A bearer token at rest; the token itself is kept nowhere.

    Attributes:
        prefix: The 8 characters after ``alk_`` that name it.
        name: What people call it.
        hash: SHA-256 of the whole token text.
        scopes: What it may do.
        resources: Static grants.
        created_at: Wall-clock seconds.
        expires_at: Wall-clock seconds after which it is refused; None for never.
    """

    prefix: str
    name: str
    hash: bytes = b""
    scopes: tuple[str, ...] = ()
    resources: tuple[Grant, ...] = ()
    created_at: float = 0.0
    expires_at: float | None = None

    def identity(self) -> Identity:
        """Return whom a request with this token runs as."""
        return Identity(f"key:{self.prefix}", self.scopes, self.resources)

    def validate(self) -> None:
        """Raise LocalError if a field is not valid."""
        if not _PREFIX.fullmatch(self.prefix):
            raise LocalError(f"api key prefix {self.prefix[:80]!r} is not 8 z-base-32 characters")
        if len(self.hash) != 32:
            raise LocalError(f"the hash of an api key has 32 bytes, not {len(self.hash)}")
        if not 0 < len(self.name) <= 128 or not self.name.isprintable():
            raise LocalError("the name of an api key has 1 to 128 printable characters")
        check_rights(self.scopes, self.resources)


def check_peer_name(name: str) -> None:
    """Raise LocalError unless *name* can name a peer.

    Names match ``[a-z0-9][a-z0-9._-]{0,62}``; what could be taken for a key or for a word of the
    routing language (``any``, ``local``, ``owner``) is refused.
    """
    if not _PEER_NAME.fullmatch(name):
        raise LocalError(
            f"peer name {name[:80]!r} must be 1 to 63 of a-z, 0-9, '.', '_', '-' "
            "and begin with a letter or digit"
        )
    if name in {"any", "local", "owner"}:
        raise LocalError(f"peer name {name!r} is reserved")
    if len(name) == 52 and set(name) <= set(zbase32.ALPHABET):
        raise LocalError(f"peer name {name[:80]!r} looks like a node id")


def check_display_name(text: str) -> None:
    """Raise LocalError unless *text* can be shown on a terminal as it is."""
    if len(text) > 128 or not text.isprintable():
        raise LocalError(f"{text[:80]!r} is not at most 128 printable characters")


def check_scope(scope: str) -> None:
    """Raise LocalError unless *scope* can stand in a grant: a flat name, it may end in ``*``."""
    if not _SCOPE.fullmatch(scope):
        raise LocalError(
            f"scope {scope[:80]!r} must be letters, digits and any of '.', '_', ':', '/', '-', "
            "with at most one '*', at its end"
        )


def check_rights(scopes: tuple[str, ...], resources: tuple[Grant, ...]) -> None:
    """Raise LocalError unless all *scopes* and *resources* can be granted."""
    for scope in scopes:
        check_scope(scope)
    for grant in resources:
        grant.validate()


def _scope_matches(grant: str, scope: str) -> bool:
    if grant == scope:
        return not grant.endswith("*")
    if not grant.endswith("*") or not scope.startswith(grant[:-1]):
        return False
    reserved = next((prefix for prefix in RESERVED_SCOPES if scope.startswith(prefix)), "")
    return grant.startswith(reserved)


def _decode_resource_id(encoded: str, text: str) -> str:
    if encoded == "*":
        return encoded
    if "*" in encoded:
        raise LocalError(f"grant {text[:80]!r}: '*' stands alone or is written %2A")
    if _BAD_ESCAPE.search(encoded):
        raise LocalError(f"grant {text[:80]!r}: '%' is followed by two hex digits (itself: %25)")
    try:
        decoded = unquote_to_bytes(encoded).decode()
    except UnicodeError as exc:
        raise LocalError(f"grant {text[:80]!r}: the escapes are not UTF-8") from exc
    if decoded == "*":  # in a struct this means all: never widen what was asked for
        raise LocalError(f"grant {text[:80]!r}: a resource named '*' cannot be granted alone")
    return decoded


def _encode_resource_id(resource_id: str) -> str:
    return _ESCAPED.sub(
        lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), resource_id
    )


_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PREFIX = re.compile(f"[{zbase32.ALPHABET}]{{8}}")
_PEER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SCOPE = re.compile(r"\*|[A-Za-z0-9._/-][A-Za-z0-9._:/-]{0,126}\*?")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# What would change the meaning of the text, or of a terminal that shows it.
_ESCAPED = re.compile(r"[:*%\x00-\x1f\x7f]")
