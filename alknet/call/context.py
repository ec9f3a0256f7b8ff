"""What a handler knows about the call that it serves."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from copy import copy
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import trio

from alknet.call.codes import CallError
from alknet.call.lineage import Lineage, has_ended_above
from alknet.call.resource import ResourceLife
from alknet.call.resources import Resources
from alknet.call.secret import CallSecrets, Secret
from alknet.core.access import visible_ids
from alknet.core.contracts import OwnershipProvider
from alknet.core.identity import Identity, NodeId
from alknet.errors import LocalError

if TYPE_CHECKING:
    from alknet.call.callers import BidiCall, Caller, LocalCaller, UploadCall
    from alknet.call.operations import Operation
    from alknet.call.overlay import Layer, Overlay
    from alknet.call.peers.reference import PeerRef
    from alknet.call.retrying import RetryPolicy

__all__ = ["CallInfo", "CallLog", "Context", "Remote"]

T = TypeVar("T")


class Remote(msgspec.Struct, frozen=True):
    """The connection that a call came on.

    Attributes:
        address: ``ip:port``, a path, or what the carrier can say.
        peer_key: The key that the peer has proven, whatever token the call carried.
        carrier: ``quic``, ``tcp``, ``memory`` or ``unix``.
    """

    address: str
    peer_key: NodeId | None
    carrier: str


class CallInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a call is, fixed when it is admitted.

    Attributes:
        request_id: As the caller chose it; unique on its connection while in flight. For a call of
            another operation, ``c`` and a number.
        operation: The name, without a leading slash.
        identity: Whom it runs as: the peer, or what the call's token stands for.
        remote: The connection.
        forwarded_for: Whom the caller says that it speaks for. Data for logs and decisions of
            the application; never authority, nobody has checked it.
        traceparent: W3C Trace Context of the caller, as sent.
        idempotency_key: The same for a retry of the same request.
        parent_id: The request id of the call whose operation made this one, on this node.
        depth: How many such calls it is away from one that came by a connection.
        session: The `alknet.call.session.CallSession` that it came by, for the node's own
            operations; None where there is none.
    """

    request_id: str
    operation: str
    identity: Identity
    remote: Remote
    forwarded_for: Identity | None = None
    traceparent: str | None = None
    idempotency_key: str | None = None
    parent_id: str | None = None
    depth: int = 0
    session: object = None

    def log_fields(self) -> dict[str, object]:
        """Return what each log record about the call says."""
        fields: dict[str, object] = {
            "operation": self.operation,
            "request_id": self.request_id,
            "identity": self.identity.id,
        }
        if self.forwarded_for is not None:
            fields["forwarded_for"] = self.forwarded_for.id
        return fields


