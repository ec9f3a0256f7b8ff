"""The peers of ``node.toml``: read-only, and stronger than those that commands made."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from alknet.core.identity import Peer
from alknet.core.storage import Store
from alknet.errors import Conflict
from alknet.stores.tables import PEERS

__all__ = ["ConfigPeers"]


class ConfigPeers:
    """Peers by name and by fingerprint.

    Attributes:
        by_name: All of them, marked read-only.
        by_fingerprint: The same by each of their keys.

    Raises:
        Conflict: Two share a name or fingerprint.
        LocalError: One is not valid.
    """

    def __init__(self, peers: Sequence[Peer] = ()) -> None:
        self.by_name: dict[str, Peer] = {}
        self.by_fingerprint: dict[str, Peer] = {}
        for found in peers:
            peer = msgspec.structs.replace(found.normalized(), read_only=True)
            if peer.name in self.by_name:
                raise Conflict(f"peer {peer.name!r} occurs twice")
            self.by_name[peer.name] = peer
            for text in peer.fingerprints:
                owner = self.by_fingerprint.setdefault(text, peer)
                if owner is not peer:
                    raise Conflict(f"peers {owner.name!r} and {peer.name!r} share key {text}")

    def hides(self, peer: Peer) -> bool:
        """Whether *peer*, of the store, does not count: its name or a key of it stands here."""
        return peer.name in self.by_name or not self.by_fingerprint.keys().isdisjoint(
            peer.fingerprints
        )

    def conflicts(self, store: Store) -> list[str]:
        """Say which peers of the store do not count, a sentence each."""
        same_name = [
            f"peer {name!r} is ignored: node.toml has a peer of that name"
            for name in self.by_name
            if store.get(PEERS, name) is not None
        ]
        same_key = [
            f"peer {row.key!r} is ignored: node.toml gives its key {text} to {peer.name!r}"
            for text, peer in self.by_fingerprint.items()
            for row in store.find(PEERS, "fingerprints", text)
            if row.key != peer.name
        ]
        return same_name + same_key
