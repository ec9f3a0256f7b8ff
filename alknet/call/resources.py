"""What handlers spawn and callers own: the resource nursery of a node.

Each resource lives in a scope of its own here, not in the call that made it: it goes on when that
call, its connection or its caller's session ends, and ends when it is released, by itself, or with
the node. Its owner is the identity that the access check saw.

A type of resources ends with the node's process unless `Resources.outlive` says otherwise. After a
crash of the node the next start releases what lived in the old process; of what may have outlived
it, the back end is asked, and until it has answered the rows stay: unknown is not gone.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec
import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.resource import Resource, ResourceLife
from alknet.core.backoff import Backoff
from alknet.core.identity import Identity
from alknet.core.limits import Limits
from alknet.core.ownership import OwnedResource, OwnershipStore
from alknet.errors import Conflict, Denied, LocalError, NotFound, StoreError, Unavailable

__all__ = ["FindLiving", "ListedResource", "Resources"]

log = logging.getLogger(__name__)

T = TypeVar("T")
AnyResource = Resource[object]
_Holder = tuple[str, str | None]

FindLiving = Callable[[Sequence[str]], Awaitable[Mapping[str, ResourceLife[object]]]]
"""Asks a back end which of these ids still live; returns for each a life to go on with.

What it leaves out is gone. It raises when it cannot tell, and is asked again later.
"""


class ListedResource(msgspec.Struct, frozen=True, kw_only=True):
    """A resource, for those who administer the node.

    Attributes:
        owner: The id of its owner; null if that one was removed.
        spawned_by: The id of whoever spawned it.
        spawned_for: For whom that one said that it was; null if it did not.
        state: ``starting``, ``up``, ``ending``, or ``unknown``: whether it has outlived an earlier
            process of the node was not found out.
    """

    type: str
    id: str
    owner: str | None
    spawned_by: str
    spawned_for: str | None
    state: str


class Resources:
    """The resources of one node.

    Attributes:
        ownership: Who owns what; the rows of this node.
        limits: ``resources`` and ``resources_per_identity`` count; may be replaced at any time,
            for what is spawned after.
    """

    def __init__(self, ownership: OwnershipStore, limits: Limits) -> None:
        self.limits = limits
        self.ownership = ownership
        self._finders: dict[str, FindLiving] = {}
        self._resources: dict[tuple[str, str], AnyResource] = {}
        self._unknown: set[tuple[str, str]] = set()
        self._owned: Counter[_Holder] = Counter()
        self._holders: dict[tuple[str, str], _Holder] = {}
        self._nursery: trio.Nursery | None = None
        self._stopping = trio.Event()
        self._stopped = trio.Event()

    def outlive(self, resource_type: str, find: FindLiving) -> None:
        """Say that resources of a type may outlive the node's process; before the node starts.

        For them a cancel of the life means "let go of it": an operation that removes one has its
        back end do so, and then releases it.

        Args:
            resource_type: As in the access rules of its operations.
            find: Asked at the start for those that there are rows of.
        """
        if self._nursery is not None:
            raise LocalError("the node runs already")
        self._finders[resource_type] = find

    def counts(self) -> dict[str, int]:
        """Return how many resources of each type there are."""
        return dict(Counter(resource_type for resource_type, _ in self._resources))

    def listing(self) -> Sequence[ListedResource]:
        """Return all resources, also those of owners that are gone, oldest first."""
        return [self._listed(resource) for resource in self._resources.values()]

    async def own(
        self,
        owner: Identity,
        resource_type: str,
        resource_id: str,
        life: ResourceLife[T],
        *,
        forwarded_for: Identity | None = None,
    ) -> T:
        """Record that *owner* has a resource, run its *life* here, and return when it is up.

        Args:
            owner: The identity that the access check saw.
            resource_type: As in access rules.
            resource_id: Unique among those of its type.
            life: Is run; see `ResourceLife`.
            forwarded_for: For whom the owner says that it is; for the log alone.

        Returns:
            What *life* said when it was up.

        Raises:
            Denied: *owner* is anonymous.
            Conflict: There is such a resource already.
            CallError: `RESOURCE_EXHAUSTED`, there are too many.
            NotFound: *owner* was removed.
            StoreError: The ownership could not be written.
            Unavailable: The store is busy or out of reach, or the node stops.
            Exception: What *life* raised before it was up.

        If it raises, and if it is cancelled, neither the resource nor its row is left behind.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        what = OwnedResource(
            resource_type,
            resource_id,
            owner.id,
            ends_with_node=resource_type not in self._finders,
        )
        if owner.is_anonymous:
            raise Denied("authentication required: nobody can own nothing")
        resource = Resource[T](self.ownership, what, forwarded_for)
        self._admit(resource)
        self._begin(resource, life)
        return await resource.wait_up()

    async def release(self, resource_type: str, resource_id: str) -> None:
        """End a resource and return when its life is over and its row is gone.

        Cancelled, it ends all the same.

        Raises:
            NotFound: There is none.
            StoreError: It has ended, but its row could not be removed; that is tried again.
            Unavailable: The same, or it is not known yet whether it lives.
        """
        resource = self._resources.get((resource_type, resource_id))
        if resource is None:
            raise NotFound(f"there is no {resource_type} {resource_id!r}")
        if resource.key in self._unknown:
            raise Unavailable(f"it is not known yet whether {resource} lives")
        resource.scope.cancel()
        await resource.ended.wait()
        if resource.failed_release is not None:
            raise resource.failed_release

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the resources until `aclose`; first look what became of those of earlier processes.

        Cancelled, they end and are released.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._look_back(nursery)
                task_status.started()
                await self._stopping.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self._stopped.set()

    async def aclose(self) -> None:
        """End all resources, while `serve` runs, and wait for it. Cancelled, it goes on."""
        self._stopping.set()
        await self._stopped.wait()

    # What there is.

    def _admit(self, resource: Resource[T]) -> None:
        if self._nursery is None or self._stopping.is_set():
            raise Unavailable("the node does not run, or stops")
        if resource.key in self._resources or self.ownership.owned_by(*resource.key) is not None:
            raise Conflict(f"there is a {resource} already")
        if len(self._resources) >= self.limits.resources:
            raise _too_many("the node has too many resources")
        holder = self._holder(resource)
        if self._owned[holder] >= self.limits.resources_per_identity:
            raise _too_many(f"{holder[0]} owns too many resources: release some first")
        self._note(resource)

    def _note(self, resource: Resource[T]) -> None:
        self._resources[resource.key] = resource  # type: ignore[assignment]  # its value is not used
        self._holders[resource.key] = holder = self._holder(resource)
        self._owned[holder] += 1

    def _forget(self, resource: Resource[T]) -> None:
        del self._resources[resource.key]
        holder = self._holders.pop(resource.key)
        self._owned[holder] -= 1
        if not self._owned[holder]:
            del self._owned[holder]

    def _holder(self, resource: Resource[T]) -> _Holder:
        # What a removed peer has left running does not count against the next of its name.
        owner = resource.what.owner
        return owner, self.ownership.incarnation(owner)

    def _listed(self, resource: AnyResource) -> ListedResource:
        what = resource.what
        state = "unknown" if resource.key in self._unknown else resource.state
        return ListedResource(
            type=what.resource_type,
            id=what.resource_id,
            owner=self.ownership.owned_by(*resource.key),
            spawned_by=what.owner,
            spawned_for=resource.spawned_for,
            state=state,
        )

    def _begin(self, resource: Resource[T], life: ResourceLife[T]) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._live, resource, life, name=str(resource))

    async def _live(self, resource: Resource[T], life: ResourceLife[T]) -> None:
        try:
            await resource.live(life)
        finally:
            self._forget(resource)

    # What earlier processes left behind.

    async def _look_back(self, nursery: trio.Nursery) -> None:
        by_type: dict[str, list[AnyResource]] = {}
        old: list[AnyResource] = []
        for what in self.ownership.recorded():
            resource = AnyResource(self.ownership, what)
            resource.take_over_row()
            self._note(resource)
            self._unknown.add(resource.key)
            kept = old if what.ends_with_node else by_type.setdefault(what.resource_type, [])
            kept.append(resource)
        if old and not await self._has_dropped(old):
            nursery.start_soon(self._drop, old, name="resources of the last run")
        for resource_type, resources in by_type.items():
            if resource_type in self._finders:
                nursery.start_soon(
                    self._find, resource_type, resources, name="resources looked for"
                )
            else:
                fields = {"type": resource_type, "count": len(resources)}
                log.warning("resource.kept_unasked", extra=fields)

    async def _find(self, resource_type: str, resources: Sequence[AnyResource]) -> None:
        """Take over what lives, and let go of the rest."""
        found = await self._ask(resource_type, [r.what.resource_id for r in resources])
        for resource in resources:
            life = found.get(resource.what.resource_id)
            if life is not None:
                self._unknown.discard(resource.key)
                self._begin(resource, life)
        await self._drop([r for r in resources if r.what.resource_id not in found])

    async def _ask(
        self, resource_type: str, ids: Sequence[str]
    ) -> Mapping[str, ResourceLife[object]]:
        """Ask a back end until it answers."""
        backoff = Backoff()
        while True:
            try:
                return await self._finders[resource_type](ids)
            except Exception as exc:  # noqa: BLE001  boundary: the back end's own code
                fields = {"type": resource_type, "error": str(exc)}
                log.warning("resource.not_found_out", extra=fields)
            await trio.sleep(backoff.next_s())

    async def _drop(self, gone: Sequence[AnyResource]) -> None:
        backoff = Backoff()
        while True:
            if await self._has_dropped(gone):
                return
            await trio.sleep(backoff.next_s())

    async def _has_dropped(self, gone: Sequence[AnyResource]) -> bool:
        try:
            await self.ownership.release_all(_keys(gone))
        except (StoreError, Unavailable) as exc:
            fields = {"count": len(gone), "error": str(exc)}
            log.warning("resource.not_released", extra=fields)
            return False
        for resource in gone:
            self._unknown.discard(resource.key)
            self._forget(resource)
            log.info("resource.gone", extra=resource.log_fields())
        return True


def _keys(resources: Iterable[AnyResource]) -> list[tuple[str, str]]:
    return [resource.key for resource in resources]


def _too_many(why: str) -> CallError:
    return CallError(ErrorCode.RESOURCE_EXHAUSTED, why)
