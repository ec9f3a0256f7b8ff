"""A UDP socket full of QUIC connections: routing, timers, and one send pass per tick.

Three tasks, none of which ever waits for application code:

* the *reader* drains the socket, feeds each datagram to its connection's engine, then lets every
  touched connection handle its events and send;
* the *timer* sleeps until the earliest deadline in a heap (lazily re-armed: a connection has one
  live entry, older ones are skipped when they surface);
* the *flusher* sends for connections to which the application has given something; all that was
  given in one tick leaves in one pass.

Stray datagrams never raise; they are counted in `counters`.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import NamedTuple

import trio
from aioquic.quic.packet import QuicHeader
from aioquic.quic.retry import QuicRetryTokenHandler

from alknet.core.contracts import CloseCode
from alknet.core.datagram import Address, DatagramSocket, format_address
from alknet.core.limits import Limits
from alknet.core.quic import packets
from alknet.core.quic.connection import QuicConnection
from alknet.core.quic.engine import CID_LENGTH, client_engine, server_engine
from alknet.core.quic.handshake import ClientPolicy, ServerPolicy
from alknet.errors import Denied, Malformed, Unavailable

__all__ = ["QuicAcceptor", "QuicEndpoint"]

log = logging.getLogger(__name__)

# Datagrams that wait for a full socket buffer; past it they are lost, as on any network.
MAX_UNSENT = 4_096
# A closing connection answers packets 1, 2, 4, 8 ... with its close again (RFC 9000 sec. 10.2.1).
MAX_CLOSE_REPEATS = 8


class QuicAcceptor(NamedTuple):
    """What an endpoint needs to take connections.

    Attributes:
        policy: What to show to whom.
        alpns: In the order of preference; read for each new connection.
        on_connection: Called when a handshake is complete; must not block.
        admit: Called with ``ip:port`` before any work is done for a new connection; the context
            is left when the handshake has ended. Raises Denied or Unavailable to refuse.
    """

    policy: ServerPolicy
    alpns: Callable[[], Sequence[str]]
    on_connection: Callable[[QuicConnection], None]
    admit: Callable[[str], AbstractContextManager[None]]


class QuicEndpoint:
    """Owns a `DatagramSocket`; dials and, given a `QuicAcceptor`, accepts.

    Attributes:
        counters: What happened to datagrams that belong to no connection, by kind.
    """

    def __init__(
        self, socket: DatagramSocket, *, limits: Limits, acceptor: QuicAcceptor | None = None
    ) -> None:
        self.limits = limits
        self.counters: Counter[str] = Counter()
        self._socket = socket
        self._acceptor = acceptor
        self._routes: dict[bytes, QuicConnection] = {}
        self._connections: dict[QuicConnection, _Entry] = {}
        self._timers: list[tuple[float, int, QuicConnection]] = []
        self._timer_serial = 0
        self._timer_changed = trio.Event()
        self._dirty: set[QuicConnection] = set()
        self._flush_wanted = trio.Event()
        self._unsent: deque[tuple[bytes, Address]] = deque()
        self._half_open = 0
        self._retry = QuicRetryTokenHandler()

    @property
    def local_address(self) -> Address:
        return self._socket.local_address

    @property
    def connections(self) -> Sequence[QuicConnection]:
        """All connections, those in their closing period included."""
        return tuple(self._connections)

    def stop_accepting(self) -> None:
        """Refuse new connections from now on; existing ones go on."""
        self._acceptor = None

    @contextmanager
    def closing(self) -> Iterator[QuicEndpoint]:
        """Tell every peer, best effort, and close the socket on the way out."""
        try:
            yield self
        finally:
            self._abandon_all()
            self._socket.close()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; then every peer is told `shutdown`, and the socket is closed."""
        with self.closing():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, name="quic reader")
                nursery.start_soon(self._watch_timers, name="quic timer")
                nursery.start_soon(self._flush, name="quic flusher")
                task_status.started()

    async def connect(
        self,
        address: Address,
        *,
        alpn: str,
        policy: ClientPolicy,
        server_name: str | None = None,
    ) -> QuicConnection:
        """Dial and wait until the peer has accepted our key. Cancelled, the attempt is closed.

        Raises:
            ConnectionEnded: Refused, wrong key, no common ALPN, nobody answered in time.
        """
        engine = client_engine(policy, alpn=alpn, server_name=server_name, limits=self.limits)
        connection = QuicConnection(self, engine, is_dialer=True, address=address)
        self._add(connection, engine.host_cid)
        engine.connect(address, trio.current_time())
        self.schedule(connection)
        try:
            await connection.wait_confirmed()
        except BaseException:
            connection.close(CloseCode.OK, "dial abandoned")
            raise
        return connection

    # from connections

    def schedule(self, connection: QuicConnection) -> None:
        """Send for *connection* in this tick's pass."""
        self._dirty.add(connection)
        self._flush_wanted.set()

    def add_route(self, cid: bytes, connection: QuicConnection) -> None:
        self._routes[cid] = connection
        if (entry := self._connections.get(connection)) is not None:
            entry.cids.add(cid)

    def remove_route(self, cid: bytes) -> None:
        connection = self._routes.pop(cid, None)
        if connection is not None and (entry := self._connections.get(connection)) is not None:
            entry.cids.discard(cid)

    def remove(self, connection: QuicConnection) -> None:
        """The closing period is over: nothing will be sent or routed any more."""
        entry = self._connections.pop(connection, None)
        if entry is not None:
            self._end_handshake(entry)
            for cid in entry.cids:
                self._routes.pop(cid, None)
        self._dirty.discard(connection)

    def on_established(self, connection: QuicConnection) -> None:
        self._end_handshake(self._connections[connection])
        if not connection.is_dialer and self._acceptor is not None:
            self._acceptor.on_connection(connection)
        elif not connection.is_dialer:
            connection.close(CloseCode.SHUTDOWN, "shutting down")

    def on_ended(self, connection: QuicConnection) -> None:
        if (entry := self._connections.get(connection)) is not None:
            self._end_handshake(entry)

    # receiving

    async def _read(self) -> None:
        while True:
            batch = await self._socket.receive()
            now = trio.current_time()
            touched: dict[QuicConnection, None] = {}
            for data, address in batch:
                connection = self._feed(data, address, now)
                if connection is not None:
                    touched[connection] = None
            for connection in touched:
                connection.handle_events()
                self._transmit(connection, now)

    def _feed(self, data: bytes, address: Address, now: float) -> QuicConnection | None:
        if not data:
            self.counters["empty"] += 1
            return None
        if data[0] & 0x80:
            return self._feed_long(data, address, now)
        connection = self._routes.get(data[1 : 1 + CID_LENGTH])
        if connection is None:
            self.counters["unknown_connection_id"] += 1
            return None
        return self._deliver(connection, data, address, now)

    def _feed_long(self, data: bytes, address: Address, now: float) -> QuicConnection | None:
        try:
            header = packets.read_header_untrusted(data)
        except Malformed:
            self.counters["malformed"] += 1
            return None
        connection = self._routes.get(header.destination_cid)
        if connection is None:
            connection = self._accept(header, data, address, now)
        if connection is None:
            return None
        return self._deliver(connection, data, address, now)

    def _deliver(
        self, connection: QuicConnection, data: bytes, address: Address, now: float
    ) -> QuicConnection:
        if connection.close_reason is not None:
            self._repeat_close(connection)
        try:
            connection.engine.receive_datagram(data, address, now)
        except Exception:  # boundary: an aioquic bug must not stop the port
            self.counters["engine_error"] += 1
            log.exception("quic.engine_error", extra={"address": format_address(address)})
            connection.on_engine_error()
        connection.on_received(now)
        return connection

    # accepting

    def _accept(
        self, header: QuicHeader, data: bytes, address: Address, now: float
    ) -> QuicConnection | None:
        answer = packets.encode_version_negotiation(header, len(data))
        if answer is not None:
            self.counters["version_negotiation"] += 1
            self._send(answer, address)
            return None
        if self._acceptor is None or not packets.is_acceptable_initial(header, len(data)):
            self.counters["stray"] += 1
            return None
        try:
            original_cid, retry_cid = self._validate_address(header, address, now)
            return self._begin(self._acceptor, header, address, original_cid, retry_cid)
        except _Answered:
            return None
        except (Denied, Unavailable):
            self.counters["refused"] += 1
            self._send(packets.encode_refusal(header), address)
            return None

    def _begin(
        self,
        acceptor: QuicAcceptor,
        header: QuicHeader,
        address: Address,
        original_cid: bytes,
        retry_cid: bytes | None,
    ) -> QuicConnection:
        with ExitStack() as stack:
            stack.enter_context(acceptor.admit(format_address(address)))
            engine = server_engine(
                acceptor.policy,
                alpns=acceptor.alpns(),
                limits=self.limits,
                original_destination_cid=original_cid,
                retry_source_cid=retry_cid,
            )
            connection = QuicConnection(self, engine, is_dialer=False, address=address)
            entry = self._add(connection, engine.host_cid, header.destination_cid)
            entry.admission = stack.pop_all()
        self._half_open += 1
        return connection

    def _validate_address(
        self, header: QuicHeader, address: Address, now: float
    ) -> tuple[bytes, bytes | None]:
        """Ask for a Retry (RFC 9000 sec. 8.1.2) while many handshakes are half open."""
        if header.token:
            with suppress(ValueError):
                original = self._retry.validate_token(
                    address=address,
                    destination_cid=header.destination_cid,
                    token=header.token,
                    now=now,
                )
                return original, header.destination_cid
        if self._half_open < self.limits.half_open_before_retry:
            return header.destination_cid, None
        self.counters["retry"] += 1
        self._send(packets.encode_retry(header, address, self._retry, now), address)
        raise _Answered

    def _add(self, connection: QuicConnection, *cids: bytes) -> _Entry:
        entry = self._connections[connection] = _Entry()
        for cid in cids:
            self.add_route(cid, connection)
        return entry

    def _end_handshake(self, entry: _Entry) -> None:
        if entry.admission is not None:
            self._half_open -= 1
            entry.admission.close()
            entry.admission = None

    # sending

    async def _flush(self) -> None:
        while True:
            await self._flush_wanted.wait()
            self._flush_wanted = trio.Event()
            while self._unsent:
                await self._socket.wait_writable()
                self._send_unsent()
            now = trio.current_time()
            for connection in self._take_dirty():
                connection.handle_events()
                self._transmit(connection, now)

    def _take_dirty(self) -> list[QuicConnection]:
        dirty = [connection for connection in self._dirty if connection in self._connections]
        self._dirty.clear()
        return dirty

    def _transmit(self, connection: QuicConnection, now: float) -> None:
        if connection not in self._connections:
            return
        engine = connection.engine
        if engine.has_keys:
            datagrams = engine.datagrams_to_send(now)
            for data, address in datagrams:
                self._send(data, (address[0], address[1]))
            if connection.close_reason is not None and datagrams:
                self._connections[connection].close_datagrams = datagrams
        connection.on_transmitted()
        self._arm(connection)

    def _send(self, data: bytes, address: Address) -> None:
        if self._unsent or not self._socket.send(data, address):
            if len(self._unsent) >= MAX_UNSENT:
                self.counters["send_buffer_full"] += 1
                return
            self._unsent.append((data, address))
            self._flush_wanted.set()

    def _send_unsent(self) -> None:
        while self._unsent and self._socket.send(*self._unsent[0]):
            self._unsent.popleft()

    def _repeat_close(self, connection: QuicConnection) -> None:
        entry = self._connections.get(connection)
        if entry is None or not entry.close_datagrams:
            return
        entry.after_close += 1
        is_power_of_two = entry.after_close & (entry.after_close - 1) == 0
        if is_power_of_two and entry.after_close < 2**MAX_CLOSE_REPEATS:
            for data, address in entry.close_datagrams:
                self._send(data, (address[0], address[1]))

    # timers

    def _arm(self, connection: QuicConnection) -> None:
        when = connection.next_timer()
        entry = self._connections.get(connection)
        if entry is None or when is None:
            return
        # A live entry that fires earlier will re-arm; most deadlines only ever move later.
        if entry.timer_at is not None and entry.timer_at <= when:
            return
        entry.timer_at = when
        self._timer_serial += 1
        heapq.heappush(self._timers, (when, self._timer_serial, connection))
        if self._timers[0][2] is connection:
            self._timer_changed.set()

    async def _watch_timers(self) -> None:
        while True:
            self._fire(trio.current_time())
            deadline = self._timers[0][0] if self._timers else float("inf")
            with trio.move_on_at(deadline):
                await self._timer_changed.wait()
            self._timer_changed = trio.Event()
            await trio.lowlevel.checkpoint()

    def _fire(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            when, _, connection = heapq.heappop(self._timers)
            entry = self._connections.get(connection)
            if entry is None or entry.timer_at != when:
                continue
            entry.timer_at = None
            connection.handle_timer(now)
            connection.handle_events()
            self._transmit(connection, now)
            self._arm(connection)

    # the end

    def _abandon_all(self) -> None:
        now = trio.current_time()
        for connection in list(self._connections):
            connection.close(CloseCode.SHUTDOWN, "shutting down")
            self._transmit(connection, now)
            self.remove(connection)
            connection.on_abandoned()


class _Answered(Exception):
    """A stateless answer was sent; there is nothing to begin."""


class _Entry:
    """What the endpoint keeps about one connection."""

    __slots__ = ("admission", "after_close", "cids", "close_datagrams", "timer_at")

    def __init__(self) -> None:
        self.cids: set[bytes] = set()
        self.timer_at: float | None = None
        self.admission: ExitStack | None = None
        self.close_datagrams: list[tuple[bytes, tuple[str, int]]] = []
        self.after_close = 0
