"""Node ids and fingerprints: the text forms of the keys by which nodes know one another."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from alknet.core import zbase32
from alknet.errors import LocalError

__all__ = ["NodeId", "parse_fingerprint"]


class NodeId:
    """A node's Ed25519 public key: 32 bytes, hashable, comparable.

    ``str(node_id)`` is the z-base-32 text, ``bytes(node_id)`` the key, `fingerprint` the form of
    peer lists. That the bytes are a point of the curve is not checked (it costs a square root):
    a key that is none proves nothing, for no signature verifies under it.
    """

    __slots__ = ("_raw", "_text")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != 32:
            raise LocalError(f"a node id has 32 bytes, not {len(raw)}")
        self._raw = bytes(raw)
        self._text: str | None = None

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
            if prefix.lower() == "alknet-invite":  # holds a secret: do not repeat it
                raise LocalError("this is an invitation, not a node id")
            if prefix.lower() != "ed25519":
                raise LocalError(
                    f"{text[:80]!r} is not a node id: it begins with neither "
                    "'ed25519:' nor a z-base-32 key"
                )
            return cls(_parse_hex(rest, "ed25519 fingerprint"))
        if len(text) == 64:
            return cls(_parse_hex(text, "node id"))
        if len(text) != 52:
            raise LocalError(
                f"{text[:80]!r} is not a node id: {len(text)} characters, expected 52 (z-base-32),"
                " 64 (hex) or 'ed25519:' and 64"
            )
        try:
            return cls(zbase32.decode(text))
        except LocalError as exc:
            raise LocalError(f"{text[:80]!r} is not a node id: {exc}") from exc

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
        if self._text is None:  # kept: every `node/ping` says it
            self._text = zbase32.encode(self._raw)
        return self._text

    def __repr__(self) -> str:
        return f"NodeId.parse({str(self)!r})"

    def __hash__(self) -> int:
        return hash(self._raw)

    def __eq__(self, other: object) -> bool:
        return self._raw == other._raw if isinstance(other, NodeId) else NotImplemented


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


def _parse_hex(text: str, what: str) -> bytes:
    for position, char in enumerate(text):
        if char not in "0123456789abcdefABCDEF":
            raise LocalError(
                f"{what}: character {char!r} at position {position + 1} is not a hex digit"
            )
    if len(text) != 64:
        raise LocalError(f"{what}: {len(text)} hex digits, expected 64")
    return bytes.fromhex(text)
