"""The caller: our requests, the streams that they take, and what becomes of them."""

from __future__ import annotations

import enum
import math
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import msgspec
import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.credit import ReceiveWindow
from alknet.call.deadlines import Deadlines
from alknet.call.handles import Bidi, CallOptions, Subscription, Upload
from alknet.call.pending import (
    WATCH,
    Pending,
    PendingCall,
    PendingItems,
    PendingWatch,
    aborted,
    lost,
    too_slow,
    unbegun,
)
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
from alknet.errors import Violation

if TYPE_CHECKING:
    from alknet.call.session import CallSession
    from alknet.call.streams import CallStream

__all__ = ["Calling", "encode_input"]

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
    """What we ask for: do items come back, and are items sent."""

    CALL = (False, False)
    SUBSCRIPTION = (True, False)
    UPLOAD = (False, True)
    BIDI = (True, True)

    def __init__(self, has_items: bool, sends_items: bool) -> None:
        self.has_items = has_items
        self.sends_items = sends_items


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
        pending = await self._send(operation, input, options, _Kind.CALL)
        assert isinstance(pending, PendingCall)
        try:
            return await pending.wait()
        finally:
            if not pending.is_over:
                self._abandon(pending)

    @asynccontextmanager
    async def subscribe(
        self,
        operation: str,
        input: object,  # noqa: A002  the wire's word
        options: CallOptions,
    ) -> AsyncGenerator[Subscription]:
        """Run a subscription of the peer; see `CallSession.subscribe`."""
        pending = await self._send(operation, input, options, _Kind.SUBSCRIPTION)
        assert isinstance(pending, PendingItems)
        with self._until_left(pending):
            yield Subscription(self, pending)

    @asynccontextmanager
    async def upload(
        self,
        operation: str,
        input: object,  # noqa: A002  the wire's word
        options: CallOptions,
    ) -> AsyncGenerator[Upload]:
        """Run an upload to the peer; see `CallSession.upload`."""
        pending = await self._send(operation, input, options, _Kind.UPLOAD)
        assert isinstance(pending, PendingCall)
        with self._until_left(pending):
            yield Upload(pending, self._senders[pending.id])

    @asynccontextmanager
    async def bidi(
        self,
        operation: str,
        input: object,  # noqa: A002  the wire's word
        options: CallOptions,
    ) -> AsyncGenerator[Bidi]:
        """Run a bidirectional operation of the peer; see `CallSession.bidi`."""
        pending = await self._send(operation, input, options, _Kind.BIDI)
        assert isinstance(pending, PendingItems)
        with self._until_left(pending):
            yield Bidi(self, pending, self._senders[pending.id])

    @contextmanager
    def _until_left(self, pending: Pending) -> Iterator[None]:
        try:
            yield
        finally:
            if not pending.is_over:
                self._abandon(pending)
            if isinstance(pending, PendingItems):
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
            pending.fail(error.copied())

    def left_unanswered(self, stream: CallStream) -> None:
        """End the calls on *stream*, which the peer has finished with: it has begun none of them.

        Of those with items, some may have come.
        """
        why = "the peer finished the stream without an answer"
        for pending in list(stream.pending.values()):
            self._settled(pending)
            pending.fail(unbegun(why) if isinstance(pending, PendingCall) else lost(why))

    def fail_on(self, stream: CallStream, error: CallError) -> None:
        """End the calls whose answers were to come on *stream*."""
        for pending in list(stream.pending.values()):
            self._settled(pending)
            pending.fail(error.copied())

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
        error = aborted(event.reason)
        error.by = ()
        self.faulted(stream, event.id, error)

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
        self,
        operation: str,
        input: object,  # noqa: A002
        options: CallOptions,
        kind: _Kind,
    ) -> Pending:
        deadline = self._deadline(options, kind)
        data = encode_input(input)
        try:
            stream = await self._stream(len(data), options, deadline, kind)
            # From here to the end nothing waits: a cancel leaves no entry without a request.
            request = self._request(stream, operation, data, options, deadline, kind)
            return self._put(stream, request, deadline, kind)
        except CallError as exc:
            # A cancel that takes the session along is a cancel for who calls in the same scope.
            await trio.lowlevel.checkpoint_if_cancelled()
            exc.is_unsent = True
            raise

    async def _stream(
        self, size: int, options: CallOptions, deadline: float, kind: _Kind
    ) -> CallStream:
        self._session.check_live()
        is_bulk = size > SHARED_REQUEST_BYTES - ENVELOPE_BYTES or options.get("large_output", False)
        lanes = self._session.lanes
        is_own = is_bulk or kind is not _Kind.CALL
        stream = None if is_own else lanes.shared_now()
        if stream is None:
            with trio.CancelScope(deadline=deadline) as scope:
                stream = await lanes.for_request(own=is_own)
            if stream is None:
                assert scope.cancelled_caught
                raise too_slow()
        return stream

    def _request(
        self,
        stream: CallStream,
        operation: str,
        data: msgspec.Raw,
        options: CallOptions,
        deadline: float,
        kind: _Kind,
    ) -> Requested:
        timeout_ms = None
        if options.get("timeout_s") is not None and deadline < math.inf:
            left_s = deadline - GRACE_S - trio.current_time()
            timeout_ms = min(max(1, math.ceil(left_s * 1000)), MAX_SAFE_INTEGER)
        peer = options.get("peer")
        return Requested(
            id=self._next_id(),
            operation=operation.removeprefix("/"),
            input=data,
            auth_token=options.get("token"),
            forwarded_for=options.get("forwarded_for"),
            timeout_ms=timeout_ms,
            traceparent=options.get("traceparent"),
            window=self._window(stream) if kind.has_items else None,
            peer=peer,
            path=options.get("path", ()),
            has_input_items=bool(peer) and kind.sends_items,
            idempotency_key=options.get("idempotency_key"),
        )

    def _put(self, stream: CallStream, request: Requested, deadline: float, kind: _Kind) -> Pending:
        call_id, window = request.id, request.window
        body = encode_event(request)
        if len(body) > self._limits.frame_bytes or is_too_deep(body):
            self._session.lanes.done_with(stream)
            raise CallError(ErrorCode.INVALID_INPUT, "the input is over the frame limit or depth")
        pending: Pending
        if window is None:
            pending = PendingCall(call_id, stream)
            self._remember(deadline, pending)
        else:
            grants = ReceiveWindow(window)
            made = PendingWatch if request.operation == WATCH else PendingItems
            pending = made(call_id, stream, grants, self._session.budget, deadline)
        if kind.sends_items:
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
            self._leave(pending, too_slow())

    def _abandon(self, pending: Pending) -> None:
        self._leave(pending, CallError(ErrorCode.ABORTED, "we left before the end"))

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

    def _deadline(self, options: CallOptions, kind: _Kind) -> float:
        timeout_s = options.get("timeout_s")
        if timeout_s is None:
            timeout_s = math.inf if kind.has_items else self._limits.call_timeout_max_s
        return trio.current_time() + timeout_s + GRACE_S


def encode_input(value: object) -> msgspec.Raw:
    """Return *value* as the JSON of an input; None is ``{}``, and a Raw is JSON already."""
    if isinstance(value, msgspec.Raw):
        return value
    return msgspec.Raw(b"{}" if value is None else msgspec.json.encode(value))


def _is_subscription() -> CallError:
    return _other_type("the operation is a subscription: subscribe to it")


def _other_type(why: str) -> CallError:
    return CallError(ErrorCode.INVALID_OPERATION_TYPE, why)
