"""Who owns which runtime resource of a node, on its store."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from alknet.core.identity import NodeId
from alknet.core.ownership import OwnedResource, OwnershipStore
from alknet.core.storage import ABSENT, MAX_OPS, Delete, Expect, Op, Put, Row, RowConflict
from alknet.errors import Conflict, LocalError, NotFound
from alknet.stores.identities import StoredIdentities
from alknet.stores.tables import OWNERSHIP, PEERS, OwnershipRow

__all__ = ["StoredOwnership"]


class StoredOwnership:
    """An `OwnershipStore`; it sees and touches only its own node's rows.

    A peer that was removed owns nothing, nor does a new one of its name: rows tell them apart.
    Reads raise Unavailable while the store is too stale to be trusted.

    Args:
        identities: Who there is; its store holds the rows.
        node: Whose resources they are.

    Attributes:
        identities: As given.
    """

    def __init__(self, identities: StoredIdentities, node: NodeId) -> None:
        self.identities = identities
        self._store = identities.store
        self._node = str(node)

    def owns(self, identity_id: str, resource_type: str, resource_id: str) -> bool:
        """Whether the identity spawned the resource and it still lives."""
        self.identities.check_fresh()
        row = self._store.get(OWNERSHIP, self._key(resource_type, resource_id))
        return row is not None and row.value.owner == identity_id and self._counts(row.value)

    def owned(self, identity_id: str, resource_type: str) -> Sequence[str]:
        """Return the ids of what the identity owns of a type, oldest first."""
        self.identities.check_fresh()
        rows = self._store.find(OWNERSHIP, "owner", identity_id)
        found = [row for row in rows if self._is_of(row.value, resource_type)]
        return [row.value.resource_id for row in sorted(found, key=_version)]

    def owned_by(self, resource_type: str, resource_id: str) -> str | None:
        """Return the id of the identity that owns a resource, or None."""
        self.identities.check_fresh()
        row = self._store.get(OWNERSHIP, self._key(resource_type, resource_id))
        return None if row is None or not self._counts(row.value) else row.value.owner

    def incarnation(self, identity_id: str) -> str | None:
        """Return what tells an identity from an earlier one of its id; None if it is gone."""
        return self.identities.incarnation(identity_id)

    def recorded(self) -> Sequence[OwnedResource]:
        """Return all resources that there are rows of; see `OwnershipStore`."""
        rows = [row for row in self._store.rows(OWNERSHIP) if self._is_ours(row.value)]
        return [_resource(row.value) for row in sorted(rows, key=_version)]

    async def record(
        self,
        identity_id: str,
        resource_type: str,
        resource_id: str,
        *,
        ends_with_node: bool = False,
    ) -> None:
        """Say who spawned a resource; see `OwnershipStore`, also for what a cancel leaves."""
        row = OwnershipRow(
            node=self._node,
            owner=identity_id,
            incarnation="",
            resource_type=resource_type,
            resource_id=resource_id,
            ends_with_node=ends_with_node,
        )
        while True:
            ops = self._recording(row)
            if not ops:
                return
            try:
                await self._store.write(ops)
            except RowConflict:  # look again: now the reason is in memory, or in the database
                await self._see(resource_type, resource_id, identity_id)
            else:
                return

    async def release(self, resource_type: str, resource_id: str) -> None:
        """Say that a resource was torn down; see `OwnershipStore`, also for a cancel."""
        key = self._key(resource_type, resource_id)
        versions = await self._store.write(Delete(OWNERSHIP, key))
        if versions == (ABSENT,):
            raise NotFound(f"{resource_type} {resource_id!r} has no owner")

    async def release_all(self, resources: Collection[tuple[str, str]]) -> None:
        """Say so of many; see `OwnershipStore`, also for what a cancel leaves behind."""
        ops = [Delete(OWNERSHIP, self._key(*resource)) for resource in resources]
        for start in range(0, len(ops), MAX_OPS):
            await self._store.write(ops[start : start + MAX_OPS])

    async def take_over(self, former: Collection[NodeId]) -> None:
        """Make the rows of keys that this node had before a rotation its own.

        Cancelled, some were made so; once more does the rest.

        Raises:
            StoreError: The store could not be written.
            Unavailable: The store is busy or out of reach.
        """
        keys = set(map(str, former))
        rows = [row for row in self._store.rows(OWNERSHIP) if row.value.node in keys]
        for row in rows:
            key = self._key(row.value.resource_type, row.value.resource_id)
            ops: list[Op] = [Delete(OWNERSHIP, row.key, row.version)]
            if self._store.get(OWNERSHIP, key) is None:
                ops.append(
                    Put(OWNERSHIP, key, msgspec.structs.replace(row.value, node=self._node), ABSENT)
                )
            await self._store.write(ops)

    def _recording(self, row: OwnershipRow) -> list[Op]:
        incarnation = self.identities.incarnation(row.owner)
        if incarnation is None:
            raise NotFound(f"there is no {row.owner} any more")
        row = msgspec.structs.replace(row, incarnation=incarnation)
        key = self._key(row.resource_type, row.resource_id)
        found = self._store.get(OWNERSHIP, key)
        if found is not None and found.value == row:
            return []
        if found is not None and self._counts(found.value):
            raise Conflict(f"{row.resource_type} {row.resource_id!r} has another owner")
        ops: list[Op] = [Put(OWNERSHIP, key, row, ABSENT if found is None else found.version)]
        name = row.owner.removeprefix("peer:")
        peer = self._store.get(PEERS, name) if name != row.owner else None
        if peer is not None:
            ops.append(Expect(PEERS, name, peer.version))
        return ops

    async def _see(self, resource_type: str, resource_id: str, identity_id: str) -> None:
        """Wait until memory holds what the engine does for a row that a write conflicted with."""
        key = self._key(resource_type, resource_id)
        name = identity_id.removeprefix("peer:")
        while True:
            version = self._store.version
            rows = [await self._store.fetch(OWNERSHIP, key)]
            known: list[object] = [self._store.get(OWNERSHIP, key)]
            if name != identity_id:
                peer = await self._store.fetch(PEERS, name)
                if peer != self._store.get(PEERS, name):
                    known.append(None)
            if known == rows:
                return
            await self._store.wait_changed(version)

    def _counts(self, row: OwnershipRow) -> bool:
        return row.incarnation == self.identities.incarnation(row.owner)

    def _is_ours(self, row: OwnershipRow) -> bool:
        return row.node == self._node

    def _is_of(self, row: OwnershipRow, resource_type: str) -> bool:
        return self._is_ours(row) and row.resource_type == resource_type and self._counts(row)

    def _key(self, resource_type: str, resource_id: str) -> str:
        if not resource_type or "/" in resource_type:
            raise LocalError(f"{resource_type!r} is no type of resources")
        return f"{self._node}/{resource_type}/{resource_id}"


def _resource(row: OwnershipRow) -> OwnedResource:
    return OwnedResource(row.resource_type, row.resource_id, row.owner, row.ends_with_node)


def _version(row: Row[OwnershipRow]) -> int:
    return row.version


_: type[OwnershipStore] = StoredOwnership
