"""Peers and API keys as one value, and the changes that can be made to it.

`Records` is immutable and knows no file and no clock; the stores hold one and replace it. What a
change must not break (one name, one owner of each key) is checked here, for all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from alknet.core.identity import ApiKey, Peer
from alknet.errors import Conflict, NotFound

__all__ = ["Change", "Records"]


class Records(msgspec.Struct, frozen=True):
    """All that an identity store knows.

    Attributes:
        peers: Those made by commands, by name.
        api_keys: By prefix.
        fixed: Peers of ``node.toml``, by name: read-only, and stronger than *peers*.
    """

    peers: dict[str, Peer] = {}
    api_keys: dict[str, ApiKey] = {}
    fixed: dict[str, Peer] = {}

    @classmethod
    def of(cls, peers: tuple[Peer, ...], api_keys: tuple[ApiKey, ...] = ()) -> Records:
        """Build from rows of any origin.

        Raises:
            Conflict: A name, fingerprint or prefix occurs twice.
            LocalError: A record is not valid.
        """
        by_name: dict[str, Peer] = {}
        owners: dict[str, str] = {}
        for row in peers:
            peer = _stored(row)
            if peer.name in by_name:
                raise Conflict(f"peer {peer.name!r} occurs twice")
            by_name[peer.name] = peer
            for text in peer.fingerprints:
                if owners.setdefault(text, peer.name) != peer.name:
                    raise Conflict(f"peers {owners[text]!r} and {peer.name!r} share key {text}")
        by_prefix: dict[str, ApiKey] = {}
        for key in api_keys:
            key.validate()
            if key.prefix in by_prefix:
                raise Conflict(f"api key {key.prefix} occurs twice")
            by_prefix[key.prefix] = key
        return cls(by_name, by_prefix)

    def with_fixed(self, peers: tuple[Peer, ...]) -> Records:
        """Replace the read-only peers. Raises like `of`; conflicts with `peers` are let be."""
        rows = Records.of(peers).peers
        fixed = {name: msgspec.structs.replace(p, read_only=True) for name, p in rows.items()}
        return msgspec.structs.replace(self, fixed=fixed)

    def effective_peers(self) -> list[Peer]:
        """Return the peers that count, by name: all fixed ones, and those that clash with none."""
        taken = {text for peer in self.fixed.values() for text in peer.fingerprints}
        free = [
            peer
            for peer in self.peers.values()
            if peer.name not in self.fixed and taken.isdisjoint(peer.fingerprints)
        ]
        return sorted([*self.fixed.values(), *free], key=lambda peer: peer.name)

    def conflicts(self) -> list[str]:
        """Say which of `peers` do not count, because ``node.toml`` has their name or key."""
        owners = {text: p.name for p in self.fixed.values() for text in p.fingerprints}
        same_name = [
            f"peer {name!r} is ignored: node.toml has a peer of that name"
            for name in self.peers
            if name in self.fixed
        ]
        same_key = [
            f"peer {peer.name!r} is ignored: node.toml gives its key {text} to {owners[text]!r}"
            for peer in self.peers.values()
            for text in peer.fingerprints
            if owners.get(text, peer.name) != peer.name
        ]
        return same_name + same_key

    def with_new_peer(self, peer: Peer) -> Records:
        """Add a peer; Conflict if its name or a fingerprint is taken."""
        if peer.name in self.peers or peer.name in self.fixed:
            raise Conflict(f"a peer named {peer.name!r} exists")
        return self._with_peer(peer)

    def with_updated_peer(self, peer: Peer, was: Peer | None = None) -> Records:
        """Replace the peer of that name, if it is still *was* (None: any); NotFound or Conflict."""
        now = self._writable(peer.name)
        if was is not None and now != was:
            raise Conflict(f"peer {peer.name!r} has changed meanwhile")
        return self._with_peer(peer)

    def with_renamed_peer(self, name: str, new_name: str) -> Records:
        """Give a peer another name; NotFound or Conflict."""
        renamed = msgspec.structs.replace(self._writable(name), name=new_name)
        if new_name == name:
            return self
        return self.without_peer(name).with_new_peer(renamed)

    def without_peer(self, name: str) -> Records:
        """Forget a peer; NotFound or Conflict."""
        self._writable(name)
        rest = {other: peer for other, peer in self.peers.items() if other != name}
        return msgspec.structs.replace(self, peers=rest)

    def with_api_key(self, key: ApiKey) -> Records:
        """Add or replace an API key; LocalError if it is not valid."""
        key.validate()
        return msgspec.structs.replace(self, api_keys={**self.api_keys, key.prefix: key})

    def without_api_key(self, prefix: str) -> Records:
        """Forget an API key; NotFound."""
        if prefix not in self.api_keys:
            raise NotFound(f"no api key {prefix!r}")
        rest = {other: key for other, key in self.api_keys.items() if other != prefix}
        return msgspec.structs.replace(self, api_keys=rest)

    def _writable(self, name: str) -> Peer:
        # A peer of ours that node.toml shadows can still be changed or removed.
        if name in self.peers:
            return self.peers[name]
        if name in self.fixed:
            raise Conflict(f"peer {name!r} stands in node.toml: change it there")
        raise NotFound(f"no peer named {name!r}")

    def _with_peer(self, peer: Peer) -> Records:
        peer = _stored(peer)
        for other in (*self.peers.values(), *self.fixed.values()):
            shared = set(peer.fingerprints).intersection(other.fingerprints)
            if shared and other.name != peer.name:
                raise Conflict(f"key {min(shared)} belongs to peer {other.name!r}")
        return msgspec.structs.replace(self, peers={**self.peers, peer.name: peer})


def _stored(peer: Peer) -> Peer:
    return msgspec.structs.replace(peer.normalized(), read_only=False)


Change = Callable[[Records], Records]
"""A change: pure, may be applied to newer records than the caller saw, raises to refuse."""
