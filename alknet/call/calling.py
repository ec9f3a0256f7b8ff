"""The caller: our requests, the streams that they take, and what becomes of them."""

from __future__ import annotations

import enum
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypedDict, TypeVar

import msgspec
import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.credit import ReceiveWindow
from alknet.call.deadlines import Deadlines
from alknet.call.pending import Pending, PendingCall, PendingItems, aborted, lost
from alknet.call.proto import (
    MAX_CREDIT,
    MAX_SAFE_INTEGER,
    Aborted,
    Completed,
    Credit,
    Failed,
    Requested,
    Responded,
    encode_event,
    encode_frame,
    is_too_deep,
)
from alknet.call.uploading import InputSender
from alknet.core.identity import Identity
from alknet.errors import Malformed, Violation

if TYPE_CHECKING:
    from alknet.call.session import CallSession
    from alknet.call.streams import CallStream

__all__ = ["Bidi", "CallOptions", "Calling", "Subscription", "TypedSubscription", "Upload"]

T = TypeVar("T")

GRACE_S = 1.0
"""How much later than the callee the caller gives up: the callee's answer is the one to see."""

SHARED_REQUEST_BYTES = 64 * 1024
"""Longer requests take a stream of their own: a shared one would make the others wait."""

ENVELOPE_BYTES = 12 * 1024
"""More than all of a request but its input can have. A stranger's frame of over 64 KiB costs its
stream, so an input that might make one does not go where other calls are."""

MOST_DISOWNED = 64
"""Calls that we gave up and remember: their items may be on the way, and are no mistake."""


class _Kind(enum.Enum):
    CALL = enum.auto()
    SUBSCRIPTION = enum.auto()
    UPLOAD = enum.auto()
    BIDI = enum.auto()


_HAVE_ITEMS = frozenset({_Kind.SUBSCRIPTION, _Kind.BIDI})
_SEND_ITEMS = frozenset({_Kind.UPLOAD, _Kind.BIDI})


class CallOptions(TypedDict, total=False):
    """What may be said about a call besides its operation and input.

    Attributes:
        token: Run it as this token's identity, not as the connection's.
        timeout_s: Deadline, enforced by both sides; None leaves it to the operation.
        forwarded_for: For whom we ask.
        traceparent: W3C trace context.
        idempotency_key: The same for a retry of the same request.
        peer: Route: names of peers still to pass.
        path: Node ids passed so far.
        large_output: The operation is known to declare it: takes a stream of its own.
    """

    token: str | None
    timeout_s: float | None
    forwarded_for: Identity | None
    traceparent: str | None
    idempotency_key: str | None
    peer: tuple[str, ...] | None
    path: tuple[str, ...]
    large_output: bool


class Subscription:
    """The items of a subscription, as an async iterator of JSON values.

    Iteration ends after the last item and raises `CallError` if the subscription failed. One task
    iterates. Cancelled, no item is lost.
    """

    def __init__(self, calling: Calling, pending: PendingItems, deadline: float) -> None:
        self._calling = calling
        self._pending = pending
        self._deadline = deadline

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> msgspec.Raw:
        if self._deadline == math.inf:
            item = await self._pending.take()
        else:
            with trio.CancelScope(deadline=self._deadline) as scope:
                item = await self._pending.take()
            if scope.cancelled_caught:
                raise _too_slow()
        if item is None:
            raise StopAsyncIteration
        self._calling.item_taken(self._pending)
        return item


class TypedSubscription(Generic[T]):
    """The items of a `Subscription`, decoded; otherwise the same.

    An item that does not fit raises `alknet.errors.Malformed`; the one after it can be taken.
    """

    def __init__(self, items: Subscription, type: type[T]) -> None:  # noqa: A002  msgspec's word
        self._items = items
        self._decoder = msgspec.json.Decoder(type)

    def __aiter__(self) -> TypedSubscription[T]:
        return self

    async def __anext__(self) -> T:
        item = await self._items.__anext__()
        try:
            return self._decoder.decode(item)
        except msgspec.DecodeError as exc:
            raise Malformed(f"an item is not as expected: {exc}") from None


