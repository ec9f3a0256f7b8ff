"""A QUIC connection as the contract's `Connection`: streams, datagrams, closing.

The endpoint feeds datagrams and time into the engine and then calls `handle_events`, which never
waits for anybody; what the application waits for is parked here and woken from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from aioquic.quic import events

from alknet.core.budget import Account
from alknet.core.contracts import (
    CARRIER_QUIC,
    MAX_REASON_BYTES,
    CloseCode,
    CloseReason,
    Connection,
    ConnectionEnded,
    cut_utf8,
)
from alknet.core.datagram import format_address
from alknet.core.identity import ANONYMOUS
from alknet.core.quic.engine import Closing
from alknet.core.quic.status import transport_status
from alknet.core.quic.stream import QuicStream, check_code
from alknet.errors import LocalError

if TYPE_CHECKING:
    from alknet.core.datagram import Address, NetworkPath
    from alknet.core.limits import Limits
    from alknet.core.quic.endpoint import QuicEndpoint
    from alknet.core.quic.engine import Engine
    from alknet.core.transport import TransportStatus

__all__ = ["QuicConnection"]

# What aioquic says when the idle time-out has passed; it has no other mark.
AIOQUIC_IDLE = "Idle timeout"
# A flush at `aclose` gives up after this: three times the PTO of a very bad path.
FLUSH_TIMEOUT_S = 3.0
# No flow control bounds DATAGRAM frames: a queue of so many takes no more than so many of these,
# and at least one of the longest that UDP carries.
USUAL_DATAGRAM_BYTES = 1_500
# RFC 9001 sec. 6.6 allows 2^23 packets with one AES-GCM key; update long before.
PACKETS_PER_KEY = 2**22
# Streams that hold less to be acknowledged are not charged for it: counting costs more than it.
CHARGED_BYTES = 16 * 1024


class QuicConnection(Connection):
    """One connection of a `QuicEndpoint`; made by it only."""

    def __init__(
        self, endpoint: QuicEndpoint, engine: Engine, *, is_dialer: bool, address: NetworkPath
    ) -> None:
        super().__init__(
            alpn="",
            carrier=CARRIER_QUIC,
            is_dialer=is_dialer,
            peer_key=None,
            remote_address=format_address(address),
            local_address=format_address(_arrival(address, endpoint.local_address)),
        )
        self.engine = engine
        self.received_bytes = 0
        self._endpoint = endpoint
        self._address = address
        self._limits: Limits = endpoint.limits
        self._streams: dict[int, QuicStream] = {}
        # Lists, for they are short where they are not empty: a deque takes 760 bytes of each idle
        # connection. Who waits for streams has a place in `_arrived` from the first time on.
        self._arrivals: tuple[list[QuicStream], list[QuicStream]] = [], []
        self._datagrams: list[bytes] = []
        self._datagram_bytes = 0
        self.account = Account(endpoint.budget)
        engine.is_proven = is_dialer  # whom we have dialled
        self._reason: CloseReason | None = None
        self._told = trio.Event()
        self._arrived: dict[bool, trio.lowlevel.ParkingLot] = {}
        self._datagram_arrived = trio.lowlevel.ParkingLot()
        # Those who wait for limits, acknowledgements or the handshake; woken by every pass.
        self._progress = trio.lowlevel.ParkingLot()
        self.waiting_senders: set[QuicStream] = set()
        self._next_key_update = PACKETS_PER_KEY
        self._ping_at = trio.current_time() + self._limits.keep_alive_s
        self._handshake_deadline: float | None = (
            trio.current_time() + self._limits.handshake_timeout_s
        )
        self.is_established = False

    # contract: streams

    async def accept_stream(self) -> QuicStream:
        return await self._accept(unidirectional=False)

    async def accept_uni_stream(self) -> QuicStream:
        return await self._accept(unidirectional=True)

    async def _accept(self, *, unidirectional: bool) -> QuicStream:
        await trio.lowlevel.checkpoint()
        arrivals = self._arrivals[unidirectional]
        while not arrivals:
            self.check_open()
            await self._arrived.setdefault(unidirectional, trio.lowlevel.ParkingLot()).park()
        stream = arrivals.pop(0)
        stream.on_accepted()
        return stream

    async def open_stream(self, *, unidirectional: bool = False) -> QuicStream:
        await trio.lowlevel.checkpoint()
        self.check_open()
        while not self.engine.can_open(unidirectional=unidirectional):
            await self._progress.park()
            self.check_open()
        stream_id = self.engine.open_stream(unidirectional=unidirectional)
        stream = QuicStream(self, stream_id, can_send=True, can_receive=not unidirectional)
        stream.on_accepted()
        self._streams[stream_id] = stream
        return stream

    # contract: datagrams

    @property
    def max_datagram_size(self) -> int:
        return self.engine.max_datagram_payload

    def send_datagram(self, data: bytes) -> None:
        self.check_open()
        longest = self.max_datagram_size
        if len(data) > longest:
            raise LocalError(
                f"a datagram of {len(data)} bytes is longer than the {longest} that fit"
            )
        self.engine.send_datagram_frame(bytes(data))
        self.engine.drop_oldest_datagrams(self._limits.datagrams_queued)
        self.schedule()

    async def receive_datagram(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._datagrams:
            self.check_open()
            await self._datagram_arrived.park()
        return self._next_datagram()

    # contract: closing

    def close(self, code: int = 0, reason: str = "") -> None:
        check_code(code)
        if self._reason is None:
            text = cut_utf8(reason, MAX_REASON_BYTES)
            self.engine.close(error_code=code, reason_phrase=text)
            self._end(CloseReason(code, text, by_peer=False))
            self.schedule()

    async def aclose(self, code: int = 0, reason: str = "") -> None:
        """Wait until sent bytes were acknowledged (at most 3 s, and only for code 0), then close.

        Cancelled, it closes at once; bytes on their way may be lost.
        """
        try:
            if code == CloseCode.OK:
                with trio.move_on_after(FLUSH_TIMEOUT_S):
                    while self._reason is None and not self.engine.is_quiet:
                        await self._progress.park()
        finally:
            self.close(code, reason)
        await self.wait_closed()

    async def wait_closed(self) -> CloseReason:
        await self._told.wait()
        assert self._reason is not None
        return self._reason

    @property
    def close_reason(self) -> CloseReason | None:
        return self._reason

    def transport_status(self) -> TransportStatus:
        return transport_status(self.engine, self.received_bytes)

    def check_open(self) -> None:
        """Raise what every operation raises once the connection is over."""
        if self._reason is None:
            return
        if self._reason.by_peer or self._reason.is_transport:
            raise ConnectionEnded(self._reason)
        raise trio.ClosedResourceError("this connection was closed")

    # for streams

    @property
    def is_known(self) -> bool:
        """The peer is no stranger: we have dialled it, or know who it is."""
        return self.is_dialer or self.identity is not ANONYMOUS

    def schedule(self) -> None:
        """Have the endpoint send what the engine has, in this tick's one pass."""
        self._endpoint.schedule(self)

    def send_at_once(self) -> None:
        """Have the endpoint send what the engine has now, if nobody waits for that already."""
        self._endpoint.send_at_once(self)

    def on_accepted_to_send(self, stream_id: int) -> None:
        """The engine has taken bytes of a stream: charge for those that fill more than a packet."""
        held = self.engine.unacknowledged(stream_id)
        if held >= CHARGED_BYTES:
            self.account.set_sending(stream_id, held)

    def on_unread(self, change: int) -> None:
        """*change* more bytes wait for a reader; fewer, if it is negative."""
        if self._reason is None:
            self.account.add_unread(change)

    def send_room(self, stream_id: int, *, is_wake_up: bool = False) -> int:
        """Bytes that the stream's send buffer still takes, and the connection's as a whole."""
        limit = self.engine.send_buffer_bytes
        cap = self._limits.buffered_bytes_per_connection
        room = (limit // 2 if is_wake_up else limit) - self.engine.unacknowledged(stream_id)
        # Only with very many streams can all of them together hold too much.
        if room > 0 and self.engine.stream_count * limit > cap:
            room = min(room, cap - self.engine.unacknowledged_in_all())
        return room

    def credit(self, stream_id: int, count: int, *, is_wanted: bool = True) -> None:
        """Let the peer send *count* more bytes; see `Engine.credit`."""
        if not count or self._reason is not None:
            return
        self.engine.is_proven = self.is_known
        if self.engine.credit(stream_id, count, is_wanted=is_wanted):
            self.schedule()

    def credit_abandoned(self, stream_id: int) -> None:
        """Return the credit of bytes that a reset stream never brought."""
        if self._reason is None and self.engine.credit_abandoned(stream_id):
            self.schedule()

    def forget(self, stream_id: int) -> None:
        """Both sides of the stream are over: the peer may open another in its place."""
        if self._streams.pop(stream_id, None) is not None and self._reason is None:
            self.engine.release(stream_id)
            self.schedule()

    # for the endpoint

    @property
    def is_settled(self) -> bool:
        """No newcomer: we have dialled the peer, or its handshake is complete."""
        return self.is_dialer or self.is_established

    def next_timer(self) -> float | None:
        """Return when `handle_timer` wants to be called, or None when all is over."""
        timer = self.engine.get_timer()
        if timer is None or self._reason is not None:
            return timer
        if self._handshake_deadline is not None:
            timer = min(timer, self._handshake_deadline)
        return min(timer, self._ping_at) if self._keeps_alive else timer

    def handle_timer(self, now: float) -> None:
        """Do what is due: loss recovery, the handshake's time-out, a keep-alive."""
        timer = self.engine.get_timer()
        if timer is not None and now >= timer:
            self.engine.handle_timer(now)
        if self._reason is not None:
            return
        if self._handshake_deadline is not None and now >= self._handshake_deadline:
            self._fail_handshake()
        elif self._keeps_alive and now >= self._ping_at:
            self.engine.send_ping(0)
            self._ping_at = now + self._keep_alive_s

    @property
    def _keep_alive_s(self) -> float:
        # A peer that gives up sooner than we do is pinged as often as its patience wants; a
        # keep-alive longer than our own idle time-out is none, as whoever set it meant.
        seconds = self._limits.keep_alive_s
        if seconds >= self._limits.idle_timeout_s:
            return seconds
        return min(seconds, self.engine.idle_timeout_s / 3)

    @property
    def _keeps_alive(self) -> bool:
        # The dialler keeps an idle connection; while streams are open, so does the acceptor.
        return self.is_established and (self.is_dialer or bool(self._streams))

    def _fail_handshake(self) -> None:
        seconds = self._limits.handshake_timeout_s
        self.engine.close(error_code=0, reason_phrase="handshake timed out")
        text = f"no complete handshake within {seconds:g} s"
        self._end(CloseReason(0, text, by_peer=False, is_transport=True))

    def on_received(self, now: float) -> None:
        """Something arrived from the peer: keep-alive can wait."""
        self._ping_at = now + self._keep_alive_s

    def on_engine_error(self) -> None:
        """The engine raised on a peer's bytes: say what we can and end this connection only."""
        self.engine.close(error_code=CloseCode.INTERNAL, reason_phrase="internal error")
        if self._reason is None:
            text = "the transport failed on what the peer sent"
            self._end(CloseReason(CloseCode.INTERNAL, text, by_peer=False, is_transport=True))

    def on_unreachable(self, address: Address) -> None:
        """Nobody listens at *address*: a dial to it need not wait for its time-out."""
        if self._reason is None and self.remote_address == format_address(address):
            self.engine.close(error_code=0, reason_phrase="")
            self._end(CloseReason(0, "nobody listens there", by_peer=False, is_transport=True))
            self.schedule()

    def on_abandoned(self) -> None:
        """The endpoint is gone: nobody will be told more than they were."""
        self._told.set()

    def let_go(self) -> None:
        """Nothing will be sent or received any more: free all when the last user goes."""
        self._streams.clear()  # they lead back here
        self.engine.end_log()
        self.engine.let_go()

    def on_transmitted(self) -> None:
        """All that was pending has been handed to the socket."""
        if self._reason is not None:
            self._told.set()
        elif self.engine.packets_sent >= self._next_key_update and self.engine.update_keys():
            self._next_key_update = self.engine.packets_sent + PACKETS_PER_KEY

    def handle_events(self) -> None:
        """Bring what the engine has learned to those who wait for it. Cannot fail."""
        while (event := self.engine.next_event()) is not None:
            self._handle_event(event)
        if self._reason is None and self.engine.closing is not Closing.NO:
            self._end(self._engine_reason())
        address = self.engine.get_peer_address()
        if address is not None and address != self._address:  # the peer has moved
            self._address = address
            self.remote_address = format_address(address)
            self._endpoint.on_moved(self, address[:2])
        for stream_id in self.account.sending:
            self.account.set_sending(stream_id, self.engine.unacknowledged(stream_id))
        if self.waiting_senders:
            for stream in list(self.waiting_senders):
                stream.on_room()
        if self._progress:
            self._progress.unpark_all()

    def _handle_event(self, event: events.QuicEvent) -> None:
        match event:
            case events.StreamDataReceived():
                self._stream(event.stream_id).on_data(event.data, is_end=event.end_stream)
            case events.StreamReset():
                self._stream(event.stream_id).on_reset(event.error_code)
            case events.StopSendingReceived():
                self._on_stop_sending(event.stream_id, event.error_code)
            case events.DatagramFrameReceived():
                self._on_datagram(event.data)
            case events.HandshakeCompleted():
                self._on_handshake(event.alpn_protocol)
            case events.ConnectionIdIssued():
                self._endpoint.add_route(event.connection_id, self)
            case events.ConnectionIdRetired():
                self._endpoint.remove_route(event.connection_id)
            case events.ConnectionTerminated():
                self._on_terminated()
            case _:
                pass  # PingAcknowledged and ProtocolNegotiated need no answer

    def _on_datagram(self, data: bytes) -> None:
        self._datagrams.append(data)
        self._datagram_bytes += len(data)
        limit = self._limits.datagrams_queued
        most = max(limit * USUAL_DATAGRAM_BYTES, len(data))
        while len(self._datagrams) > limit or self._datagram_bytes > most:
            self._next_datagram()  # the oldest is worth the least
        self._datagram_arrived.unpark()

    def _next_datagram(self) -> bytes:
        data = self._datagrams.pop(0)
        self._datagram_bytes -= len(data)
        return data

    def _on_handshake(self, alpn: str | None) -> None:
        if self._reason is not None:
            return
        self.alpn = alpn or ""
        self.peer_key = self.engine.peer_key
        self.server_name = self.engine.server_name
        if not self.is_dialer:
            self._establish()

    def _establish(self) -> None:
        self._handshake_deadline = None
        self.is_established = True
        self._endpoint.on_established(self)

    def _on_terminated(self) -> None:
        if self._reason is None:
            self._end(self._engine_reason())
        self._told.set()
        self._endpoint.remove(self)

    async def wait_confirmed(self) -> None:
        """Wait until the server has accepted our key (HANDSHAKE_DONE), not just sent its own.

        A server that closes with an application's code has accepted it too: it comes to an end
        like any other connection, so that whoever dialled learns the code where it belongs.

        Raises:
            ConnectionEnded: It refused the handshake, or nobody answered.
        """
        while not self.engine.is_confirmed and not self._is_closed_by_application:
            self.check_open()
            await self._progress.park()
        if not self._is_closed_by_application:
            self.check_open()
            self._establish()

    @property
    def _is_closed_by_application(self) -> bool:
        reason = self._reason
        return reason is not None and reason.by_peer and not reason.is_transport

    def _stream(self, stream_id: int) -> QuicStream:
        stream = self._streams.get(stream_id)
        if stream is None:
            is_uni = bool(stream_id & 2)
            stream = QuicStream(self, stream_id, can_send=not is_uni, can_receive=True)
            self._streams[stream_id] = stream
            self._arrivals[is_uni].append(stream)
            if is_uni in self._arrived:
                self._arrived[is_uni].unpark()
        return stream

    def _on_stop_sending(self, stream_id: int, code: int) -> None:
        # It may be the first that we hear of a stream, or come too late for one that is over.
        if stream_id in self._streams or not self.engine.is_released(stream_id):
            self._stream(stream_id).on_stop_sending(code)

    def _engine_reason(self) -> CloseReason:
        """The end that our `close` did not bring about: the peer's close, or the engine's own."""
        event = self.engine.close_event
        assert event is not None
        by_peer = self.engine.closing is Closing.BY_PEER
        return CloseReason(
            event.error_code,
            self._words(cut_utf8(event.reason_phrase, MAX_REASON_BYTES), by_peer=by_peer),
            by_peer=by_peer,
            is_transport=not by_peer or event.frame_type is not None,
        )

    def _words(self, reason: str, *, by_peer: bool) -> str:
        if by_peer or reason != AIOQUIC_IDLE:
            return reason
        seconds = self.engine.idle_timeout_s
        return f"idle timeout: nothing heard from the peer for {seconds:g} s"

    def _end(self, reason: CloseReason) -> None:
        self._reason = reason
        self.account.clear()
        if reason.by_peer:
            self._told.set()
        for stream in list(self._streams.values()):
            stream.on_connection_end()
        for lot in (*self._arrived.values(), self._datagram_arrived, self._progress):
            lot.unpark_all()
        self._endpoint.on_ended(self)


def _arrival(path: NetworkPath, bound: Address) -> Address:
    """Return our address as the peer has it: a socket may be bound to all of ours."""
    return (path[2], bound[1]) if len(path) == 3 else bound
