"""Which stream a message takes, and what the end of a stream means for the calls on it.

On a carrier with many streams our small requests share one that we opened; a subscription, a large
request or output takes one of its own. On a carrier with one stream all go there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.pending import ended, lost
from alknet.call.proto import (
    Aborted,
    Completed,
    ConnectionClose,
    Credit,
    Event,
    Failed,
    Faulty,
    InputEnd,
    InputItem,
    Requested,
    Responded,
)
from alknet.call.streams import CallStream
from alknet.core.contracts import CloseCode, CloseReason, ConnectionEnded, Stream, StreamReset
from alknet.errors import PeerError, Violation

if TYPE_CHECKING:
    from alknet.call.session import CallSession

__all__ = ["Lanes"]

log = logging.getLogger(__name__)

MAX_FAULTS = 16
"""Streams that a peer may spoil: an honest one spoils none, and each costs a line in the log."""


class Lanes:
    """The streams of one session; their `alknet.call.streams.StreamOwner`.

    Attributes:
        streams: All that live.
    """

    def __init__(self, session: CallSession) -> None:
        self._session = session
        self._connection = session.connection
        self._shared: CallStream | None = None
        self._faults = 0
        self._opening = trio.Lock()
        self._only_is_known = trio.Event()
        self._changed = trio.lowlevel.ParkingLot()
        self.streams: set[CallStream] = set()

    # --- streams come

    async def accept(self) -> None:
        """Take the streams that the peer opens, until the connection ends."""
        try:
            while True:
                self._start(await self._connection.accept_stream(), is_ours=False)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the session's watch over the connection says why

    async def refuse_unidirectional(self) -> None:
        """End the session if the peer opens a stream that cannot carry answers."""
        try:
            await self._connection.accept_uni_stream()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        self._session.end(CloseCode.PROTOCOL, "unidirectional streams carry no calls")

    async def run_only(self) -> None:
        """Run the one stream of a carrier that has no more, until it ends."""
        connection = self._connection
        try:
            if connection.is_dialer:
                raw = await connection.open_stream()
            else:
                raw = await connection.accept_stream()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        self._shared = self._start(raw, is_ours=True)
        self._only_is_known.set()

    def shared_now(self) -> CallStream | None:
        """Return the shared stream if a request can be put there at once, or None."""
        stream = self._shared
        return stream if stream is not None and stream.outbox.has_room else None

    async def for_request(self, *, own: bool) -> CallStream:
        """Return the stream for a request, with room in its outbox.

        Cancelled, nothing happened. What is returned must be used, or given to `done_with`,
        before the next checkpoint.

        Raises:
            CallError: The connection ended (UNAVAILABLE).
        """
        has_many = self._connection.carrier.many_streams
        if own and has_many:
            return self._start(await self._open(), is_ours=True, is_single_use=True)
        stream = None
        while stream is None or stream is not self._shared:
            stream = await (self._shared_stream() if has_many else self._only_stream())
            await stream.outbox.wait_room()
            self._session.check_live()
        return stream

    def done_with(self, stream: CallStream) -> None:
        """Finish *stream* if it was for one call and that is over."""
        if stream.is_single_use and not stream.pending:
            stream.finish_soon()

    def wake(self) -> None:
        """Let those who wait for a stream see that the session is over."""
        self._only_is_known.set()

    # --- farewell

    async def wait_gone(self) -> None:
        """Wait until no stream is left. Cancelled, no effect."""
        while self.streams:
            await self._changed.park()

    async def flush(self) -> None:
        """Wait until all streams have accepted all that was queued. Cancelled, no effect."""
        for stream in list(self.streams):
            await stream.outbox.wait_flushed()

    async def finish_served(self) -> None:
        """Finish our side of the peer's streams and wait until it has finished its own.

        A peer finishes its side once it has seen the end of ours, and so every answer. Cancelled,
        no effect but that our side is finished.
        """
        while served := [stream for stream in self.streams if not stream.is_ours]:
            for stream in served:
                stream.outbox.finish()
            await self._changed.park()

    def send_close(self, reason: CloseReason) -> None:
        """Tell the peer why we close, where the carrier cannot."""
        if self._shared is not None:
            self._shared.send(ConnectionClose(reason.code, reason.reason))
            self._shared.outbox.finish()  # it is the last message
            self._connection.farewell = None  # said once

    # --- what streams report

    @property
    def frame_limit(self) -> int:
        """The longest frame that the peer may send now."""
        return self._session.frame_limit

    def receive(self, stream: CallStream, event: Event, arrived_at: float) -> None:
        """Hand a message to those whom it concerns; others are ignored."""
        session = self._session
        if session.close_reason is not None:
            return
        if type(event) is Requested:
            session.serving.requested(stream, event, arrived_at)
        elif type(event) is Responded:
            session.calling.responded(stream, event)
        elif (handler := _RARE.get(type(event))) is not None:
            handler(self, stream, event)

    def stream_ended(self, stream: CallStream) -> None:
        """The peer finished its side in good order."""
        if stream.is_only:
            self._session.end_by_peer("the peer ended the stream")
        elif stream.is_ours:
            if not stream.is_single_use:
                self._session.is_leaving = True
            self._forget_shared(stream)
            self._session.calling.left_unanswered(stream)
            stream.finish_soon()
        else:
            self._session.serving.cut_off(stream)
            stream.finish_if_answered()

    def stream_reset(self, stream: CallStream, why: StreamReset) -> None:
        """The peer gave up one direction: that aborts the calls."""
        if stream.is_only:
            self._session.end_by_peer(str(why))
        elif stream.is_ours:
            self._forget_shared(stream)
            self._session.calling.fail_on(stream, _refused(why))
            stream.break_off()
        else:
            self._end_served(stream)
            stream.finish_if_answered()

    def stream_faulted(self, stream: CallStream, why: PeerError) -> None:
        """The peer broke the protocol: its stream is lost, or the connection."""
        fields = {"peer": self._connection.remote_address, "fault": str(why)}
        log.warning("call.protocol_fault", extra=fields)
        self._faults += 1
        if stream.is_only or isinstance(why, Violation) or self._faults > MAX_FAULTS:
            self._session.end(CloseCode.PROTOCOL, str(why))
        elif stream.is_ours:
            self._forget_shared(stream)
            error = CallError(ErrorCode.INTERNAL, f"the peer sent a bad answer: {why}")
            self._session.calling.fail_on(stream, error)

    def stream_gone(self, stream: CallStream) -> None:
        """Nothing more will come or go on *stream*."""
        self.streams.discard(stream)
        self._forget_shared(stream)
        self._session.calling.fail_on(stream, self._lost_with(stream))
        self._end_served(stream)
        self._changed.unpark_all()
        if stream.is_only:
            self._session.end_by_peer("the link was lost")

    # --- the rarer messages

    def _aborted(self, stream: CallStream, event: Aborted) -> None:
        if self._is_awaited(stream, event.id):
            self._session.calling.aborted(stream, event)
        else:
            self._session.serving.aborted(event.id)

    def _faulty(self, stream: CallStream, event: Faulty) -> None:
        session = self._session
        if event.type == "call.requested":
            session.serving.faulty_request(stream, event.id, event.error)
        elif event.type in _ANSWERS or self._is_awaited(stream, event.id):
            why = f"the peer sent a bad answer: {event.error.message}"
            session.calling.faulted(stream, event.id, CallError(ErrorCode.INTERNAL, why))
        elif event.type == "connection.close":
            session.end_by_peer("the peer closed, for a reason that cannot be read")
        else:
            session.serving.faulted(event.id, event.error)

    def _closed(self, stream: CallStream, event: ConnectionClose) -> None:
        if event.code == CloseCode.SHUTDOWN:
            self._session.calling.left_unanswered(stream)
        self._session.end_by_peer(event.reason, event.code)

    def _credited(self, _stream: CallStream, event: Credit) -> None:
        if not self._session.calling.credited(event):
            self._session.serving.credited(event)

    def _input_came(self, stream: CallStream, event: InputItem | InputEnd) -> None:
        self._session.serving.input_came(stream, event)

    def _completed(self, stream: CallStream, event: Completed) -> None:
        self._session.calling.completed(stream, event)

    def _failed(self, stream: CallStream, event: Failed) -> None:
        self._session.calling.failed(stream, event)

    # --- helpers

    def _is_awaited(self, stream: CallStream, call_id: str) -> bool:
        """Whether it is the id of a call of ours whose answer is to come on *stream*."""
        pending = self._session.calling.pending.get(call_id)
        return pending is not None and pending.stream is stream

    def _start(self, raw: Stream, *, is_ours: bool, is_single_use: bool = False) -> CallStream:
        session = self._session
        stream = CallStream(
            raw,
            session.limits,
            session.budget,
            is_ours=is_ours,
            is_only=not self._connection.carrier.many_streams,
            is_single_use=is_single_use,
        )
        self.streams.add(stream)
        self._changed.unpark_all()
        session.spawn(stream.run, self, name=f"call stream {raw.stream_id}")
        return stream

    async def _open(self) -> Stream:
        try:
            stream = await self._connection.open_stream()
        except ConnectionEnded as exc:
            raise ended(exc.close) from exc
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise lost(str(exc)) from exc
        if self._session.close_reason is not None:
            stream.reset(CloseCode.OK)
            self._session.check_live()
        return stream

    async def _shared_stream(self) -> CallStream:
        if self._shared is not None:
            # No lock: it would hand itself on once a tick, and calls made in one tick should
            # leave in one packet.
            return self._shared
        async with self._opening:
            if self._shared is None:
                self._shared = self._start(await self._open(), is_ours=True)
            return self._shared

    async def _only_stream(self) -> CallStream:
        await self._only_is_known.wait()
        self._session.check_live()
        assert self._shared is not None
        return self._shared

    def _lost_with(self, stream: CallStream) -> CallError:
        reason = None if stream.is_only else self._connection.close_reason
        if reason is None:
            return lost("the stream ended without an answer")
        return ended(reason)

    def _forget_shared(self, stream: CallStream) -> None:
        if self._shared is stream:
            self._shared = None

    def _end_served(self, stream: CallStream) -> None:
        for call in list(stream.serving):
            self._session.serving.aborted(call.id)


_RARE: Mapping[type, Callable[[Lanes, CallStream, Any], None]] = {
    Credit: Lanes._credited,  # noqa: SLF001  the table is a part of the class
    InputItem: Lanes._input_came,  # noqa: SLF001
    InputEnd: Lanes._input_came,  # noqa: SLF001
    Completed: Lanes._completed,  # noqa: SLF001
    Failed: Lanes._failed,  # noqa: SLF001
    Aborted: Lanes._aborted,  # noqa: SLF001
    Faulty: Lanes._faulty,  # noqa: SLF001
    ConnectionClose: Lanes._closed,  # noqa: SLF001
}
_ANSWERS = frozenset({"call.responded", "call.completed", "call.error"})


def _refused(why: StreamReset) -> CallError:
    if why.code == CloseCode.PROTOCOL:
        return CallError(ErrorCode.INTERNAL, "the peer refused the request as bad or too long")
    return lost(str(why))