class Context:
    """One call, seen by its handler; it ends with the call.

    Attributes:
        info: What the call is. Its fields can be read from the context itself too.
        lineage: Whether those above are still there; None where it ends with them.
        layers: The operations that the handler has added and can call, the first first.
    """

    lineage: Lineage | None = None
    layers: tuple[Layer, ...] = ()
    _asked_visible: frozenset[str] = frozenset()
    _caller: LocalCaller | None = None

    def __init__(
        self,
        info: CallInfo,
        ownership: OwnershipProvider,
        compose: Callable[[Context], LocalCaller] | None = None,
        secrets: CallSecrets | None = None,
        resources: Resources | None = None,
    ) -> None:
        """Make one.

        Args:
            compose: Makes what makes the handler's calls, when it needs that; None, and it can
                make none.
        """
        self.info = info
        self._ownership = ownership
        self._compose = compose
        self._secrets = secrets
        self._resources = resources

    def __repr__(self) -> str:
        return f"<Context {self.operation} {self.request_id} as {self.identity.id}>"

    @property
    def request_id(self) -> str:
        """As the caller chose it."""
        return self.info.request_id

    @property
    def operation(self) -> str:
        """The name of the operation, without a leading slash."""
        return self.info.operation

    @property
    def identity(self) -> Identity:
        """Whom the call runs as."""
        return self.info.identity

    @property
    def remote(self) -> Remote:
        """The connection that the call came on."""
        return self.info.remote

    @property
    def forwarded_for(self) -> Identity | None:
        """Whom the caller says that it speaks for: unchecked, never authority."""
        return self.info.forwarded_for

    @property
    def traceparent(self) -> str | None:
        """The caller's W3C Trace Context, as sent."""
        return self.info.traceparent

    @property
    def idempotency_key(self) -> str | None:
        """The same for a retry of the same request."""
        return self.info.idempotency_key

    @property
    def deadline(self) -> float:
        """When the call is cancelled, in `trio.current_time` seconds; ``inf`` for never.

        Inside a cancel scope of the handler's own that ends sooner, that scope's.
        """
        return trio.current_effective_deadline()

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline, not below 0; ``inf`` if there is none."""
        return max(0.0, self.deadline - trio.current_time())

    @property
    def asked_visible(self) -> frozenset[str]:
        """The resource types that `visible` was asked about, for tests of list operations."""
        return self._asked_visible

    def visible(
        self, resource_type: str, ids: Iterable[str], *, action: str | None = None
    ) -> list[str]:
        """Return those of *ids*, in their order, that the caller owns or is granted.

        Every list operation filters what it returns by this; the node's owner sees all.

        Args:
            resource_type: As in the access rules of the operations on single resources.
            ids: Resource ids, any number.
            action: What the caller wants to do with them; None for grants of every action.
        """
        self._asked_visible |= {resource_type}
        return visible_ids(resource_type, ids, action, self.identity, self._ownership)

    def go_on_as(self, identity: Identity) -> None:
        """Make *identity*, the caller with the rights of now, whom the call runs as."""
        self.info = msgspec.structs.replace(self.info, identity=identity)

    async def own(self, resource_type: str, resource_id: str, life: ResourceLife[T]) -> T:
        """Have the caller own something new, and run its *life* beside this call.

        It goes on when this call and its connection end, until it ends by itself, is released, or
        the node stops. The owner is `identity`, never `forwarded_for`.

        Args:
            resource_type: As in the access rules of the operations on it.
            resource_id: Made up here; what callers choose can clash with what others own.
            life: ``async def life(*, task_status)``: calls ``task_status.started(value)`` when the
                resource is up, and runs as long as it lives. Cancelled, it tears it down.

        Returns:
            The *value* of ``started``.

        Raises: As `alknet.call.resources.Resources.own`. If it raises, and if it is cancelled,
            neither the resource nor its ownership is left behind.
        """
        if self._resources is None:
            raise LocalError("there is no node here that could hold a resource")
        return await self._resources.own(
            self.identity,
            resource_type,
            resource_id,
            life,
            forwarded_for=self.forwarded_for,
        )

    async def release(self, resource_type: str, resource_id: str) -> None:
        """End something that was spawned by `own`, and return when it and its ownership are gone.

        Nobody is asked here whether the caller may: the operation's access rules say so, with
        *resource_type* and a ``resource_id_path``. Cancelled, it ends all the same.

        Raises: As `alknet.call.resources.Resources.release`.
        """
        if self._resources is None:
            raise LocalError("there is no node here that could hold a resource")
        await self._resources.release(resource_type, resource_id)

    async def secret(self, path: str) -> Secret:
        """Return a secret of the node's vault that this operation declares in ``secrets``.

        It is read when first asked for, and wiped when the call ends. Cancelled, nothing of it
        stays behind.

        Raises:
            LocalError: The operation does not declare it, or the call is over.
            Unavailable: The vault is locked, there is none, or nothing is in it at *path*; the
                log says which.
        """
        if self._secrets is None:
            raise LocalError(f"the operation does not declare the secret {path!r}")
        return await self._secrets.get(path)

    def close_secrets(self) -> None:
        """Wipe the secrets that the handler got: it has ended."""
        if self._secrets is not None:
            self._secrets.close()

    async def call(
        self,
        operation: str,
        input: object = None,  # noqa: A002
        *,
        peer: PeerRef | None = None,
        retry: RetryPolicy | None = None,
        continue_running: bool = False,
    ) -> msgspec.Raw:
        """Run another operation, of this node or of *peer*, which this one declares in ``calls``.

        It runs with this operation's `CompositionAuthority`, not with the caller's rights, in this
        task, and ends with this call. Cancelled, it is cancelled.

        Args:
            operation: With or without the leading slash; a query or mutation.
            input: Anything msgspec encodes as JSON, or JSON in a `msgspec.Raw`; None is ``{}``.
            peer: Run it there, by this node's rights at the peer; None for this node.
            retry: For a call to a peer: try it again if it fails in a way that may pass.
            continue_running: Once it has started, let it finish when this call ends before, by an
                abort, a deadline or a cancel: within its own deadline, and without calls of its
                own that it has not begun.

        Raises:
            CallError: As a remote caller would get; NOT_FOUND for what is not in ``calls``. Left
                uncaught, UNAVAILABLE, RESOURCE_EXHAUSTED and TIMEOUT reach this operation's own
                caller, and all others as INTERNAL: raise what that caller should know.
        """
        calls = self._calls(operation, peer, retry)
        if not continue_running:
            return await calls.call(self, operation, input)
        await trio.lowlevel.checkpoint_if_cancelled()
        parent = copy(self)
        parent.lineage = Lineage(self.lineage)
        start = partial(calls.call, parent, operation, input)
        return await self._local().survivors.run(start, parent.lineage, operation)

    async def batch(
        self, calls: Sequence[tuple[str, object]], *, peer: PeerRef | None = None
    ) -> list[msgspec.Raw]:
        """Run several operations at once, each as `call` does, and return the outputs in order.

        Raises:
            CallError: Of the first that failed; the others are cancelled.
        """
        outputs = [msgspec.Raw()] * len(calls)
        failed: list[CallError] = []

        async def run(index: int, operation: str, value: object) -> None:
            try:
                outputs[index] = await self.call(operation, value, peer=peer)
            except CallError as exc:
                failed.append(exc)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for index, (operation, value) in enumerate(calls):
                nursery.start_soon(run, index, operation, value)
        if failed:
            raise failed[0]
        return outputs

    def subscribe(
        self,
        operation: str,
        input: object = None,  # noqa: A002
        *,
        peer: PeerRef | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[msgspec.Raw]]:
        """Run a subscription like `call`: ``async with`` gives its items, an async iterator.

        The next item is made when it is asked for. Leaving the block ends the operation.
        """
        return self._calls(operation, peer).subscribe(self, operation, input)

    def upload(
        self,
        operation: str,
        input: object = None,  # noqa: A002
        *,
        peer: PeerRef | None = None,
    ) -> AbstractAsyncContextManager[UploadCall]:
        """Run an upload like `call`: send it items inside the block, then take its output.

        The operation runs beside the block, and takes each item before the next can be sent.
        Leaving the block without `UploadCall.finish`, by a cancel too, ends the operation.
        """
        return self._calls(operation, peer).upload(self, operation, input)

    def bidi(
        self,
        operation: str,
        input: object = None,  # noqa: A002
        *,
        peer: PeerRef | None = None,
    ) -> AbstractAsyncContextManager[BidiCall]:
        """Run a bidirectional operation like `subscribe`, and send it items.

        It runs while it is iterated over: send in another task, unless it answers each item with
        one.
        """
        return self._calls(operation, peer).bidi(self, operation, input)

    def overlay(self, *operations: Operation[..., Any]) -> AbstractAsyncContextManager[Overlay]:
        """Add *operations* for the time of an ``async with`` block, for this call alone.

        This handler can call them without a declaration, and they one another where they declare
        it; nobody else sees them. Each gets at most this operation's own authority, reach and
        secrets. Leaving the block cancels their calls, and waits for those to end.

        Raises:
            LocalError, Conflict, CallError: On entering, as `Overlay.add`.
        """
        return self._local().overlay(self, operations)

    def session_overlay(self) -> Overlay:
        """Return what adds operations to the session that this call came by.

        Whoever calls on that connection finds those that are not internal, until it ends: one
        peer, or all whom a relaying peer speaks for. Their access rules hold. From now on this
        handler can call them too, as those of `overlay`.

        Raises:
            LocalError: The call came by no session.
        """
        return self._local().session_overlay(self)

    def _local(self) -> LocalCaller:
        if self._caller is None:
            if self._compose is None:
                raise LocalError("this context was made without a node")
            self._caller = self._compose(self)
        return self._caller

    def _calls(
        self, operation: str, peer: PeerRef | None, retry: RetryPolicy | None = None
    ) -> Caller:
        if self.lineage is not None and self.lineage.is_broken:
            raise has_ended_above(operation)
        caller = self._local()
        if peer is not None:
            return caller.at(peer, retry)
        if retry is not None:
            raise LocalError("retry is for calls to a peer: nothing is lost on the way here")
        return caller

    @cached_property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry the operation, the request id, the caller, and for whom."""
        return CallLog(logging.getLogger("alknet.operation"), self.info.log_fields())


class CallLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the fields of a call to those of each record; the record's own win."""

    def process(
        self, msg: object, kwargs: MutableMapping[str, Any]
    ) -> tuple[object, MutableMapping[str, Any]]:
        """Merge the fields into ``extra``."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs
