"""The peers to which a node keeps a connection: those of its store, and of ``[[outbound]]``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial

import msgspec
import trio

from alknet.core.address import Address
from alknet.core.identity import NodeId, Peer
from alknet.core.outbound import OutboundConfig, OutboundSource, OutboundTarget
from alknet.core.storage import ABSENT, Delete, Op, Put, Row, RowConflict
from alknet.errors import Conflict, LocalError, NotFound
from alknet.stores.audit import Entry
from alknet.stores.identities import StoredIdentities, new_peer_row
from alknet.stores.tables import OUTBOUND, PEERS, OutboundRow, PeerRow

__all__ = ["StoredOutbound"]

KEY = "ed25519:"
# Writes within this time are looked at together; nobody notices it before a dial.
COALESCE_S = 0.05


class StoredOutbound:
    """An `OutboundSource` that can be written; it sees and touches only its own node's rows.

    A row is of one peer: a new one that gets the name of a removed one is not dialled.

    Args:
        identities: Whom the node knows; its store holds the rows.
        node: Which node dials.
        config: Those of ``node.toml``.
        former: Keys that the node had before a rotation: what it joined then, it still dials.
    """

    def __init__(
        self,
        identities: StoredIdentities,
        node: NodeId,
        config: Sequence[OutboundConfig] = (),
        *,
        former: Sequence[NodeId] = (),
    ) -> None:
        self._identities = identities
        self._store = identities.store
        self._node = str(node)
        self._nodes = (self._node, *map(str, former))
        self._config = {one.name: one for one in config}
        self._own_changes = 0
        self._changed = trio.Event()

    @property
    def version(self) -> int:
        """Grows with each change that could alter `targets`."""
        rows = self._store.version_of(OUTBOUND)
        return self._identities.version + rows + self._own_changes

    async def wait_changed(self, version: int) -> int:
        """Wait until `version` differs from *version* and return it. Cancelled, nothing happens."""
        await trio.lowlevel.checkpoint()
        while self.version == version:
            # Most writes of a store are of other tables: a busy one is not looked at for each.
            await trio.sleep(COALESCE_S)
            if self.version != version:
                break
            await _first_of(
                partial(self._identities.wait_changed, self._identities.version),
                partial(self._store.wait_changed, self._store.version),
                self._changed.wait,
            )
        return self.version

    def set_config(self, config: Sequence[OutboundConfig]) -> None:
        """Replace those of ``node.toml``."""
        new = {one.name: one for one in config}
        if new != self._config:
            self._config = new
            self._own_changes += 1
            self._changed.set()
            self._changed = trio.Event()

    def targets(self) -> Sequence[OutboundTarget]:
        """Return all, by name, with what their records say now."""
        joined: dict[str, int] = {}
        for row in self._rows():
            joined[row.value.peer] = max(row.version, joined.get(row.value.peer, 0))
        names = {*self._config, *joined}
        return [self._target(name, joined.get(name, 0)) for name in sorted(names)]

    def is_target(self, name: str) -> bool:
        """Return whether a connection to the peer *name* is to be kept."""
        return name in self._config or any(row.value.peer == name for row in self._rows())

    def check_joinable(self, peer: Peer) -> None:
        """Raise Conflict if what is in memory says that `join` would refuse *peer*."""
        known = self._identities.peer(peer.name)
        if known is None:
            self._identities.check_new(peer)
        else:
            _check_known(peer, known)

    def is_joined(self, peer: Peer) -> bool:
        """Whether *peer* is known under that name and key, and dialled."""
        return any(
            target.name == peer.name
            and {key.fingerprint for key in target.keys} >= set(peer.fingerprints)
            for target in self.targets()
        )

    async def join(self, peer: Peer, *, keep_scopes: bool = False) -> Peer:
        """Know *peer*, and keep a connection to it from now on, in one step; return its record.

        A peer of that name and key that is known already keeps all but its scopes, which become
        those of *peer*, and gains the addresses. Done once more, it changes nothing but the
        target's `OutboundTarget.joined`. Cancelled, all was done or nothing.

        Args:
            peer: With the one key that it must prove.
            keep_scopes: Leave the scopes of a known peer as they are.

        Raises:
            Conflict: The name or the key belongs to another peer, it is disabled, or it stands in
                ``node.toml`` without the scopes.
            StoreError: The store could not be written.
            Unavailable: The store is busy or out of reach.
        """
        peer = peer.normalized()
        while True:
            found = await self._store.fetch(PEERS, peer.name)
            self.check_joinable(peer)
            known = self._identities.peer(peer.name)
            record: Peer
            if known is not None and known.read_only:
                record, ops = known, []
            else:
                record = row = _merged(peer, found, keep_scopes)
                ops = _written(row, found)
            dialled, is_new = await self._dialled(record)
            try:
                if ops or is_new:
                    entry = Entry("outbound.add", peer.name, _shown(record))
                    await self._identities.audit.write([*ops, dialled], entry)
                else:
                    await self._store.write(dialled)
            except RowConflict as exc:
                if exc.holder is not None:
                    key = peer.fingerprints[0]
                    raise Conflict(f"key {key} belongs to peer {exc.holder!r}") from None
                continue  # another process was faster: look again
            return record

    async def leave(self, name: str) -> None:
        """Keep no connection to a peer any more; its record stays. Cancelled, done or not.

        Raises:
            NotFound: There was none.
            Conflict: It stands in ``node.toml``.
            StoreError: The store could not be written.
            Unavailable: The store is busy or out of reach.
        """
        fetched = [await self._store.fetch(OUTBOUND, f"{node}/{name}") for node in self._nodes]
        found = [row for row in fetched if row is not None]
        if not found:
            if name in self._config:
                raise Conflict(f"{name!r} stands in [[outbound]] of node.toml: remove it there")
            raise NotFound(f"no connection is kept to a peer named {name[:80]!r}")
        entry = Entry("outbound.remove", name)
        await self._identities.audit.write([Delete(OUTBOUND, row.key) for row in found], entry)

    def _rows(self) -> Iterator[Row[OutboundRow]]:
        """Iterate over those of this node whose peer is the one that they were made for."""
        for row in self._store.rows(OUTBOUND):
            is_ours = row.value.node in self._nodes
            if is_ours and row.value.incarnation == self._incarnation(row.value.peer):
                yield row

    def _target(self, name: str, joined: int) -> OutboundTarget:
        fixed = self._config.get(name)
        peer = self._identities.peer(name)
        if peer is None:
            problem = f"there is no peer named {name!r}"
            return OutboundTarget(name=name, problem=problem, in_config=fixed is not None)
        first = () if fixed is None else fixed.addresses
        try:
            keys = [NodeId.parse(text) for text in peer.fingerprints if text.startswith(KEY)]
            addresses = dict.fromkeys((*first, *map(Address.parse, peer.addresses)))
        except LocalError as exc:  # somebody has edited the database by hand
            return OutboundTarget(name=name, problem=str(exc), in_config=fixed is not None)
        is_self = self._node in map(str, keys)
        problem = _problem(peer, bool(keys), bool(addresses))
        return OutboundTarget(
            name=name,
            keys=tuple(keys),
            addresses=tuple(addresses),
            problem="this is the node itself" if is_self else problem,
            in_config=fixed is not None,
            joined=joined,
        )

    async def _dialled(self, record: Peer) -> tuple[Op, bool]:
        """Return the write of a peer's row, and whether there was none like it."""
        incarnation = (
            record.incarnation
            if isinstance(record, PeerRow)
            else self._incarnation(record.name) or ""
        )
        row = OutboundRow(node=self._node, peer=record.name, incarnation=incarnation)
        found = await self._store.fetch(OUTBOUND, self._key(record.name))
        put = Put(OUTBOUND, self._key(record.name), row, _version(found))
        return put, found is None or found.value != row

    def _incarnation(self, name: str) -> str | None:
        return self._identities.incarnation(f"peer:{name}")

    def _key(self, name: str) -> str:
        return f"{self._node}/{name}"


