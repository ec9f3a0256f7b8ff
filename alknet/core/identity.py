"""Who is who: node ids, fingerprints, peers, API keys and the identity that a request runs under.

A node *is* its Ed25519 public key. People see it in z-base-32 (52 characters), peer lists hold
fingerprints (``ed25519:<64 hex>``), tickets carry it with addresses (`alknet.core.ticket`).
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from alknet.core import zbase32
from alknet.core.address import Address
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
    "check_peer_name",
    "check_rights",
    "check_scope",
    "parse_fingerprint",
]

# Scopes that no wildcard reaches, unless the grant itself begins with them.
RESERVED_SCOPES = ("admin:", "vault:")


class NodeId:
    """A node's Ed25519 public key: 32 bytes, hashable, comparable.

    ``str(node_id)`` is the z-base-32 text, ``bytes(node_id)`` the key, `fingerprint` the form of
    peer lists. That the bytes are a point of the curve is not checked (it costs a square root):
    a key that is none proves nothing, for no signature verifies under it.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != 32:
            raise LocalError(f"a node id has 32 bytes, not {len(raw)}")
        self._raw = bytes(raw)

    @classmethod
    def from_public_key(cls, key: Ed25519PublicKey) -> NodeId:
        """Name the node that holds *key*."""
        return cls(key.public_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> NodeId:
        """Read a node id in any of its forms: z-base-32, ``ed25519:<64 hex>`` or 64 bare hex.

        Blanks around it and the case of letters do not matter.

        Raises:
            LocalError: It is none of them; the message says what is wrong and where.
        """
        text = text.strip()
        prefix, colon, rest = text.partition(":")
        if colon:
            if prefix.lower() != "ed25519":
                raise LocalError(
                    f"{_cut(text)!r} is not a node id: it begins with neither "
                    "'ed25519:' nor a z-base-32 key"
                )
            return cls(_parse_hex(rest, "ed25519 fingerprint"))
        if len(text) == 64:
            return cls(_parse_hex(text, "node id"))
        if len(text) != 52:
            raise LocalError(
                f"{_cut(text)!r} is not a node id: {len(text)} characters, expected 52 (z-base-32),"
                " 64 (hex) or 'ed25519:' and 64"
            )
        try:
            return cls(zbase32.decode(text))
        except LocalError as exc:
            raise LocalError(f"{_cut(text)!r} is not a node id: {exc}") from exc

    @property
    def fingerprint(self) -> str:
        """The form of peer lists: ``ed25519:`` and 64 lower-case hex digits."""
        return f"ed25519:{self._raw.hex()}"

    @property
    def short(self) -> str:
        """The first 10 characters of the text, for logs and tables; not unique by force."""
        return str(self)[:10]

    def public_key(self) -> Ed25519PublicKey:
        """Return the key that verifies this node's signatures."""
        return Ed25519PublicKey.from_public_bytes(self._raw)

    def __bytes__(self) -> bytes:
        return self._raw

    def __str__(self) -> str:
        return zbase32.encode(self._raw)

    def __repr__(self) -> str:
        return f"NodeId.parse({str(self)!r})"

    def __hash__(self) -> int:
        return hash(self._raw)

    def __eq__(self, other: object) -> bool:
        return self._raw == other._raw if isinstance(other, NodeId) else NotImplemented


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
                f"grant {_cut(text)!r} is not 'type:id' or 'type:id:action' "
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
                raise LocalError(f"grant {what} {_cut(name)!r} must match {_NAME.pattern}")
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
        enabled: If not, its keys are refused.
        read_only: It stands in ``node.toml`` and can be changed only there.
    """

    name: str
    fingerprints: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    resources: tuple[Grant, ...] = ()
    display_name: str = ""
    addresses: tuple[str, ...] = ()
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
        if len(self.display_name) > 128 or not self.display_name.isprintable():
            raise LocalError("a display name has at most 128 printable characters")
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
        """Raise LocalError if a scope or grant is not valid."""
        check_rights(self.scopes, self.resources)


def check_peer_name(name: str) -> None:
    """Raise LocalError unless *name* can name a peer.

    Names match ``[a-z0-9][a-z0-9._-]{0,62}``; what could be taken for a key or for a word of the
    routing language (``any``, ``local``, ``owner``) is refused.
    """
    if not _PEER_NAME.fullmatch(name):
        raise LocalError(
            f"peer name {_cut(name)!r} must be 1 to 63 of a-z, 0-9, '.', '_', '-' "
            "and begin with a letter or digit"
        )
    if name in {"any", "local", "owner"}:
        raise LocalError(f"peer name {name!r} is reserved")
    if len(name) == 52 and set(name) <= set(zbase32.ALPHABET):
        raise LocalError(f"peer name {_cut(name)!r} looks like a node id")


def check_scope(scope: str) -> None:
    """Raise LocalError unless *scope* can stand in a grant: a flat name, it may end in ``*``."""
    if not _SCOPE.fullmatch(scope):
        raise LocalError(
            f"scope {_cut(scope)!r} must be letters, digits and any of '.', '_', ':', '/', '-', "
            "with at most one '*', at its end"
        )


def check_rights(scopes: tuple[str, ...], resources: tuple[Grant, ...]) -> None:
    """Raise LocalError unless all *scopes* and *resources* can be granted."""
    for scope in scopes:
        check_scope(scope)
    for grant in resources:
        grant.validate()


def parse_fingerprint(text: str) -> str:
    """Return the one form of a key's or certificate's fingerprint.

    Takes every form of a node id, and ``SHA256:<64 hex>`` (colons between bytes allowed) of an
    X.509 certificate whose key is not Ed25519.

    Raises:
        LocalError: It is none of them.
    """
    prefix, _, rest = text.strip().partition(":")
    if prefix.lower() == "sha256":
        digits = rest.replace(":", "")
        return f"SHA256:{_parse_hex(digits, 'certificate fingerprint').hex()}"
    return NodeId.parse(text).fingerprint


def _scope_matches(grant: str, scope: str) -> bool:
    if grant == scope:
        return not grant.endswith("*")
    if not grant.endswith("*") or not scope.startswith(grant[:-1]):
        return False
    reserved = next((prefix for prefix in RESERVED_SCOPES if scope.startswith(prefix)), "")
    return grant.startswith(reserved)


def _parse_hex(text: str, what: str) -> bytes:
    for position, char in enumerate(text):
        if char not in "0123456789abcdefABCDEF":
            raise LocalError(
                f"{what}: character {char!r} at position {position + 1} is not a hex digit"
            )
    if len(text) != 64:
        raise LocalError(f"{what}: {len(text)} hex digits, expected 64")
    return bytes.fromhex(text)


def _decode_resource_id(encoded: str, text: str) -> str:
    if encoded == "*":
        return encoded
    if "*" in encoded:
        raise LocalError(f"grant {_cut(text)!r}: '*' stands alone or is written %2A")
    if _BAD_ESCAPE.search(encoded):
        raise LocalError(f"grant {_cut(text)!r}: '%' is followed by two hex digits (itself: %25)")
    try:
        decoded = unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError as exc:
        raise LocalError(f"grant {_cut(text)!r}: the escapes are not UTF-8") from exc
    if decoded == "*":  # in a struct this means all: never widen what was asked for
        raise LocalError(f"grant {_cut(text)!r}: a resource named '*' cannot be granted alone")
    return decoded


def _encode_resource_id(resource_id: str) -> str:
    return _ESCAPED.sub(
        lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), resource_id
    )


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PEER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SCOPE = re.compile(r"\*|[A-Za-z0-9._/-][A-Za-z0-9._:/-]{0,126}\*?")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# What would change the meaning of the text, or of a terminal that shows it.
_ESCAPED = re.compile(r"[:*%\x00-\x1f\x7f]")
