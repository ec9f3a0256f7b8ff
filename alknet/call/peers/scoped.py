"""What makes the calls of one operation to peers: of those, the operations that it declares."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import msgspec
import trio

from alknet.call.children import ChildError
from alknet.call.codes import CallError, ErrorCode
from alknet.call.handles import Bidi, CallOptions, Subscription, Upload
from alknet.call.peers.environment import PeerEnvironment
from alknet.call.peers.reference import PeerRef
from alknet.call.reach import ANY_PEER, Reach
from alknet.call.visibility import no_such_operation, operation_name

if TYPE_CHECKING:
    from alknet.call.callers import BidiCall, Caller, UploadCall
    from alknet.call.context import CallInfo, Context
    from alknet.call.retrying import RetryPolicy

__all__ = ["ScopedPeerEnv"]

S = TypeVar("S")
C = TypeVar("C")


class ScopedPeerEnv:
    """The calls of one operation to the peer or peers that *ref* means.

    The peer checks the rights of *this node*: those of the caller and of the operation do not
    travel. Who asked first does, as data (``forwarded_for``), and so do the trace context and what
    is left of the parent's time. Cancelled, the call is aborted at the peer.
    """

    __slots__ = ("_environment", "_local", "_reach", "_ref", "_retry")

    def __init__(
        self,
        environment: PeerEnvironment,
        reach: Reach,
        ref: PeerRef,
        local: Caller,
        retry: RetryPolicy | None = None,
    ) -> None:
        """Make one.

        Args:
            environment: The node's.
            reach: What the operation declares.
            ref: Which peer.
            local: What makes its calls on this node, for `PeerRef.include_local`.
            retry: When queries and mutations are tried again; None for never.
        """
        self._environment = environment
        self._reach = reach
        self._ref = ref
        self._local = local
        self._retry = retry

    async def call(
        self,
        parent: Context,
        operation: str,
        input: object,  # noqa: A002  the wire's word
    ) -> msgspec.Raw:
        """Run a query or mutation; see `alknet.call.context.Context.call`."""
        try:
            name, options = self._check(parent.info, operation)
            if self._retry is None:
                return await self._environment.call(self._ref, name, input, **options)
            return await self._environment.call(
                self._ref, name, input, retry=self._retry, **options
            )
        except CallError as exc:
            self._check_local(exc, operation)
        return await self._local.call(parent, operation, input)

    def subscribe(
        self,
        parent: Context,
        operation: str,
        input: object,  # noqa: A002
    ) -> AbstractAsyncContextManager[AsyncIterator[msgspec.Raw]]:
        """Run a subscription; see `alknet.call.context.Context.subscribe`."""
        return self._there_or_here(
            parent,
            operation,
            there=lambda name, options: self._environment.subscribe(
                self._ref, name, input, **options
            ),
            made_of=_PeerItems,
            here=lambda: self._local.subscribe(parent, operation, input),
        )

    def upload(
        self,
        parent: Context,
        operation: str,
        input: object,  # noqa: A002
    ) -> AbstractAsyncContextManager[UploadCall]:
        """Run an upload; see `alknet.call.context.Context.upload`."""
        return self._there_or_here(
            parent,
            operation,
            there=lambda name, options: self._environment.upload(self._ref, name, input, **options),
            made_of=_PeerUpload,
            here=lambda: self._local.upload(parent, operation, input),
        )

    def bidi(
        self,
        parent: Context,
        operation: str,
        input: object,  # noqa: A002
    ) -> AbstractAsyncContextManager[BidiCall]:
        """Run a bidirectional operation; see `alknet.call.context.Context.bidi`."""
        return self._there_or_here(
            parent,
            operation,
            there=lambda name, options: self._environment.bidi(self._ref, name, input, **options),
            made_of=_PeerBidi,
            here=lambda: self._local.bidi(parent, operation, input),
        )

    @asynccontextmanager
    async def _there_or_here(
        self,
        parent: Context,
        operation: str,
        *,
        there: Callable[[str, CallOptions], AbstractAsyncContextManager[S]],
        made_of: Callable[[S, str], C],
        here: Callable[[], AbstractAsyncContextManager[C]],
    ) -> AsyncGenerator[C]:
        """Open it at a peer, and give what is *made_of* that; or open it here, where it may be."""
        async with AsyncExitStack() as stack:
            try:
                name, options = self._check(parent.info, operation)
                opened = made_of(await stack.enter_async_context(there(name, options)), operation)
            except CallError as exc:
                self._check_local(exc, operation)
                opened = await stack.enter_async_context(here())
            yield opened

    def _check(self, parent: CallInfo, operation: str) -> tuple[str, CallOptions]:
        """Return the name and options of a call that *parent* may make. Raises CallError."""
        name = operation_name(operation)
        if not self._reach.allows_peer(self._ref.name or ANY_PEER, name):
            raise no_such_operation(name)
        left_s = trio.current_effective_deadline() - trio.current_time()
        if left_s <= 0:
            raise CallError(ErrorCode.TIMEOUT, "no time is left for a call to a peer")
        node_id = self._environment.node_id
        return name, CallOptions(
            timeout_s=None if left_s == math.inf else left_s,
            forwarded_for=parent.forwarded_for or parent.identity,
            traceparent=parent.traceparent,
            path=() if node_id is None else (str(node_id),),
        )

    def _check_local(self, error: CallError, operation: str) -> None:
        """Raise what the parent gets of *error*, unless this node may run the operation."""
        is_local = self._ref.include_local and error.has_not_started
        if not is_local or not self._reach.allows_local(operation.removeprefix("/")):
            raise ChildError(error, operation) from None


class _PeerItems:
    """The items of a peer; their errors are a child's."""

    def __init__(self, items: Subscription, operation: str) -> None:
        self._items = items
        self._operation = operation

    def __aiter__(self) -> _PeerItems:
        return self

    async def __anext__(self) -> msgspec.Raw:
        try:
            return await self._items.__anext__()
        except CallError as exc:
            raise ChildError(exc, self._operation) from None


class _PeerUpload:
    def __init__(self, upload: Upload, operation: str) -> None:
        self._upload = upload
        self._operation = operation

    async def send(self, item: object) -> None:
        try:
            await self._upload.send(item)
        except CallError as exc:
            raise ChildError(exc, self._operation) from None

    async def finish(self) -> msgspec.Raw:
        try:
            return await self._upload.finish()
        except CallError as exc:
            raise ChildError(exc, self._operation) from None


class _PeerBidi(_PeerItems):
    def __init__(self, both: Bidi, operation: str) -> None:
        super().__init__(both, operation)
        self._both = both

    async def send(self, item: object) -> None:
        try:
            await self._both.send(item)
        except CallError as exc:
            raise ChildError(exc, self._operation) from None

    async def finish(self) -> None:
        await self._both.finish()


if TYPE_CHECKING:
    _: type[Caller] = ScopedPeerEnv