def _check_known(peer: Peer, known: Peer) -> None:
    if not set(peer.fingerprints) <= set(known.fingerprints):
        raise Conflict(f"a peer named {peer.name!r} exists, with another key")
    if not known.enabled:
        raise Conflict(f"peer {peer.name!r} is disabled")
    if known.read_only and not set(peer.scopes) <= set(known.scopes):
        raise Conflict(f"peer {peer.name!r} stands in node.toml: change its scopes there")


def _merged(peer: Peer, found: Row[PeerRow] | None, keep_scopes: bool) -> PeerRow:
    if found is None:
        return new_peer_row(peer)
    known = found.value
    _check_known(peer, known)
    return msgspec.structs.replace(
        known,
        scopes=known.scopes if keep_scopes else peer.scopes,
        addresses=tuple(dict.fromkeys((*peer.addresses, *known.addresses))),
    )


def _written(row: PeerRow, found: Row[PeerRow] | None) -> list[Op]:
    if found is not None and row == found.value:
        return []
    return [Put(PEERS, row.name, row, _version(found))]


def _version(found: Row[PeerRow] | Row[OutboundRow] | None) -> int:
    return ABSENT if found is None else found.version


def _problem(peer: Peer, has_keys: bool, has_addresses: bool) -> str:
    if not peer.enabled:
        return "the peer is disabled"
    if not has_keys:
        return "the peer has no Ed25519 key, so it cannot be dialled"
    return "" if has_addresses else "no address is known for the peer"


def _shown(peer: Peer) -> dict[str, str]:
    return {
        "keys": " ".join(peer.fingerprints),
        "addresses": " ".join(peer.addresses),
        "scopes": " ".join(peer.scopes),
    }


async def _first_of(*waits: Callable[[], Awaitable[object]]) -> None:
    """Wait until one of *waits* is over."""
    async with trio.open_nursery() as nursery:

        async def end_with(wait: Callable[[], Awaitable[object]]) -> None:
            await wait()
            nursery.cancel_scope.cancel()

        for wait in waits:
            nursery.start_soon(end_with, wait)


_: type[OutboundSource] = StoredOutbound
