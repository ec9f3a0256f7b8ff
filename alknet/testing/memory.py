"""Connections without a network: two ends in one process, with everything that QUIC has.

Many streams both ways, unidirectional ones, datagrams, resets, flow-control windows, stream limits
and close codes, but no packets, no loss and no delay: what one side does, the other sees at once.
Nothing runs in the background, so there is no nursery, and a test that blocks is really stuck.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

from alknet.core.contracts import (
    CARRIER_MEMORY,
    MAX_REASON_BYTES,
    CloseReason,
    Connection,
    ConnectionEnded,
    Stream,
    cut_utf8,
)
from alknet.core.identity import NodeId
from alknet.core.limits import Limits
from alknet.errors import LocalError
from alknet.testing._pipe import Pipe

__all__ = ["MAX_DATAGRAM_SIZE", "MemoryConnection", "MemoryStream", "memory_connection_pair"]

T = TypeVar("T")

# What a QUIC path of 1,280-byte packets leaves: tests meet the limit that real paths have.
MAX_DATAGRAM_SIZE = 1_200


@asynccontextmanager
async def memory_connection_pair(
    *,
    alpn: str = "test/1",
    dialer_key: NodeId | None = None,
    acceptor_key: NodeId | None = None,
    limits: Limits | None = None,
    server_name: str | None = None,
) -> AsyncGenerator[tuple[MemoryConnection, MemoryConnection]]:
    """Connect two ends; leaving the block closes what is still open.

    Args:
        alpn: What both ends say was agreed.
        dialer_key: The dialler's proven key, which the acceptor sees as `Connection.peer_key`.
        acceptor_key: The acceptor's proven key, which the dialler sees.
        limits: Windows, stream limit and datagram queue of both ends.
        server_name: The SNI that the acceptor sees.

    Yields:
        ``(dialer, acceptor)``.
    """
    limits = limits or Limits()
    dialer = MemoryConnection(alpn=alpn, is_dialer=True, peer_key=acceptor_key, limits=limits)
    acceptor = MemoryConnection(alpn=alpn, is_dialer=False, peer_key=dialer_key, limits=limits)
    dialer.server_name = acceptor.server_name = server_name
    dialer.join(acceptor)
    try:
        yield dialer, acceptor
    finally:
        dialer.close()
        acceptor.close()


class MemoryConnection(Connection):
    """One end of a connection in memory. Made in pairs by `memory_connection_pair`."""

    _peer: MemoryConnection

    def __init__(
        self, *, alpn: str, is_dialer: bool, peer_key: NodeId | None, limits: Limits
    ) -> None:
        mine, theirs = ("dialer", "acceptor") if is_dialer else ("acceptor", "dialer")
        super().__init__(
            alpn=alpn,
            carrier=CARRIER_MEMORY,
            is_dialer=is_dialer,
            peer_key=peer_key,
            remote_address=f"memory:{theirs}",
            local_address=f"memory:{mine}",
        )
        self.limits = limits
        # Unread bytes of all streams towards this end, and the senders that wait for room there.
        self.unread_bytes = 0
        self.room = trio.lowlevel.ParkingLot()
        self._streams: set[MemoryStream] = set()
        self._arrivals = {False: _Arrivals[MemoryStream](), True: _Arrivals[MemoryStream]()}
        self._datagrams = _Arrivals[bytes](limits.datagrams_queued)
        self._opened = {False: 0, True: 0}
        self._open_now = {False: 0, True: 0}
        self._slot_freed = trio.lowlevel.ParkingLot()
        self._closed = trio.Event()
        self._close_reason: CloseReason | None = None

    def join(self, peer: MemoryConnection) -> None:
        """Make *peer* the other end; both directions, once, before anything else is done."""
        self._peer, peer._peer = peer, self

    async def accept_stream(self) -> MemoryStream:
        return await self._accept(unidirectional=False)

    async def accept_uni_stream(self) -> MemoryStream:
        return await self._accept(unidirectional=True)

    async def open_stream(self, *, unidirectional: bool = False) -> MemoryStream:
        await trio.lowlevel.checkpoint()
        limit = self._peer.limits.streams_per_connection
        while self.check_open() and self._open_now[unidirectional] >= limit:
            await self._slot_freed.park()
        self._open_now[unidirectional] += 1
        number = self._opened[unidirectional]
        self._opened[unidirectional] += 1
        # RFC 9000 sec. 2.1: bit 0 says who opened it, bit 1 whether it has one direction only.
        stream_id = number * 4 + unidirectional * 2 + (not self.is_dialer)
        return _Link(self, self._peer, stream_id, unidirectional=unidirectional).opened

    @property
    def max_datagram_size(self) -> int:
        return MAX_DATAGRAM_SIZE

    def send_datagram(self, data: bytes) -> None:
        self.check_open()
        if len(data) > MAX_DATAGRAM_SIZE:
            raise LocalError(f"datagram of {len(data)} bytes is longer than {MAX_DATAGRAM_SIZE}")
        self._peer._datagrams.put(bytes(data))  # noqa: SLF001

    async def receive_datagram(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while self.check_open() and not self._datagrams.items:
            await self._datagrams.lot.park()
        return self._datagrams.items.popleft()

    def close(self, code: int = 0, reason: str = "") -> None:
        if self._close_reason is not None:
            return
        reason = cut_utf8(reason, MAX_REASON_BYTES)
        self._end(CloseReason(code, reason, by_peer=False))
        self._peer._end(CloseReason(code, reason, by_peer=True))  # noqa: SLF001

    def lose(self, reason: str = "connection lost") -> None:
        """End both sides as a dead network does: neither closed, both see a transport error."""
        for end in (self, self._peer):
            end._end(CloseReason(0, reason, by_peer=False, is_transport=True))  # noqa: SLF001

    async def wait_closed(self) -> CloseReason:
        await self._closed.wait()
        assert self._close_reason is not None
        return self._close_reason

    @property
    def close_reason(self) -> CloseReason | None:
        return self._close_reason

    @property
    def open_streams(self) -> int:
        """Streams that this end opened and that are not yet done in both directions."""
        return sum(self._open_now.values())

    @property
    def is_closed_by_us(self) -> bool:
        """`close` was called here before anything else ended the connection."""
        reason = self._close_reason
        return reason is not None and not reason.by_peer and not reason.is_transport

    def check_open(self) -> bool:
        """Raise what a call on an ended connection raises; True otherwise."""
        if self._close_reason is None:
            return True
        if self.is_closed_by_us:
            raise trio.ClosedResourceError("this connection was closed")
        raise ConnectionEnded(self._close_reason)

    async def _accept(self, *, unidirectional: bool) -> MemoryStream:
        arrivals = self._arrivals[unidirectional]
        await trio.lowlevel.checkpoint()
        while self.check_open() and not arrivals.items:
            await arrivals.lot.park()
        stream = arrivals.items.popleft()
        stream.link.accept()
        return stream

    def _end(self, reason: CloseReason) -> None:
        if self._close_reason is not None:
            return
        self._close_reason = reason
        self._closed.set()
        for arrivals in self._arrivals.values():
            arrivals.lot.unpark_all()
        self._datagrams.lot.unpark_all()
        self._slot_freed.unpark_all()
        self.room.unpark_all()
        self._peer.room.unpark_all()
        for stream in self._streams:
            stream.wake_reader()

    # The three steps of a stream's life that concern its connection; called by `_Link`.

    def stream_made(self, stream: MemoryStream) -> None:
        """Note a stream of this end."""
        self._streams.add(stream)

    def stream_arrived(self, stream: MemoryStream, *, unidirectional: bool) -> None:
        """Offer a stream of the peer, which has sent something on it, to `accept_stream`."""
        if self._close_reason is None:
            self._arrivals[unidirectional].put(stream)

    def stream_done(self, stream: MemoryStream, *, unidirectional: bool, was_opened: bool) -> None:
        """Forget a stream that is over; one that this end opened makes room for another."""
        self._streams.discard(stream)
        if was_opened:
            self._open_now[unidirectional] -= 1
            self._slot_freed.unpark()


class MemoryStream(Stream):
    """One end of a stream in memory; *outgoing* or *incoming* is None on a unidirectional one."""

    def __init__(
        self,
        connection: MemoryConnection,
        link: _Link,
        *,
        outgoing: Pipe | None,
        incoming: Pipe | None,
    ) -> None:
        self.link = link
        self._connection = connection
        self._outgoing = outgoing
        self._incoming = incoming

    def __repr__(self) -> str:
        return f"<MemoryStream {self.stream_id} of {self._connection!r}>"

    @property
    def stream_id(self) -> int:
        return self.link.stream_id

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        await self._sender().write(data, self._connection.check_open, self.link.announce)

    def send_now(self, data: bytes) -> bool:
        is_open = self._outgoing is not None and self._connection.close_reason is None
        if self._outgoing is None or not is_open or not self._outgoing.write_now(data):
            return False
        self.link.announce()
        return True

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        await self._sender().wait_room(self._connection.check_open)

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._sender().finish(self._connection.check_open)
        self.link.announce()
        self.link.settle()

    def notify_stopped(self, callback: Callable[[], object] | None) -> None:
        if self._outgoing is not None:
            self._outgoing.notify_stopped(callback)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._incoming is None or self._incoming.has_news:
            await trio.lowlevel.checkpoint()
        else:  # to park is a checkpoint
            await trio.lowlevel.checkpoint_if_cancelled()
        if self._incoming is None:
            raise trio.ClosedResourceError("this stream can only be written")
        # What came before the peer closed can still be read; after our own close nothing can.
        if self._connection.is_closed_by_us:
            self._connection.check_open()
        data = await self._incoming.read(max_bytes, self._connection.check_open)
        self.link.settle()
        return data

    def reset(self, code: int) -> None:
        if self._outgoing is not None and self._connection.close_reason is None:
            self._outgoing.reset(code)
            self.link.announce()
            self.link.settle()

    def stop_sending(self, code: int) -> None:
        if self._incoming is not None and self._connection.close_reason is None:
            self._incoming.stop(code)
            self.link.announce()
            self.link.settle()

    async def aclose(self) -> None:
        if self._outgoing is not None:
            self._outgoing.close_writer()
        if self._incoming is not None:
            self._incoming.stop(0)
        self.link.announce()
        self.link.settle()
        await trio.lowlevel.checkpoint()

    def wake_reader(self) -> None:
        """Let a blocked `receive_some` look again, for the connection ended."""
        if self._incoming is not None:
            self._incoming.wake_reader()

    def _sender(self) -> Pipe:
        if self._outgoing is None:
            raise trio.ClosedResourceError("this stream can only be read")
        return self._outgoing


class _Link:
    """What both ends of one stream share: its pipes, and how far its life has come.

    The opener's slot is free again when both directions are done *and* the other side has accepted
    the stream: a peer that opens and resets cannot fill the accept queue past the limit.
    """

    def __init__(
        self,
        opener: MemoryConnection,
        acceptor: MemoryConnection,
        stream_id: int,
        *,
        unidirectional: bool,
    ) -> None:
        self.stream_id = stream_id
        self._unidirectional = unidirectional
        self._opener, self._acceptor = opener, acceptor
        self._forward = Pipe(acceptor)
        self._backward = None if unidirectional else Pipe(opener)
        self.opened = MemoryStream(opener, self, outgoing=self._forward, incoming=self._backward)
        self._arriving = MemoryStream(
            acceptor, self, outgoing=self._backward, incoming=self._forward
        )
        self._is_announced = self._is_accepted = self._is_done = False
        opener.stream_made(self.opened)
        acceptor.stream_made(self._arriving)

    def announce(self) -> None:
        """Show the stream to the acceptor, as its first frame does."""
        if not self._is_announced:
            self._is_announced = True
            self._acceptor.stream_arrived(self._arriving, unidirectional=self._unidirectional)

    def accept(self) -> None:
        """Note that the acceptor's application has it."""
        self._is_accepted = True
        self.settle()

    def settle(self) -> None:
        """Free the slot if nothing more can happen on this stream."""
        pipes_done = self._forward.is_done and (self._backward is None or self._backward.is_done)
        if self._is_done or not (self._is_accepted and pipes_done):
            return
        self._is_done = True
        kind = self._unidirectional
        self._opener.stream_done(self.opened, unidirectional=kind, was_opened=True)
        self._acceptor.stream_done(self._arriving, unidirectional=kind, was_opened=False)


class _Arrivals(Generic[T]):
    """What came and was not taken yet; past *bound* the oldest goes."""

    def __init__(self, bound: int | None = None) -> None:
        self.items: deque[T] = deque(maxlen=bound)
        self.lot = trio.lowlevel.ParkingLot()

    def put(self, item: T) -> None:
        self.items.append(item)
        self.lot.unpark_all()