class Upload:
    """An upload of ours: items go out, and one output comes back."""

    def __init__(self, pending: PendingCall, sender: InputSender) -> None:
        self._pending = pending
        self._sender = sender

    async def send(self, item: object) -> None:
        """Send one input item, once the callee has room for it. Cancelled, it was not sent.

        Args:
            item: Anything msgspec encodes as JSON, or JSON in a `msgspec.Raw`.

        Raises:
            CallError: How the call failed; INVALID_INPUT if the item is over the frame limit,
                and the call goes on.
            trio.BrokenResourceError: The callee has answered, and takes no more: see `finish`.
        """
        await self._sender.send(item)

    async def finish(self) -> msgspec.Raw:
        """Say that the input is whole and return the output, once.

        Cancelled, the call goes on until the block of `CallSession.upload` is left.

        Raises:
            CallError: What the peer answered; TIMEOUT or UNAVAILABLE if it did not.
        """
        self._sender.finish()
        return await self._pending.wait()


class Bidi(Subscription):
    """A bidirectional call of ours: items go out, and items come back, in any order of both.

    Iterate and send in different tasks, unless the operation answers each item with one.
    """

    def __init__(
        self, calling: Calling, pending: PendingItems, deadline: float, sender: InputSender
    ) -> None:
        super().__init__(calling, pending, deadline)
        self._sender = sender

    async def send(self, item: object) -> None:
        """Send one input item; see `Upload.send`."""
        await self._sender.send(item)

    async def finish(self) -> None:
        """Say that the input is whole; items still come. The second time has no effect."""
        await trio.lowlevel.checkpoint()
        self._sender.finish()


