"""Who owns the runtime resources of a node: what the store behind it promises."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import msgspec

from alknet.core.contracts import OwnershipProvider

__all__ = ["OwnedResource", "OwnershipStore"]


class OwnedResource(msgspec.Struct, frozen=True):
    """A resource of this node, and whose it is.

    Attributes:
        owner: The id of the identity that spawned it; it may be gone by now.
        ends_with_node: Its life is a task of the node's process: it lives in no later one.
    """

    resource_type: str
    resource_id: str
    owner: str
    ends_with_node: bool


class OwnershipStore(OwnershipProvider, Protocol):
    """An `OwnershipProvider` that can be written. It holds the rows of one node."""

    def owned_by(self, resource_type: str, resource_id: str) -> str | None:
        """Return the id of the identity that owns a resource, or None. Raises Unavailable."""
        ...

    def incarnation(self, identity_id: str) -> str | None:
        """Return what tells an identity from an earlier one of its id; None if it is gone."""
        ...

    def recorded(self) -> Sequence[OwnedResource]:
        """Return all resources that there are rows of, oldest first, also of owners now gone."""
        ...

    async def record(
        self,
        identity_id: str,
        resource_type: str,
        resource_id: str,
        *,
        ends_with_node: bool = False,
    ) -> None:
        """Say who spawned a resource; durable when it returns. Cancelled, it is said or not.

        Raises:
            Conflict: It has another owner; it must be torn down and released first.
            NotFound: There is no such identity any more.
            LocalError: The type or the id cannot be stored.
            StoreError: The store could not be written.
            Unavailable: The store is busy or out of reach.
        """
        ...

    async def release(self, resource_type: str, resource_id: str) -> None:
        """Say that a resource was torn down. Cancelled, it is said or not.

        Raises:
            NotFound: Nobody owned it.
            StoreError: The store could not be written.
            Unavailable: The store is busy or out of reach.
        """
        ...

    async def release_all(self, resources: Collection[tuple[str, str]]) -> None:
        """Say so of many, given as type and id, owned or not. Cancelled, of some, all or none.

        Raises:
            StoreError: The store could not be written.
            Unavailable: The store is busy or out of reach.
        """
        ...
