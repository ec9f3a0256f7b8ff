"""The one stream of a `StreamConnection`, and the life that both share."""

from __future__ import annotations

import contextlib
import math
import os
import select
from collections.abc import Callable, Iterator

import trio

from alknet.core.budget import UNMETERED, Account
from alknet.core.conflict import ConflictDetector
from alknet.core.contracts import CloseReason, ConnectionEnded, Stream
from alknet.core.quic.wakeups import Alarm
from alknet.core.tcp.failures import TlsBroken
from alknet.core.tcp.tls import FLOOR_BYTES, TlsStream

__all__ = ["ConnectionLife", "OnlyStream"]

# What a receiver gets at once, if it does not say.
RECEIVE_BYTES = 65_536
# What is read while nobody receives, which is to notice the end: a record, for each connection
# may have it lying about.
READ_AHEAD_BYTES = FLOOR_BYTES
# A receiver that comes again within this time has not left: between two pieces the watcher is not
# woken, which would cost more than to read one.
UNATTENDED_S = 0.05
# A plain socket cannot be waited on for "closed both ways" once the peer has half closed it.
HANG_UP_POLL_S = 0.25
# Pieces that are read from a Unix socket before it closes; unread bytes would turn into a reset.
LAST_READS = 64


class ConnectionLife:
    """Whether the connection lives, and what waits for its end."""

    def __init__(self) -> None:
        self.reason: CloseReason | None = None
        self.is_closed_here = False
        self.is_torn = False
        self._scopes: set[trio.CancelScope] = set()
        self._sends: set[trio.CancelScope] = set()
        self._spared: set[trio.CancelScope] = set()
        self._sent = trio.lowlevel.ParkingLot()

    def end(
        self,
        reason: CloseReason,
        *,
        by_close: bool = False,
        is_torn: bool = False,
        spares_sends: bool = False,
    ) -> None:
        """Wake everything in `until_end`; only the first reason counts.

        Args:
            spares_sends: What is being sent may go on until `end_sends`, so that words can follow.
        """
        if self.reason is not None:
            return
        self.reason = reason
        self.is_closed_here = by_close
        self.is_torn = is_torn
        scopes = self._scopes | self._sends
        for scope in scopes if spares_sends else scopes | self._spared:
            scope.cancel()

    async def wait_sent(self) -> None:
        """Wait until no task is on the sending side. Cancelled, nothing happens."""
        while self._sends or self._spared:
            await self._sent.park()

    def end_sends(self) -> None:
        """Wake what `end` has spared."""
        for scope in self._spared:
            scope.cancel()

    def error(self) -> trio.ClosedResourceError | ConnectionEnded:
        """Return what operations on an ended connection raise."""
        assert self.reason is not None
        if self.is_closed_here:
            return trio.ClosedResourceError("the connection was closed here")
        return ConnectionEnded(self.reason)

    @contextlib.contextmanager
    def until_end(self, *, is_send: bool = False, is_spared: bool = False) -> Iterator[None]:
        """Run the block until the connection ends, then cancel it.

        Args:
            is_send: It holds the sending side, see `wait_sent`.
            is_spared: It does, and is among what `end` may spare.
        """
        scopes = self._spared if is_spared else self._sends if is_send else self._scopes
        with trio.CancelScope() as scope:
            if self.reason is not None:
                scope.cancel()
            scopes.add(scope)
            try:
                yield
            finally:
                scopes.discard(scope)
                if is_send or is_spared:
                    self._sent.unpark_all()


