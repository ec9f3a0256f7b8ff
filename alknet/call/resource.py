"""One resource: its life is the run of an async function, and its row of ownership frames it.

The row is durable before the life begins, and goes after it has ended: by itself, by a crash, by a
release, or with the node. The life of a resource raises nothing: what it meets is in its fields.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Generic, Protocol, TypeVar

import trio

from alknet.core.backoff import Backoff
from alknet.core.identity import Identity
from alknet.core.ownership import OwnedResource, OwnershipStore
from alknet.core.storage import OutcomeUnknown
from alknet.errors import AlknetError, Conflict, LocalError, NotFound, StoreError, Unavailable

__all__ = ["LONGEST_ORIGINATOR", "RELEASE_WITHIN_S", "Resource", "ResourceLife"]

log = logging.getLogger(__name__)

# How long the end of a resource is held up by a store that does not answer, also at the end of the
# node. What is not released by then is tried again, or left to the next start.
RELEASE_WITHIN_S = 5.0
# Characters of it that are shown: the longest that this project gives has 68, and a caller can say
# 4 KiB, of which the resources of a node would make a list that fits no frame.
LONGEST_ORIGINATOR = 128

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class ResourceLife(Protocol[T_co]):
    """The life of a resource: the async function that runs as long as it lives.

    It calls ``task_status.started()`` when the resource is up, maybe with a value for whoever
    spawned it. It is cancelled when the resource is released, and when the node stops.
    """

    def __call__(self, *, task_status: trio.TaskStatus[T_co]) -> Awaitable[object]: ...


class Resource(Generic[T]):
    """A resource that lives, or of which that is not known yet.

    Attributes:
        what: Its type, its id and its owner.
        scope: Ends its life.
        up: Set when it is up, or will never be.
        ended: Set when its life is over; its row is gone too, but for `failed_release`.
        is_up: It said that it is up.
        failure: What its life raised.
        failed_release: Why its row is still there after its life; it is tried again.
    """

    def __init__(
        self,
        ownership: OwnershipStore,
        what: OwnedResource,
        forwarded_for: Identity | None = None,
    ) -> None:
        self.what = what
        self.scope = trio.CancelScope()
        self.up = trio.Event()
        self.ended = trio.Event()
        self.is_up = False
        self.failure: Exception | None = None
        self.failed_release: AlknetError | None = None
        self._ownership = ownership
        self._forwarded_for = forwarded_for
        self._value: T | None = None
        self._has_row = False

    def __repr__(self) -> str:
        return f"<Resource {self}>"

    def __str__(self) -> str:
        return f"{self.what.resource_type} {self.what.resource_id!r}"

    @property
    def state(self) -> str:
        """``starting``, ``up`` or ``ending``."""
        if self.scope.cancel_called or self.ended.is_set():
            return "ending"
        return "up" if self.is_up else "starting"

    @property
    def spawned_for(self) -> str | None:
        """The id of whom its owner named as the one it is for; the end of a long one is cut off."""
        return None if self._forwarded_for is None else self._forwarded_for.id[:LONGEST_ORIGINATOR]

    @property
    def key(self) -> tuple[str, str]:
        """Type and id."""
        return self.what.resource_type, self.what.resource_id

    def started(self, value: T | None = None) -> None:
        """Say that it is up: it is the ``task_status`` of its own life."""
        if self.is_up:
            raise RuntimeError(f"{self} said twice that it is up")
        self.is_up = True
        self._value = value
        self.up.set()
        log.info("resource.started", extra=self.log_fields())

    async def wait_up(self) -> T:
        """Return its value once it is up. Cancelled, or if that fails, it and its row are gone.

        Raises:
            Exception: What its life raised before it was up.
            Conflict: It was released meanwhile.
            Unavailable: The node stops.
            LocalError: Its life ended without having been up.
        """
        try:
            await self.up.wait()
        except BaseException:  # raised again: a cancel takes the resource with it
            self.scope.cancel()
            with trio.CancelScope(shield=True):
                await self.ended.wait()
            if not self.is_up:
                self._log_crash()  # nobody hears of it otherwise
            raise
        if self.is_up:
            return self._value  # type: ignore[return-value]  # None where that is what T is
        if self.failure is not None:
            raise self.failure
        if self.scope.cancel_called:
            raise Conflict(f"{self} was released while it started")
        raise LocalError(f"{self} ended before it said that it is up")

    async def live(self, life: ResourceLife[T]) -> None:
        """Record who owns it, run *life*, release it.

        Cancelled, its life is, and it is released within `RELEASE_WITHIN_S`; one that may outlive
        the node keeps its row then.
        """
        is_stopped = False
        try:
            with self.scope:
                await self._record()
                await life(task_status=self)
        except trio.Cancelled:
            is_stopped = True
            raise
        except Exception as exc:  # noqa: BLE001  boundary: a crash ends its resource, no more
            self.failure = exc
        except BaseExceptionGroup as group:
            cancelled, rest = group.split(trio.Cancelled)
            if not isinstance(rest, ExceptionGroup):
                is_stopped = rest is None
                raise
            self.failure, is_stopped = rest, cancelled is not None
        finally:
            if is_stopped and not self.is_up and self.failure is None:
                self.failure = Unavailable("the node stops")
            await self._end(keeps_row=is_stopped and not self.what.ends_with_node)

    def take_over_row(self) -> None:
        """Know that its row is there: an earlier process of the node has written it."""
        self._has_row = True

    def log_fields(self) -> dict[str, object]:
        """Return what each log record about it says."""
        what = self.what
        fields: dict[str, object] = {
            "resource": f"{what.resource_type}:{what.resource_id}",
            "owner": what.owner,
        }
        if self.spawned_for is not None:
            fields["forwarded_for"] = self.spawned_for
        return fields

    async def _record(self) -> None:
        if self._has_row:
            return
        what = self.what
        self._has_row = True  # it may be, from here on
        try:
            await self._ownership.record(
                what.owner,
                what.resource_type,
                what.resource_id,
                ends_with_node=what.ends_with_node,
            )
        except OutcomeUnknown:
            raise
        except AlknetError:
            self._has_row = False
            raise

    async def _end(self, *, keeps_row: bool) -> None:
        if self.is_up:
            self._log_crash()
            log.info("resource.ended", extra=self.log_fields())
        try:
            if self._has_row and not keeps_row:
                await self._release()
        finally:
            self.ended.set()
            self.up.set()

    async def _release(self) -> None:
        """Remove its row: once whatever happens, then again and again until cancelled."""
        backoff = Backoff()
        while True:
            is_first = self.failed_release is None
            try:
                with trio.move_on_after(RELEASE_WITHIN_S, shield=is_first):
                    await self._ownership.release(*self.key)
                    return
                self.failed_release = Unavailable("the store does not answer")
            except NotFound:
                return  # its owner was removed, and its row with him
            except (StoreError, Unavailable) as exc:
                self.failed_release = exc
            fields = self.log_fields() | {"error": str(self.failed_release)}
            log.warning("resource.not_released", extra=fields)
            self.ended.set()
            self.up.set()
            await trio.sleep(backoff.next_s())

    def _log_crash(self) -> None:
        if self.failure is not None:
            log.error("resource.crashed", extra=self.log_fields(), exc_info=self.failure)
