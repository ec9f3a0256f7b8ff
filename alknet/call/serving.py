"""The callee: the peer's requests, each in a scope of its own, each with one terminal event."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.contracts import AdmittedCall
from alknet.call.crash import error_of
from alknet.call.idempotency import CallKey, fingerprint_of
from alknet.call.inbound import SHUTDOWN, InboundCall, failed
from alknet.call.inputs import InputItems
from alknet.call.proto import (
    MAX_DEPTH,
    Aborted,
    Completed,
    Credit,
    Event,
    Failed,
    InputEnd,
    InputItem,
    Requested,
    Responded,
    encode_event,
    encode_frame,
    is_too_deep,
)
from alknet.call.sharing import KeyedCall
from alknet.call.workers import Workers
from alknet.core.contracts import CloseCode, CloseReason
from alknet.errors import Violation

if TYPE_CHECKING:
    from alknet.call.session import CallSession
    from alknet.call.streams import CallStream

__all__ = ["Serving"]


class Serving:
    """The requests of the peer on one connection.

    Attributes:
        calls: Those that run, by id.
        is_draining: New requests are refused.
    """

    def __init__(self, session: CallSession) -> None:
        self._session = session
        self._limits = session.limits
        self._input_bytes = 0
        self.calls: dict[str, InboundCall] = {}
        self.is_draining = False
        self._workers: Workers[InboundCall] | None = None
        self._stranger = object()

    def requested(self, stream: CallStream, event: Requested, arrived_at: float) -> None:
        """Run a request, or refuse it.

        Raises:
            Violation: It stands on the wrong stream, or its id is in flight.
        """
        self._check_id(stream, event.id)
        try:
            call = self._admit(stream, event, arrived_at)
        except CallError as exc:
            self.refuse(stream, event.id, exc)
            return
        self.calls[call.id] = call
        stream.serving.add(call)
        self._input_bytes += call.input_bytes
        if call.op_type in _TAKES_ITEMS:
            self._open_inputs(call)
        if self._workers is None:  # a session that only calls needs none
            self._workers = Workers(self._session.spawn, self._run, self._cut)
        self._workers.give(call)

    def faulty_request(self, stream: CallStream, call_id: str, error: CallError) -> None:
        """Refuse a request whose payload is bad. Raises like `requested`."""
        self._check_id(stream, call_id)
        self.refuse(stream, call_id, error)

    def refuse(self, stream: CallStream, call_id: str, error: CallError) -> None:
        """Answer with *error*, and count it if a token was refused."""
        stream.outbox.put(self._frame(Failed.refusal(call_id, error), "?"))
        if error.is_failed_authentication:
            self._session.authentication_failed()

    def aborted(self, call_id: str) -> None:
        """End the call at its caller's wish; an unknown id is ignored."""
        if call := self.calls.get(call_id):
            call.end(failed(call_id, ErrorCode.ABORTED, "aborted by the caller"))

    def credited(self, event: Credit) -> None:
        """Let a subscription send more; an unknown id is ignored."""
        call = self.calls.get(event.id)
        if call is None or call.credit is None:
            return
        try:
            call.credit.add(event.n)
        except CallError as exc:
            call.end(Failed.of(event.id, exc))

    def input_came(self, stream: CallStream, event: InputItem | InputEnd) -> None:
        """Take an input item or the end of them; for an unknown id it is ignored.

        Raises:
            Violation: It came on another stream than its request, so that its place is not known.
        """
        call = self.calls.get(event.id)
        if call is None or call.is_cancelled:
            return  # it may be over while items are on their way
        if call.stream is not stream:
            raise Violation("input left the stream of its request")
        if call.inputs is None:
            why = f"a {call.op_type} takes no input items"
            call.end(failed(call.id, ErrorCode.INVALID_OPERATION_TYPE, why))
            return
        try:
            if isinstance(event, InputItem):
                call.inputs.receive(event.item)
            else:
                call.inputs.end()
        except CallError as exc:
            call.end(Failed.of(call.id, exc))

    def cut_off(self, stream: CallStream) -> None:
        """End the calls on *stream* whose input is not whole: no more will come."""
        for call in stream.serving:
            if call.inputs is not None and not call.inputs.has_ended:
                why = "the stream ended before call.input_end"
                call.end(failed(call.id, ErrorCode.INVALID_INPUT, why))

    def faulted(self, call_id: str, error: CallError) -> None:
        """End the call for a bad message about it; an unknown id is ignored."""
        if call := self.calls.get(call_id):
            call.end(Failed.of(call_id, error))

    def abort_calls(self, predicate: Callable[[InboundCall], bool], reason: str) -> int:
        """End the calls that *predicate* picks, with *reason* told; return how many."""
        chosen = [call for call in self.calls.values() if predicate(call)]
        for call in chosen:
            call.end(Aborted(call.id, reason))
        return len(chosen)

    def give_up(self, close: CloseReason) -> None:
        """Answer for the calls that have not ended in time, as the last word on their streams.

        What has no answer then has not begun, so that its caller may try it elsewhere.
        """
        for call in self.calls.values():
            event: Event = Aborted(call.id, SHUTDOWN)
            if close.code != CloseCode.SHUTDOWN:
                event = failed(call.id, ErrorCode.UNAVAILABLE, f"the connection ends: {close}")
            call.stream.outbox.put(self._frame(event, call.operation))

    # --- admission

    def _check_id(self, stream: CallStream, call_id: str) -> None:
        if stream.is_ours and not stream.is_only:
            raise Violation("a request on a stream that its receiver opened")
        if call_id in self.calls:
            raise Violation("a request id was used again while in flight")

    def _admit(self, stream: CallStream, request: Requested, arrived_at: float) -> InboundCall:
        self._check_room(request)
        session = self._session
        try:
            assert session.dispatcher is not None
            admitted = session.dispatcher.admit(
                request, connection=session.connection, session=session
            )
        except CallError:
            raise
        except Exception as exc:  # noqa: BLE001  # boundary: a bad admission ends its call, no more
            raise error_of(exc, request.operation) from None
        if admitted.used_token:
            session.token_accepted()
        deadline = math.inf
        if admitted.timeout_s is not None:
            deadline = arrived_at + admitted.timeout_s
        if request.timeout_ms is not None:
            deadline = min(deadline, arrived_at + request.timeout_ms / 1000)
        expires_at = session.token_ends_at(admitted.identity) if admitted.used_token else math.inf
        call = InboundCall(request, admitted, stream, deadline=deadline, expires_at=expires_at)
        if request.window is not None and call.op_type not in _HAS_ITEMS:
            why = f"a {call.op_type} has no items: call it"
            raise CallError(ErrorCode.INVALID_OPERATION_TYPE, why)
        if request.idempotency_key is not None and call.op_type in _REMEMBERED:
            call.keyed = self._keyed(request, admitted, request.idempotency_key)
        return call

    def _keyed(self, request: Requested, admitted: AdmittedCall, text: str) -> KeyedCall:
        identity = admitted.identity
        stranger: object
        if self._is_of_session(request):
            stranger = self._stranger
        elif identity.is_anonymous:
            stranger = self._session.connection.peer_key or self._stranger
        else:
            assert self._session.dispatcher is not None
            stranger = self._session.dispatcher.repeated.incarnation(identity.id)
        originator = None if request.forwarded_for is None else request.forwarded_for.id
        key = CallKey(identity.id, stranger, originator, text)
        operation, fingerprint = request.operation, fingerprint_of(request)
        return KeyedCall(key, fingerprint, operation, admitted, self._session.spawn)

    def _is_of_session(self, request: Requested) -> bool:
        layer = self._session.layer
        return layer is not None and not request.peer and request.operation in layer

    def _check_room(self, request: Requested) -> None:
        if self._session.is_others_id(request.id):
            raise CallError(ErrorCode.INVALID_INPUT, "such ids belong to the other side")
        if self._session.dispatcher is None:
            raise CallError(ErrorCode.NOT_FOUND, "nothing is served here")
        if self.is_draining:
            raise CallError(ErrorCode.UNAVAILABLE, "shutting down")
        if len(self.calls) >= self._limits.calls_per_connection:
            raise CallError(ErrorCode.RESOURCE_EXHAUSTED, "too many calls in flight")
        if self._input_bytes + len(request.input) > self._limits.buffered_bytes_per_connection:
            raise CallError(ErrorCode.RESOURCE_EXHAUSTED, "too much input in flight")

    def _open_inputs(self, call: InboundCall) -> None:
        most = self._limits.subscription_window
        call.inputs = InputItems(call.id, call.stream, self._session.budget, most)
        call.stream.inputs.add(call.inputs)
        call.inputs.begin()
        call.admitted.feed(call.inputs)
        if call.keyed is not None:
            call.keyed.inputs = call.inputs

    # --- running

    async def _run(self, call: InboundCall, scope: trio.CancelScope) -> None:
        trio.lowlevel.current_task().name = f"call {call.operation} {call.id}"
        call.enter(scope)
        self._finish(call, await self._outcome(call))

    def _cut(self, call: InboundCall, by_its_scope: bool) -> None:
        # After a cancel from outside nothing is said: the connection is gone, or the session stops.
        self._finish(call, call.verdict if by_its_scope else None)

    def _finish(self, call: InboundCall, event: Event | None) -> None:
        call.leave()
        self._forget(call)
        if event is not None:
            frame = self._frame(event, call.operation)
            call.stream.outbox.put(frame, is_alone=not call.stream.serving)
        call.stream.finish_if_answered()
        self._session.call_ended()

    async def _outcome(self, call: InboundCall) -> Event:
        try:
            if call.op_type in _HAS_ITEMS:
                await self._pump(call)
                return Completed(call.id)
            if call.keyed is None:
                return Responded(call.id, msgspec.Raw(await call.admitted.run()))
            assert self._session.dispatcher is not None
            output = await self._session.dispatcher.repeated.run(call.keyed)
            return Responded(call.id, msgspec.Raw(output))
        except Exception as exc:  # noqa: BLE001  # boundary: a crash ends its call, no more
            return Failed.of(call.id, error_of(exc, call.operation))

    async def _pump(self, call: InboundCall) -> None:
        outbox = call.stream.outbox
        async with call.admitted.stream() as items:
            async for item in items:
                if call.credit is not None:
                    await call.credit.take()
                await outbox.wait_room()
                if outbox.is_broken or outbox.is_finished:
                    # Whoever found out, or closes, ends this call now. To go on would be for
                    # nothing and, if the operation never waits, without end.
                    await trio.sleep_forever()
                # An operation that never waits ends by an abort all the same.
                await trio.lowlevel.checkpoint_if_cancelled()
                event = Responded(call.id, msgspec.Raw(item), more=call.credit is None)
                body = encode_event(event)
                if error := _unsendable(body, self._limits.frame_bytes):
                    raise error
                outbox.put(encode_frame(body))

    def _frame(self, event: Event, operation: str) -> bytes:
        error: CallError | None
        try:
            body = encode_event(event)
            error = _unsendable(body, self._limits.frame_bytes)
        except Exception as exc:  # noqa: BLE001  # boundary: an error with details that are no JSON
            body, error = b"", error_of(exc, operation)
        if error is not None:
            body = encode_event(Failed.of(getattr(event, "id", ""), error))
        return encode_frame(body)

    def _forget(self, call: InboundCall) -> None:
        del self.calls[call.id]
        call.stream.serving.discard(call)
        if call.inputs is not None:
            call.stream.inputs.discard(call.inputs)
            call.inputs.close()
        self._input_bytes -= call.input_bytes


_HAS_ITEMS = frozenset({"subscription", "bidi"})
_TAKES_ITEMS = frozenset({"upload", "bidi"})
# Queries may be run again anyway; of what has items, a retry would have to get them all.
_REMEMBERED = frozenset({"mutation", "upload"})


def _unsendable(body: bytes, limit: int) -> CallError | None:
    # The peer would drop the stream, and with it calls that have done nothing wrong.
    if len(body) > limit:
        why = f"an answer of {len(body)} bytes is over the frame limit of {limit}"
        return CallError(ErrorCode.RESOURCE_EXHAUSTED, why, retryable=False)
    if is_too_deep(body):
        return CallError(ErrorCode.INTERNAL, f"an answer nests deeper than {MAX_DEPTH} levels")
    return None