class OnlyStream(Stream):
    """A `Stream` on *transport* that ends the connection when it is closed, reset or broken.

    Attributes:
        account: Charged for what was read ahead, and for what the TLS below holds.
    """

    def __init__(self, transport: trio.abc.HalfCloseableStream, life: ConnectionLife) -> None:
        self._transport = transport
        self._life = life
        self.account = transport.account if isinstance(transport, TlsStream) else Account(UNMETERED)
        self._send_conflict = ConflictDetector("another task is sending on this stream")
        self._receive_conflict = ConflictDetector("another task is receiving on this stream")
        self._reading = trio.Lock()
        self._ahead = memoryview(b"")
        self._charged_ahead = 0
        self._consumed = trio.Event()
        # Whose end a receiver notices needs no watcher: for ever while it waits, a moment longer.
        self._attended_until = -math.inf
        self._watching: trio.CancelScope | None = None
        self._alarm = Alarm()
        self._has_eof = False
        self._has_sent_eof = False
        self._is_amid_data = False
        self._has_rest = False  # of what was sent without waiting
        self._drops_input = False
        self._is_reset = False
        self._is_closed = False

    @property
    def stream_id(self) -> int:
        """0: there is but one."""
        return 0

    @property
    def is_readable(self) -> bool:
        """It lives, or has unread bytes of a peer that has gone."""
        return self._life.reason is None or (bool(self._ahead) and not self._life.is_closed_here)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send; see `Stream`. A cancel may have sent a part."""
        with self._send_conflict:
            self._check_can_send()
            with self._life.until_end(is_spared=True):
                self._is_amid_data = True  # and it stays so, if not all of it leaves
                try:
                    await self._transport.send_all(data)
                except trio.BrokenResourceError as exc:
                    self._fail(exc)
                else:
                    self._is_amid_data = False
                    return
        raise self._error()

    def send_now(self, data: bytes) -> bool:
        """Send all of *data* or nothing, see `Stream`; what the socket does not take waits here."""
        transport = self._transport
        if not isinstance(transport, TlsStream):
            return False
        with self._send_conflict:
            if self._is_closed or self._is_reset or self._life.reason is not None:
                return False
            is_sent = transport.send_now(data)
        if is_sent and transport.has_unsent:
            self._has_rest = True
            self._wake_watcher()
        return is_sent

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport takes bytes. Cancelled, nothing happens."""
        with self._send_conflict:
            self._check_can_send()
            with self._life.until_end(is_send=True):
                return await self._transport.wait_send_all_might_not_block()
        raise self._error()

    async def send_eof(self) -> None:
        """Finish sending and go on receiving. Idempotent; cancelled, the close still finishes."""
        with self._send_conflict:
            if self._has_sent_eof and not self._is_closed:
                return await trio.lowlevel.checkpoint()
            self._check_can_send()
            with self._life.until_end(is_send=True):
                try:
                    await self._transport.send_eof()
                except trio.BrokenResourceError as exc:
                    self._fail(exc)
                else:
                    self._has_sent_eof = True
                    return None
        raise self._error()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes; ``b""`` at the end, as often as asked. Cancelled, takes none."""
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be >= 1")
        size = max_bytes or RECEIVE_BYTES
        with self._receive_conflict:
            if self._ahead or self._has_eof:
                await trio.lowlevel.checkpoint()
            else:  # to read is a checkpoint
                await trio.lowlevel.checkpoint_if_cancelled()
            while True:
                self._check_can_receive()
                if self._ahead:
                    return self._take(size)
                if self._has_eof:
                    return b""
                if self._life.reason is not None:
                    raise self._error()
                await self._attend(size)

    def reset(self, code: int) -> None:
        """End the connection; the peer sees a broken stream (TLS) or an end (Unix socket)."""
        if not self._has_sent_eof:
            reason = CloseReason(code, "the stream was reset", by_peer=False)
            self._life.end(reason, is_torn=True)
            self._is_reset = True

    def stop_sending(self, code: int) -> None:
        """Drop what was and will be received. The peer is not told: this carrier cannot."""
        self._drops_input = True
        self._ahead = memoryview(b"")
        self._charge_ahead()
        self._consumed.set()

    async def aclose(self) -> None:
        """End the connection, with code 0."""
        self._is_closed = True
        self._life.end(CloseReason(0, "", by_peer=False))
        await trio.lowlevel.checkpoint()

    # For the connection's driver

    async def watch(self) -> None:
        """Read ahead one piece while nobody receives, until the connection ends.

        Whoever receives notices the end itself. Cancelled, nothing is lost.
        """
        while self._life.reason is None:
            if self._has_eof:
                await self._wait_peer_gone()
                self._life.end(CloseReason(0, "", by_peer=True))
                return
            if self._has_rest:
                await self._send_rest()
            elif trio.current_time() < self._attended_until:
                await self._alarm.sleep_until(self._attended_until)
            elif self._ahead:
                self._consumed = trio.Event()
                await self._consumed.wait()
            else:
                with trio.CancelScope() as self._watching:
                    await self._read(READ_AHEAD_BYTES)
                    self._charge_ahead()
                self._watching = None

    async def say_goodbye(self, farewell: Callable[[CloseReason], bytes] | None) -> None:
        """Tell the peer, if this is an orderly end. Cancelled, it can be called again.

        Args:
            farewell: Makes the last bytes, sent if we close and not with 0.
        """
        reason = self._life.reason
        assert reason is not None
        if self._life.is_torn or reason.is_transport:
            return
        # Who was cancelled on the sending side has not left it before its next turn.
        await self._life.wait_sent()
        if farewell is not None and self._life.is_closed_here and reason.code:
            await self._send_last(farewell(reason))
        if isinstance(self._transport, TlsStream):
            await self._transport.say_goodbye()
        elif isinstance(self._transport, trio.SocketStream):
            _read_what_is_there(self._transport)

    async def _send_last(self, data: bytes) -> None:
        if self._is_amid_data or self._has_sent_eof or self._is_closed:
            return
        self._is_amid_data = True  # once, also if it is cancelled
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._transport.send_all(data)

    async def abort(self) -> None:
        """Close the transport at once. Idempotent."""
        if isinstance(self._transport, TlsStream):
            await self._transport.abort()
        else:
            await trio.aclose_forcefully(self._transport)
        self.account.move_to(UNMETERED)  # whoever still reads what has come, reads the last of it

    # Helpers

    async def _attend(self, size: int) -> None:
        """Read for a receiver; the watcher looks on only once nobody has come for a while."""
        if self._watching is not None:
            self._watching.cancel()
        self._attend_until(math.inf)
        try:
            with self._life.until_end():
                await self._read(size)
        finally:
            is_over = self._has_eof or self._life.reason is not None
            self._attend_until(trio.current_time() + (0 if is_over else UNATTENDED_S))

    def _attend_until(self, when: float) -> None:
        self._attended_until = when
        self._alarm.move(when)

    def _wake_watcher(self) -> None:
        self._alarm.move(trio.current_time())
        self._consumed.set()
        if self._watching is not None:
            self._watching.cancel()

    async def _send_rest(self) -> None:
        assert isinstance(self._transport, TlsStream)
        try:
            await self._transport.flush()
            self._has_rest = False
        except trio.BrokenResourceError as exc:
            self._fail(exc)

    async def _read(self, size: int) -> None:
        # The watcher and a receiver take turns: whoever holds the lock reads for both.
        try:
            self._reading.acquire_nowait()
        except trio.WouldBlock:
            await self._reading.acquire()
        try:
            await self._read_alone(size)
        finally:
            self._reading.release()

    async def _read_alone(self, size: int) -> None:
        if self._ahead or self._has_eof or self._life.reason is not None:
            return
        if self.account.is_tight:
            size = min(size, FLOOR_BYTES)
        try:
            data = await self._transport.receive_some(size)
        except trio.BrokenResourceError as exc:
            self._fail(exc)
            return
        if not data:
            self._has_eof = True
        elif not self._drops_input:
            self._ahead = memoryview(data)

    def _take(self, size: int) -> bytes:
        data = bytes(self._ahead[:size])
        self._ahead = self._ahead[size:]
        self._charge_ahead()
        if not self._ahead:
            self._consumed.set()
        return data

    def _charge_ahead(self) -> None:
        """Charge what stays: what a receiver takes at once never was here."""
        if len(self._ahead) != self._charged_ahead:
            self.account.add_unread(len(self._ahead) - self._charged_ahead)
            self._charged_ahead = len(self._ahead)

    def _check_can_send(self) -> None:
        if self._is_closed or self._is_reset or self._has_sent_eof:
            raise trio.ClosedResourceError("the sending side of the stream is closed")
        if self._life.reason is not None:
            raise self._life.error()

    def _check_can_receive(self) -> None:
        if self._is_closed or self._drops_input:
            raise trio.ClosedResourceError("the receiving side of the stream is closed")
        if self._life.reason is not None and self._life.is_closed_here:
            raise self._life.error()

    def _error(self) -> trio.ClosedResourceError | ConnectionEnded:
        if self._is_closed:
            return trio.ClosedResourceError("the stream is closed")
        return self._life.error()

    def _fail(self, exc: trio.BrokenResourceError) -> None:
        if self._has_eof:
            # It had said goodbye; that our bytes found nobody is no fault of the link.
            self._life.end(CloseReason(0, "", by_peer=True))
        elif isinstance(exc, TlsBroken):
            self._life.end(CloseReason(exc.alert or 0, str(exc), exc.by_peer, is_transport=True))
        else:
            self._life.end(
                CloseReason(0, f"the link broke: {exc.__cause__ or exc}", True, is_transport=True)
            )

    async def _wait_peer_gone(self) -> None:
        try:
            if isinstance(self._transport, TlsStream):
                await self._transport.wait_transport_ended()
            elif isinstance(self._transport, trio.SocketStream):
                await _wait_hung_up(self._transport)
            else:
                await trio.sleep_forever()
        except trio.BrokenResourceError as exc:
            self._fail(exc)


async def _wait_hung_up(stream: trio.SocketStream) -> None:
    poll = select.poll()
    poll.register(stream.socket.fileno(), 0)
    while not any(flags & (select.POLLHUP | select.POLLERR) for _, flags in poll.poll(0)):  # noqa: ASYNC110  nothing to wait on
        await trio.sleep(HANG_UP_POLL_S)


def _read_what_is_there(stream: trio.SocketStream) -> None:
    with contextlib.suppress(OSError):
        for _ in range(LAST_READS):
            if not os.read(stream.socket.fileno(), RECEIVE_BYTES):
                return
