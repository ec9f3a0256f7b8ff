"""One stream of a session: a reader, a writer, and how both end.

Life of a stream that we opened: requests go out, answers come in; a stream of one call is finished
by us when the call is over, the shared one lives as long as the connection. Of one that the peer
opened: the other way round, and once the peer has finished its side and all its requests are
answered, we finish ours. The single stream of a carrier without streams is both, and ends only with
the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import trio

from alknet.call.outbox import Budget, Outbox
from alknet.call.pending import Pending, PendingItems
from alknet.call.proto import (
    Event,
    FrameDecoder,
    decode_envelope_untrusted,
    encode_event,
    encode_frame,
)
from alknet.core.contracts import CloseCode, Stream, StreamReset
from alknet.core.limits import Limits
from alknet.errors import Malformed, PeerError

if TYPE_CHECKING:
    from alknet.call.inbound import InboundCall
    from alknet.call.inputs import InputItems

__all__ = ["LINGER_S", "CallStream", "StreamOwner"]

LINGER_S = 5.0
"""How long the other side may take to finish a stream that we have finished with."""

READ_BYTES = 64 * 1024
"""What is taken at a time: it bounds the work between two checkpoints of a reader."""


class StreamOwner(Protocol):
    """What a stream reports to; none of it waits."""

    @property
    def frame_limit(self) -> int:
        """The longest frame that the peer may send now."""
        ...

    def receive(self, stream: CallStream, event: Event, arrived_at: float) -> None:
        """Take a message. Raises `alknet.errors.Violation` if it may not come now."""
        ...

    def stream_ended(self, stream: CallStream) -> None:
        """The peer finished its side in good order."""
        ...

    def stream_reset(self, stream: CallStream, why: StreamReset) -> None:
        """The peer gave up its sending side."""
        ...

    def stream_faulted(self, stream: CallStream, why: PeerError) -> None:
        """The peer sent what it must not."""
        ...

    def stream_gone(self, stream: CallStream) -> None:
        """Nothing more will come or go; called once, last."""
        ...


class CallStream:
    """A stream with its calls.

    Attributes:
        stream: What carries it.
        is_ours: We opened it, so requests on it are ours; on the only stream both sides send them.
        is_only: The carrier has no other.
        is_single_use: Opened for one call.
        outbox: What is to be sent.
        serving: The peer's requests on it that run.
        inputs: What waits for those of them that take input items.
        pending: Our requests on it, by id.
        has_ended: The peer finished its side.
    """

    def __init__(
        self,
        stream: Stream,
        limits: Limits,
        budget: Budget,
        *,
        is_ours: bool,
        is_only: bool = False,
        is_single_use: bool = False,
    ) -> None:
        self.stream = stream
        self.is_ours = is_ours
        self.is_only = is_only
        self.is_single_use = is_single_use
        # All streams together fill half of the budget with what waits to be sent, and a quarter
        # with what waits to be taken: then each waits by itself, and the connection goes on.
        share = budget.cap // (4 * limits.streams_per_connection)
        self.outbox = Outbox(stream, budget, min(limits.stream_send_buffer_bytes, 2 * share))
        if not is_ours:
            self.outbox.notice_stop()
        self.serving: set[InboundCall] = set()
        self.inputs: set[InputItems] = set()
        self.pending: dict[str, Pending] = {}
        self.has_ended = False
        self._decoder = FrameDecoder(limits.frame_bytes_unproven)
        self._frame_bytes = limits.frame_bytes
        self._budget = budget
        self._counted = 0
        self._code = CloseCode.OK
        self._most_items = limits.subscription_window
        self._most_bytes = min(limits.stream_receive_window_bytes, share)
        self._scope = trio.CancelScope()

    def send(self, event: Event) -> None:
        """Queue *event*; never waits."""
        self.outbox.put(encode_frame(encode_event(event)))

    def finish_soon(self) -> None:
        """Finish our side once all is sent, and give the peer `LINGER_S` to finish its own."""
        self.outbox.finish()
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + LINGER_S)

    def finish_if_answered(self) -> None:
        """Finish our side of a peer's stream if nothing more can be asked and all is answered."""
        if self.has_ended and not self.serving:
            self.outbox.finish()

    def break_off(self) -> None:
        """Drop the stream: both directions, unsent bytes included."""
        self._scope.cancel()

    async def run(self, owner: StreamOwner) -> None:
        """Read and write until both sides are finished. Cancelled, the stream is reset."""
        is_clean = False
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, owner, name="call writer")
                    await self._read(owner)
                is_clean = True
        finally:
            self._count(0)
            self.outbox.discard()
            owner.stream_gone(self)
            await self._close(is_clean=is_clean)

    async def _read(self, owner: StreamOwner) -> None:
        if not self.is_single_use:
            self.stream.offer(self._taker(owner))
        try:
            while data := await self.stream.receive_some(READ_BYTES):
                self._receive(data, owner)
                await self._wait_space()
            if self._decoder.buffered_bytes:
                raise Malformed("the stream ended amid a frame")
            self.has_ended = True
            owner.stream_ended(self)
        except PeerError as exc:
            self._code = CloseCode.PROTOCOL
            owner.stream_faulted(self, exc)
            if not self.is_only:  # there the session still has to say why it closes
                self.break_off()
        except StreamReset as exc:
            self.has_ended = True
            owner.stream_reset(self, exc)
        except trio.BrokenResourceError:
            self.break_off()
        except trio.ClosedResourceError:
            # On the only stream, what is being sent may still go before the words of the close.
            if not self.is_only:
                self.break_off()
        finally:
            self.stream.offer(None)

    def _taker(self, owner: StreamOwner) -> Callable[[bytes], bool]:
        # What is started there has the context of this task, as if it had been woken.
        context = trio.lowlevel.current_task().context

        def take(data: bytes) -> bool:
            return context.run(self._take, owner, data)

        return take

    def _take(self, owner: StreamOwner, data: bytes) -> bool:
        """Handle *data* where it arrives, unless it is for the reader to wait (`_wait_space`).

        Nor beside other calls: their frames are joined a tick later, and this would run ahead.
        """
        if self.inputs or self.serving or len(self.pending) > 1:
            return False
        self._receive(data, owner)
        return True

    def _receive(self, data: bytes | bytearray, owner: StreamOwner) -> None:
        arrived_at = trio.current_time()
        decoder = self._decoder
        decoder.limit = owner.frame_limit
        is_limit_final = decoder.limit == self._frame_bytes
        decoder.receive_data_untrusted(data)
        while (message := decoder.next_frame()) is not None:
            owner.receive(self, decode_envelope_untrusted(message), arrived_at)
            if not is_limit_final:  # the message may have brought a good token
                decoder.limit = owner.frame_limit
        self._count(decoder.buffered_bytes)

    async def _wait_space(self) -> None:
        # On a stream of its own, a subscription that is not read stops the stream: flow control
        # does the rest. On others its window bounds the queue, and the reader goes on. Input that
        # is not taken stops its stream too, unless that is the only one: there it needs credit.
        if self.inputs and not self.is_only:
            for inputs in list(self.inputs):
                await inputs.queue.wait_space(self._most_items, self._most_bytes)
        if not self.is_single_use:
            return
        for pending in list(self.pending.values()):
            if isinstance(pending, PendingItems):
                await pending.wait_space(self._most_items, self._most_bytes)

    async def _write(self, owner: StreamOwner) -> None:
        try:
            await self.outbox.run()
        except StreamReset as exc:
            owner.stream_reset(self, exc)
            self.break_off()

    def _count(self, buffered: int) -> None:
        if buffered != self._counted:
            self._budget.add(buffered - self._counted)
            self._counted = buffered

    async def _close(self, *, is_clean: bool) -> None:
        if self.is_only:
            return  # it ends with the connection, which alone can say goodbye in good order
        if not is_clean:
            self.stream.reset(self._code)
            self.stream.stop_sending(self._code)
        with trio.CancelScope(shield=True):
            await self.stream.aclose()
