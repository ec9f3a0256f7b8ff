"""A connection of one stream over any byte stream: TLS on TCP, or a Unix socket as it is.

The connection has no task of its own. Whoever waits in `StreamConnection.wait_closed` (the
endpoint does, for each connection) drives what happens while the application looks elsewhere: it
reads ahead one piece, so that the peer's end or a reset is noticed at once even if nobody
receives, and after `close` it says goodbye and closes the transport. A peer's end behind unread
bytes is noticed when those were read.
"""

from __future__ import annotations

from typing import Never

import trio

from alknet.core.budget import MemoryBudget
from alknet.core.contracts import (
    CARRIER_TCP,
    MAX_REASON_BYTES,
    Carrier,
    CloseReason,
    Connection,
    Stream,
    cut_utf8,
)
from alknet.core.identity import NodeId
from alknet.core.tcp.listener import addresses_of
from alknet.core.tcp.only_stream import ConnectionLife, OnlyStream
from alknet.core.tcp.tls import TlsStream
from alknet.core.transport import TransportStatus, tcp_status
from alknet.errors import LocalError

__all__ = ["StreamConnection"]

# How long closing may take: close_notify out, and the peer's end in. Below the second that the
# endpoint gives connections at its own end.
CLOSE_S = 0.8


class StreamConnection(Connection):
    """A `Connection` whose only stream is *stream*, which belongs to it from now on.

    Its close code stays here (see `Carrier.close_code`), unless the protocol has words for it
    (`Connection.farewell`): the peer sees a clean end, code 0. When
    the peer ends cleanly, `close_reason` has code 0; bytes that it sent before can still be read.
    Closing the stream (`Stream.aclose`) ends the connection too, with code 0.
    """

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        *,
        alpn: str,
        carrier: Carrier,
        is_dialer: bool,
        peer_key: NodeId | None,
        remote_address: str,
        server_name: str | None = None,
    ) -> None:
        carrying = stream.transport if isinstance(stream, TlsStream) else stream
        super().__init__(
            alpn=alpn,
            carrier=carrier,
            is_dialer=is_dialer,
            peer_key=peer_key,
            remote_address=remote_address,
            local_address=addresses_of(carrying)[1],
            server_name=server_name,
        )
        self._carrying = carrying
        self._life = ConnectionLife()
        self._stream = OnlyStream(stream, self._life)
        self._is_stream_taken = False
        self._driver = trio.Lock()
        self._is_released = False

    @property
    def close_reason(self) -> CloseReason | None:
        """Why the connection ended, or None while it lives."""
        return self._life.reason

    def transport_status(self) -> TransportStatus:
        """Say what the kernel knows; nothing but the one stream for other carriers than TCP."""
        carrying = self._carrying
        if self.carrier is not CARRIER_TCP or not isinstance(carrying, trio.SocketStream):
            return TransportStatus(streams=1)
        return tcp_status(carrying.socket.getsockopt)

    def charge_to(self, budget: MemoryBudget) -> None:
        """Charge what is buffered to *budget* until the connection has ended."""
        if not self._is_released:
            self._stream.account.move_to(budget)

    async def accept_stream(self) -> Stream:
        """Return the stream, once, on the accepting side; otherwise wait until the end."""
        await trio.lowlevel.checkpoint()
        if not self.is_dialer and not self._is_stream_taken and self._stream.is_readable:
            self._is_stream_taken = True
            return self._stream
        return await self._wait_for_end()

    async def accept_uni_stream(self) -> Stream:
        """Wait until the end: this carrier has no such streams. Raises like `accept_stream`."""
        return await self._wait_for_end()

    async def open_stream(self, *, unidirectional: bool = False) -> Stream:
        """Return the stream, once, on the dialling side."""
        await trio.lowlevel.checkpoint()
        if self._life.reason is not None:
            raise self._life.error()
        if unidirectional:
            raise LocalError(f"{self.carrier.name} has no unidirectional streams")
        if not self.is_dialer or self._is_stream_taken:
            raise LocalError(f"a connection over {self.carrier.name} has one stream; it is taken")
        self._is_stream_taken = True
        return self._stream

    @property
    def max_datagram_size(self) -> int:
        """0: this carrier has no datagrams."""
        return 0

    def send_datagram(self, data: bytes) -> None:
        """Raise: this carrier has no datagrams."""
        if self._life.reason is not None:
            raise self._life.error()
        raise LocalError(f"{self.carrier.name} has no datagrams")

    async def receive_datagram(self) -> bytes:
        """Wait until the end: this carrier has no datagrams. Raises like `accept_stream`."""
        return await self._wait_for_end()

    def close(self, code: int = 0, reason: str = "") -> None:
        """Begin to close; `wait_closed` or `aclose` does the rest.

        With words to say (`Connection.farewell`), what is being sent may go on until then.
        """
        text = cut_utf8(reason, MAX_REASON_BYTES)
        # Words that say why come after what is being sent, or not at all.
        has_words = self.farewell is not None and code != 0
        end = CloseReason(code, text, by_peer=False)
        self._life.end(end, by_close=True, spares_sends=has_words)

    async def aclose(self, code: int = 0, reason: str = "") -> None:
        """`close` and `wait_closed`; cancelled, the transport closes without a goodbye."""
        self.close(code, reason)
        try:
            await self.wait_closed()
        finally:
            if not self._is_released:
                await self._stream.abort()

    async def wait_closed(self) -> CloseReason:
        """Drive the connection until it has ended and the transport is closed; say why it ended.

        Cancelled, nothing happens: the next caller goes on, also with a goodbye half said.
        """
        async with self._driver:
            if not self._is_released:
                with self._life.until_end():
                    await self._stream.watch()
                with trio.move_on_after(CLOSE_S):
                    await self._stream.say_goodbye(self.farewell)
                self._life.end_sends()
                self._is_released = True
                await self._stream.abort()
        assert self._life.reason is not None
        return self._life.reason

    async def _wait_for_end(self) -> Never:
        with self._life.until_end():
            await trio.sleep_forever()
        raise self._life.error()