class Calling:
    """Our requests on one connection.

    Attributes:
        pending: Those without a terminal event, by id.
        deadlines: When those of queries and mutations give up.
    """

    def __init__(self, session: CallSession) -> None:
        self._session = session
        self._limits = session.limits
        self._prefix = "d" if session.connection.is_dialer else "a"
        self._last = 0
        # Ids that we gave up and told the callee so: their late items are no news.
        self._disowned: dict[str, None] = {}
        self._senders: dict[str, InputSender] = {}
        self.pending: dict[str, Pending] = {}
        self.deadlines = Deadlines(self.pending.__len__)

    async def call(
        self,
        operation: str,
        input: object,  # noqa: A002  the wire's word
        options: CallOptions,
    ) -> msgspec.Raw:
        """Run a query or mutation of the peer; see `CallSession.call`."""
        deadline = self._deadline(options, self._limits.call_timeout_max_s)
        request = _request(operation, input, options)
        pending = await self._send(request, options, deadline, _Kind.CALL)
        assert isinstance(pending, PendingCall)
        self._remember(deadline, pending)
        try:
            return await pending.wait()
        finally:
            if not pending.is_over:
                self._leave(pending, CallError(ErrorCode.ABORTED, "we left before the end"))

    @asynccontextmanager
    async def subscribe(
        self,
        operation: str,
        input: object,  # noqa: A002  the wire's word
        options: CallOptions,
    ) -> AsyncGenerator[Subscription]:
        """Run a subscription of the peer; see `CallSession.subscribe`."""
        deadline = self._deadline(options, math.inf)
        request = _request(operation, input, options)
        pending = await self._send(request, options, deadline, _Kind.SUBSCRIPTION)
        assert isinstance(pending, PendingItems)
        try:
            yield Subscription(self, pending, deadline)
        finally:
            if not pending.is_over:
                self._leave(pending, CallError(ErrorCode.ABORTED, "we left before the end"))
            pending.drop()

    @asynccontextmanager
    async def upload(
        self,
        operation: str,
        input: object,  # noqa: A002  the wire's word
        options: CallOptions,
    ) -> AsyncGenerator[Upload]:
        """Run an upload to the peer; see `CallSession.upload`."""
        deadline = self._deadline(options, self._limits.call_timeout_max_s)
        request = _request(operation, input, options)
        pending = await self._send(request, options, deadline, _Kind.UPLOAD)
        assert isinstance(pending, PendingCall)
        self._remember(deadline, pending)
        try:
            yield Upload(pending, self._senders[pending.id])
        finally:
            if not pending.is_over:
                self._leave(pending, CallError(ErrorCode.ABORTED, "we left before the end"))

    @asynccontextmanager
    async def bidi(
        self,
        operation: str,
        input: object,  # noqa: A002  the wire's word
        options: CallOptions,
    ) -> AsyncGenerator[Bidi]:
        """Run a bidirectional operation of the peer; see `CallSession.bidi`."""
        deadline = self._deadline(options, math.inf)
        request = _request(operation, input, options)
        pending = await self._send(request, options, deadline, _Kind.BIDI)
        assert isinstance(pending, PendingItems)
        try:
            yield Bidi(self, pending, deadline, self._senders[pending.id])
        finally:
            if not pending.is_over:
                self._leave(pending, CallError(ErrorCode.ABORTED, "we left before the end"))
            pending.drop()

    def item_taken(self, pending: PendingItems) -> None:
        """Grant credit for an item that was taken."""
        if not pending.is_over:
            granted = pending.window.consume()
            if granted:
                pending.stream.send(Credit(pending.id, granted))

    def fail_all(self, error: CallError) -> None:
        """End every call with *error*: no answer can come any more."""
        for pending in list(self.pending.values()):
            self._settled(pending)
            pending.fail(error)

    def fail_on(self, stream: CallStream, error: CallError) -> None:
        """End the calls whose answers were to come on *stream*."""
        for pending in list(stream.pending.values()):
            self._settled(pending)
            pending.fail(error)

    # --- what the callee says

    def responded(self, stream: CallStream, event: Responded) -> None:
        """Take an output or an item. Raises Violation if it came on another call's stream."""
        pending = self._find(stream, event.id)
        if pending is not None and self._is_unasked(pending):
            self._misused(pending, "the operation takes no input items")
        elif isinstance(pending, PendingCall):
            self._settled(pending)
            if event.more:
                self._disown(stream, event.id)
                pending.fail(_is_subscription())
            else:
                pending.settle(event.output)
        elif pending is None:
            self._disown(stream, event.id)
        elif not pending.offer(event.output):
            self._disown(stream, event.id)
            self._settled(pending)
            pending.fail(lost("the peer sent more items than were asked for"))

    def completed(self, stream: CallStream, event: Completed) -> None:
        """End a subscription."""
        pending = self._find(stream, event.id)
        if pending is None:
            return
        is_unasked = self._is_unasked(pending)
        self._settled(pending)
        if is_unasked:
            pending.fail(_other_type("the operation takes no input items"))
        elif isinstance(pending, PendingItems):
            pending.settle()
        else:
            pending.fail(_is_subscription())

    def credited(self, event: Credit) -> bool:
        """Let an upload send more; False if the id is none of ours."""
        pending = self.pending.get(event.id)
        if pending is None:
            return False
        sender = self._senders.get(event.id)
        if sender is None:
            self._misused(pending, "the operation takes input items: upload them, or use bidi")
            return True
        try:
            sender.credited(event.n)
        except CallError as exc:
            self._leave(pending, exc)
        return True

    def failed(self, stream: CallStream, event: Failed) -> None:
        """End a call with the callee's error."""
        self.faulted(stream, event.id, event.to_error())

    def aborted(self, stream: CallStream, event: Aborted) -> None:
        """End a call that the callee gave up."""
        self.faulted(stream, event.id, aborted(event.reason))

    def faulted(self, stream: CallStream, call_id: str, error: CallError) -> None:
        """End a call with *error*; an unknown id is ignored."""
        pending = self._find(stream, call_id)
        if pending is not None:
            self._settled(pending)
            pending.fail(error)

    def _find(self, stream: CallStream, call_id: str) -> Pending | None:
        pending = self.pending.get(call_id)
        if pending is not None and pending.stream is not stream:
            raise Violation("an answer left the stream of its request")
        return pending

    def _is_unasked(self, pending: Pending) -> bool:
        """Whether we have input items for it, and the callee has not asked for any."""
        sender = self._senders.get(pending.id) if self._senders else None
        return sender is not None and not sender.is_wanted

    def _misused(self, pending: Pending, why: str) -> None:
        self._leave(pending, _other_type(why))

    def _disown(self, stream: CallStream, call_id: str) -> None:
        # An item for a call that is over for us: it was no subscription here, so tell the callee.
        if call_id.startswith(self._prefix) and call_id not in self._disowned:
            self._give_up(stream, call_id)

    def _give_up(self, stream: CallStream, call_id: str) -> None:
        if len(self._disowned) >= MOST_DISOWNED:
            del self._disowned[next(iter(self._disowned))]
        self._disowned[call_id] = None
        stream.send(Aborted(call_id))

    # --- sending and leaving

    async def _send(
        self, request: Requested, options: CallOptions, deadline: float, kind: _Kind
    ) -> Pending:
        self._session.check_live()
        size = len(request.input)
        is_bulk = size > SHARED_REQUEST_BYTES - ENVELOPE_BYTES or options.get("large_output", False)
        lanes = self._session.lanes
        is_own = is_bulk or kind is not _Kind.CALL
        stream = None if is_own else lanes.shared_now()
        if stream is None:
            with trio.CancelScope(deadline=deadline) as scope:
                stream = await lanes.for_request(own=is_own)
            if stream is None:
                assert scope.cancelled_caught
                raise _too_slow()
        # From here to the end nothing waits: a cancel leaves no entry without a request.
        return self._put(stream, request, options, deadline, kind)

    def _put(
        self,
        stream: CallStream,
        request: Requested,
        options: CallOptions,
        deadline: float,
        kind: _Kind,
    ) -> Pending:
        call_id = self._next_id()
        window = self._window(stream) if kind in _HAVE_ITEMS else None
        timeout_ms = None
        if options.get("timeout_s") is not None and deadline < math.inf:
            left_s = deadline - GRACE_S - trio.current_time()
            timeout_ms = min(max(1, math.ceil(left_s * 1000)), MAX_SAFE_INTEGER)
        request = msgspec.structs.replace(request, id=call_id, window=window, timeout_ms=timeout_ms)
        body = encode_event(request)
        if len(body) > self._limits.frame_bytes or is_too_deep(body):
            self._session.lanes.done_with(stream)
            raise CallError(ErrorCode.INVALID_INPUT, "the input is over the frame limit or depth")
        pending: Pending = PendingCall(call_id, stream)
        if window is not None:
            pending = PendingItems(call_id, stream, ReceiveWindow(window), self._session.budget)
        if kind in _SEND_ITEMS:
            self._senders[call_id] = InputSender(pending, self._limits.frame_bytes)
        is_alone = not stream.pending
        self.pending[call_id] = stream.pending[call_id] = pending
        stream.outbox.put(encode_frame(body), is_alone=is_alone)
        return pending

    def _window(self, stream: CallStream) -> int:
        # Where the stream's own flow control holds the callee back, the window only says that
        # this is a subscription: the callee refuses one for anything else.
        return self._limits.subscription_window if stream.is_only else MAX_CREDIT

    def _remember(self, deadline: float, pending: PendingCall) -> None:
        self.deadlines.add(deadline, pending)
        if not self.deadlines.is_watched:  # a session that only serves needs no such task
            self.deadlines.is_watched = True
            self._session.spawn(self.deadlines.watch, self._expire, name="call deadlines")

    def _expire(self) -> None:
        for pending in self.deadlines.expired(trio.current_time()):
            self._leave(pending, _too_slow())

    def _leave(self, pending: Pending, why: CallError) -> None:
        self._give_up(pending.stream, pending.id)
        is_bulk = pending.stream.outbox.queued_bytes > SHARED_REQUEST_BYTES
        if pending.stream.is_single_use and (is_bulk or pending.id in self._senders):
            # The request itself is still on its way, or its items keep the abort from being read.
            pending.stream.break_off()
        self._settled(pending)
        pending.fail(why)

    def _settled(self, pending: Pending) -> None:
        self.pending.pop(pending.id, None)
        pending.stream.pending.pop(pending.id, None)
        if self._senders and (sender := self._senders.pop(pending.id, None)) is not None:
            sender.stop()
        self._session.lanes.done_with(pending.stream)
        self._session.call_ended()

    def _next_id(self) -> str:
        self._last += 1
        while (call_id := f"{self._prefix}{self._last}") in self._session.serving.calls:
            self._last += 1  # the peer chose one that looks like ours; an abort could mean either
        return call_id

    def _deadline(self, options: CallOptions, longest_s: float) -> float:
        timeout_s = options.get("timeout_s")
        if timeout_s is None:
            timeout_s = longest_s
        return trio.current_time() + timeout_s + GRACE_S


def _request(operation: str, input: object, options: CallOptions) -> Requested:  # noqa: A002
    encoded = input if isinstance(input, msgspec.Raw) else _encode_input(input)
    return Requested(
        id="",
        operation=operation.removeprefix("/"),
        input=encoded,
        auth_token=options.get("token"),
        forwarded_for=options.get("forwarded_for"),
        traceparent=options.get("traceparent"),
        idempotency_key=options.get("idempotency_key"),
        peer=options.get("peer"),
        path=options.get("path", ()),
    )


def _encode_input(value: object) -> msgspec.Raw:
    return msgspec.Raw(b"{}" if value is None else msgspec.json.encode(value))


def _is_subscription() -> CallError:
    return _other_type("the operation is a subscription: subscribe to it")


def _other_type(why: str) -> CallError:
    return CallError(ErrorCode.INVALID_OPERATION_TYPE, why)


def _too_slow() -> CallError:
    return CallError(ErrorCode.TIMEOUT, "no answer within the deadline")
