"""``node/resources`` and ``node/release``: what runs on the node, for those who administer it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from alknet.call.builtin import ADMIN_SCOPE
from alknet.call.operations import Operation, operation, scopes
from alknet.call.resources import ListedResource, Resources

__all__ = ["WhichResource", "resource_operations"]


class WhichResource(msgspec.Struct, frozen=True):
    """One resource."""

    type: str
    id: str


def resource_operations(resources: Resources) -> Sequence[Operation[..., Any]]:
    """Return the operations, to be registered with ``builtin=True``."""

    @operation("node/resources", access=scopes(ADMIN_SCOPE))
    async def list_resources() -> list[ListedResource]:
        """List what handlers have spawned, whoever owns it."""
        return list(resources.listing())

    @operation("node/release", access=scopes(ADMIN_SCOPE), mutation=True)
    async def release(which: WhichResource) -> None:
        """End something that a handler has spawned, whoever owns it, or nobody any more."""
        await resources.release(which.type, which.id)

    return list_resources, release
