"""Who is who: node ids, fingerprints, peers, API keys and the identity that a request runs under.

Design: a node *is* its Ed25519 public key. People see it in z-base-32 (52 characters), peer lists
hold fingerprints (``ed25519:<64 hex>``), tickets carry it with addresses (`alknet.core.ticket`).
"""

from __future__ import annotations

import msgspec

__all__ = ["ANONYMOUS", "OWNER", "ApiKey", "Grant", "Identity", "NodeId", "Peer"]


class NodeId:
    """A node's Ed25519 public key: 32 bytes, hashable, comparable.

    ``str(node_id)`` is the z-base-32 text; `fingerprint` the form of peer lists.
    """
    # helper fills in: bytes, parse(text) in every form, str, fingerprint, short, public_key()


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A right to resources: ``type:id[:action]`` in text; *id* ``*`` means all, *action* None means any."""

    type: str
    id: str
    action: str | None = None


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


ANONYMOUS = Identity("anonymous")
OWNER = Identity("owner")


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A remote node that this one knows."""

    name: str
    fingerprints: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    resources: tuple[Grant, ...] = ()
    display_name: str = ""
    addresses: tuple[str, ...] = ()
    enabled: bool = True
    read_only: bool = False


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A bearer token at rest: ``alk_<prefix>_<secret>`` is kept as *prefix* and SHA-256 of the whole text."""

    prefix: str
    name: str
    hash: bytes = b""
    scopes: tuple[str, ...] = ()
    resources: tuple[Grant, ...] = ()
    created_at: float = 0.0
    expires_at: float | None = None
