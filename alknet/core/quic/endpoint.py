"""A UDP socket full of QUIC connections: routing, timers, and one send pass per tick.

Three tasks, none of which ever waits for application code:

* the *reader* drains the socket, feeds each datagram to its connection's engine, then lets every
  touched connection handle its events and send;
* the *timer* sleeps until the earliest of all connections' deadlines (`timers`);
* the *flusher* sends for connections to which the application has given something; all that was
  given in one tick leaves in one pass.

Stray datagrams never raise; they are counted in `counters`.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from itertools import islice
from typing import NamedTuple

import trio
from aioquic.quic.packet import QuicHeader
from aioquic.quic.retry import QuicRetryTokenHandler

from alknet.core.contracts import CloseCode
from alknet.core.datagram import (
    MAX_BATCH,
    Address,
    DatagramSocket,
    NetworkPath,
    canonical_address,
    format_address,
)
from alknet.core.limits import Limits
from alknet.core.quic import packets
from alknet.core.quic.connection import QuicConnection
from alknet.core.quic.engine import CID_LENGTH, client_engine, server_engine
from alknet.core.quic.handshake import ClientPolicy, ServerPolicy
from alknet.core.quic.reset import PeersByAddress, ResetKey, ResetSender, ends_in_token
from alknet.core.quic.timers import Deadlines, Timer
from alknet.errors import Denied, Malformed, Unavailable

__all__ = ["QuicAcceptor", "QuicEndpoint"]

log = logging.getLogger(__name__)

# Datagrams that wait for a full socket buffer; past it they are lost, as on any network.
MAX_UNSENT = 4_096
# A closing connection answers packets 1, 2, 4, 8 ... with its close again (RFC 9000 sec. 10.2.1).
MAX_CLOSE_REPEATS = 8
# A deadline that has passed although its connection was just served is looked at again after
# this, the granularity of RFC 9002 sec. 6.1.2: an engine that is stuck must not stop the clock.
GRANULARITY_S = 0.001
# An engine that raises on a peer's bytes is logged with its traceback this often, then counted.
MAX_LOGGED_ERRORS = 20


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
        self,
        socket: DatagramSocket,
        *,
        limits: Limits,
        acceptor: QuicAcceptor | None = None,
        reset_key: ResetKey | None = None,
    ) -> None:
        """Take over *socket*.

        Args:
            reset_key: Of the endpoint that was here before, so that its connections can be reset;
                a fresh one if None.
        """
        self.limits = limits
        self.counters: Counter[str] = Counter()
        self._socket = socket
        self._acceptor = acceptor
        self._is_accepting = acceptor is not None
        self._is_closed = False
        self._routes: dict[bytes, QuicConnection] = {}
        self._connections: dict[QuicConnection, _Entry] = {}
        self._timers: Deadlines[QuicConnection] = Deadlines()
        self._timer_changed = trio.Event()
        self._dirty: dict[QuicConnection, None] = {}
        self._flush_wanted = trio.Event()
        self._unsent: deque[tuple[bytes, NetworkPath]] = deque()
        self._half_open = 0
        self._retry = QuicRetryTokenHandler()
        self._reset_key = reset_key or ResetKey()
        self._resets = ResetSender(self._reset_key, CID_LENGTH)
        self._peers: PeersByAddress[QuicConnection] = PeersByAddress()

    @property
    def local_address(self) -> Address:
        return self._socket.local_address

    @property
    def connections(self) -> Sequence[QuicConnection]:
        """All connections, those in their closing period included."""
        return tuple(self._connections)

    def stop_accepting(self) -> None:
        """Refuse new connections from now on, at once; existing ones go on."""
        self._is_accepting = False

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
            OSError: The address names an interface that does not exist.
            ValueError: The address is not a literal one.
            trio.ClosedResourceError: The endpoint is closed.
        """
        if self._is_closed:
            raise trio.ClosedResourceError("this endpoint is closed")
        address = canonical_address(address)
        engine = client_engine(
            policy,
            alpn=alpn,
            server_name=server_name,
            limits=self.limits,
            reset_key=self._reset_key,
        )
        connection = QuicConnection(self, engine, is_dialer=True, address=address)
        self._add(connection, address, engine.host_cid)
        engine.connect(address, trio.current_time())
        self.schedule(connection)
        try:
            await connection.wait_confirmed()
        except BaseException:
            connection.close(CloseCode.OK, "dial abandoned")
            raise
        return connection

    def on_unreachable(self, address: Address) -> None:
        """ICMP says that nobody listens there: give up dials to it, not connections."""
        for connection in list(self._connections):
            if connection.is_dialer and not connection.is_established:
                connection.on_unreachable(address)

    # from connections

    def schedule(self, connection: QuicConnection) -> None:
        """Send for *connection* in this tick's pass."""
        if connection in self._connections:
            self._dirty[connection] = None
            self._flush_wanted.set()

    def add_route(self, cid: bytes, connection: QuicConnection) -> None:
        """Lead packets with that connection ID to *connection*, if it is still known."""
        if (entry := self._connections.get(connection)) is not None:
            self._routes[cid] = connection
            entry.cids.add(cid)

    def remove_route(self, cid: bytes) -> None:
        """Forget a connection ID that the peer has retired."""
        connection = self._routes.pop(cid, None)
        if connection is not None and (entry := self._connections.get(connection)) is not None:
            entry.cids.discard(cid)

    def on_moved(self, connection: QuicConnection, address: Address) -> None:
        """The peer is at another address from now on."""
        if (entry := self._connections.get(connection)) is not None:
            self._peers.discard(entry.address, connection)
            self._peers.add(address, connection)
            entry.address = address

    def remove(self, connection: QuicConnection) -> None:
        """The closing period is over: nothing will be sent or routed any more."""
        entry = self._connections.pop(connection, None)
        if entry is not None:
            self._end_handshake(entry)
            self._timers.forget(entry.timer)
            self._peers.discard(entry.address, connection)
            for cid in entry.cids:
                self._routes.pop(cid, None)
        self._dirty.pop(connection, None)

    def on_established(self, connection: QuicConnection) -> None:
        """The handshake is complete: hand an accepted connection over, unless we stop."""
        self._end_handshake(self._connections[connection])
        if connection.is_dialer or self._acceptor is None:
            return
        if self._is_accepting:
            self._acceptor.on_connection(connection)
        else:
            connection.close(CloseCode.SHUTDOWN, "shutting down")

    def on_ended(self, connection: QuicConnection) -> None:
        """The connection has ended, perhaps amid its handshake, which counts no more."""
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
                self._serve(connection, now)

    def _feed(self, data: bytes, address: NetworkPath, now: float) -> QuicConnection | None:
        if not data:
            self.counters["empty"] += 1
            return None
        if data[0] & 0x80:
            return self._feed_long(data, address, now)
        connection = self._routes.get(data[1 : 1 + CID_LENGTH])
        if connection is not None:
            return self._deliver(connection, data, address, now)
        if (connection := self._reset_by(data, address[:2], now)) is None:
            self._answer_unknown(data, address, now)
        return connection

    def _feed_long(self, data: bytes, address: NetworkPath, now: float) -> QuicConnection | None:
        try:
            invariants = packets.read_invariants_untrusted(data)
            connection = self._routes.get(invariants.destination_cid)
            if connection is not None:
                return self._deliver(connection, data, address, now)
            if (connection := self._reset_by(data, address[:2], now)) is not None:
                return connection
            if self._acceptor is None:
                self.counters["stray"] += 1
                return None
            answer = packets.encode_version_negotiation(invariants, len(data))
            if answer is not None:
                self.counters["version_negotiation"] += 1
                self._send(answer, address)
                return None
            header = packets.read_header_untrusted(data)
        except Malformed:
            if (connection := self._reset_by(data, address[:2], now)) is None:
                self.counters["malformed"] += 1
            return connection
        connection = self._accept(self._acceptor, header, data, address, now)
        return self._deliver_first(connection, data, address, now) if connection else None

    def _deliver(
        self, connection: QuicConnection, data: bytes, address: NetworkPath, now: float
    ) -> QuicConnection:
        if connection.is_dialer:  # the system chooses its way, which may change
            address = address[:2]
        if connection.close_reason is not None:
            self._repeat_close(connection, len(data), address)
        engine = connection.engine
        before = engine.packets_received
        try:
            engine.receive_datagram(data, address, now)
        except Exception as exc:  # noqa: BLE001  # boundary: aioquic's bug, one connection's end
            self._log_engine_error(connection, exc)
            connection.on_engine_error()
        if engine.packets_received == before:
            self._try_reset(connection, data, address[:2], now)
        connection.on_received(now)
        return connection

    def _deliver_first(
        self, connection: QuicConnection, data: bytes, address: NetworkPath, now: float
    ) -> QuicConnection | None:
        """Deliver an Initial; one that does not decrypt leaves no connection behind."""
        self._deliver(connection, data, address, now)
        if connection.engine.has_begun or connection.close_reason is not None:
            return connection
        self.counters["undecryptable"] += 1
        self.remove(connection)
        return None

    # stateless reset

    def _reset_by(self, data: bytes, address: Address, now: float) -> QuicConnection | None:
        """Return the connection that a datagram of no connection has reset."""
        for connection in self._peers.candidates(address, now):
            if self._try_reset(connection, data, address, now):
                return connection
        return None

    def _try_reset(
        self, connection: QuicConnection, data: bytes, address: Address, now: float
    ) -> bool:
        entry = self._connections.get(connection)
        if entry is None or entry.address != address:
            return False
        if not ends_in_token(data, connection.engine.peer_reset_token):
            return False
        self.counters["stateless_reset_received"] += 1
        connection.engine.on_stateless_reset(now)
        return True

    def _answer_unknown(self, data: bytes, address: NetworkPath, now: float) -> None:
        if self._acceptor is None or not self._resets.deserves(data):
            self.counters["unknown_connection_id"] += 1
        elif (answer := self._resets.answer(data, now)) is None:
            self.counters["stateless_reset_withheld"] += 1
        else:
            self.counters["stateless_reset_sent"] += 1
            self._send(answer, address)

    # accepting

    def _accept(
        self,
        acceptor: QuicAcceptor,
        header: QuicHeader,
        data: bytes,
        address: NetworkPath,
        now: float,
    ) -> QuicConnection | None:
        if not packets.is_acceptable_initial(header, len(data)):
            self.counters["stray"] += 1
            return None
        if not self._is_accepting:
            self._refuse(header, address)
            return None
        try:
            original_cid, retry_cid = self._validate_address(header, address, now)
            return self._begin(acceptor, header, address, original_cid, retry_cid)
        except _Answered:
            return None
        except (Denied, Unavailable):
            self._refuse(header, address)
            return None

    def _refuse(self, header: QuicHeader, address: NetworkPath) -> None:
        self.counters["refused"] += 1
        self._send(packets.encode_refusal(header), address)

    def _begin(
        self,
        acceptor: QuicAcceptor,
        header: QuicHeader,
        address: NetworkPath,
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
                reset_key=self._reset_key,
            )
            connection = QuicConnection(self, engine, is_dialer=False, address=address)
            entry = self._add(connection, address[:2], engine.host_cid, header.destination_cid)
            entry.admission = stack.pop_all()
        self._half_open += 1
        return connection

    def _validate_address(
        self, header: QuicHeader, address: NetworkPath, now: float
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
        self._send(packets.encode_retry(header, address[:2], self._retry, now), address)
        raise _Answered

    def _add(self, connection: QuicConnection, address: Address, *cids: bytes) -> _Entry:
        entry = self._connections[connection] = _Entry(connection, address)
        self._peers.add(address, connection)
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
                if not self._send_unsent():  # a full device queue (ENOBUFS) looks writable
                    await trio.sleep(GRANULARITY_S)
            now = trio.current_time()
            dirty, self._dirty = self._dirty, {}
            for connection in dirty:
                self._serve(connection, now)

    def _serve(self, connection: QuicConnection, now: float) -> None:
        """After any change: tell those who wait, send what can be sent, set the timer."""
        connection.handle_events()
        if connection not in self._connections:
            return
        self._dirty.pop(connection, None)  # this pass takes all that it has
        try:
            self._transmit(connection, now)
        except Exception as exc:  # noqa: BLE001  # boundary: aioquic's bug, one connection's end
            self._give_up(connection, exc)
            return
        if connection.engine.has_events:  # sending issues connection IDs: they need routes now
            connection.handle_events()
        connection.on_transmitted()
        self._arm(connection, now)

    def _transmit(self, connection: QuicConnection, now: float) -> None:
        if not connection.engine.has_keys:
            return
        datagrams = connection.engine.datagrams_to_send(now)
        if not datagrams:
            return
        self._send_batch(datagrams)
        if connection.close_reason is not None:
            self._connections[connection].close_datagrams = datagrams

    def _give_up(self, connection: QuicConnection, exc: Exception) -> None:
        """The engine cannot even close any more: forget it; the peer will time out."""
        self._log_engine_error(connection, exc)
        connection.on_engine_error()
        self.remove(connection)
        connection.on_abandoned()

    def _log_engine_error(self, connection: QuicConnection, exc: Exception) -> None:
        self.counters["engine_error"] += 1
        if self.counters["engine_error"] <= MAX_LOGGED_ERRORS:
            address = connection.remote_address
            log.error("quic.engine_error", extra={"address": address}, exc_info=exc)

    def _send(self, data: bytes, address: NetworkPath) -> None:
        self._send_batch([(data, address)])

    def _send_batch(self, batch: Sequence[tuple[bytes, NetworkPath]]) -> None:
        """Send, behind what waits already; what the socket does not take waits too."""
        try:
            taken = 0 if self._unsent else self._socket.send_batch(batch)
        except trio.ClosedResourceError:  # the reader meets it too, and ends the endpoint
            return
        if taken == len(batch):
            return
        end = taken + MAX_UNSENT - len(self._unsent)
        self._unsent.extend(batch[taken:end])
        self.counters["send_buffer_full"] += len(batch[end:])
        self._flush_wanted.set()

    def _send_unsent(self) -> bool:
        """Send what waits, as far as it goes; return whether anything went."""
        before = len(self._unsent)
        while self._unsent:
            batch = list(islice(self._unsent, MAX_BATCH))
            taken = self._socket.send_batch(batch)
            for _ in range(taken):
                self._unsent.popleft()
            if taken < len(batch):
                break
        return len(self._unsent) < before

    def _repeat_close(
        self, connection: QuicConnection, received: int, address: NetworkPath
    ) -> None:
        entry = self._connections.get(connection)
        if entry is None or not entry.close_datagrams:
            return
        entry.after_close += 1
        is_power_of_two = entry.after_close & (entry.after_close - 1) == 0
        if not is_power_of_two or entry.after_close >= 2**MAX_CLOSE_REPEATS:
            return
        size = sum(len(data) for data, _ in entry.close_datagrams)
        if connection.engine.may_repeat_close(received, address, size):
            self._send_batch(entry.close_datagrams)

    # timers

    def _arm(self, connection: QuicConnection, now: float) -> None:
        entry = self._connections.get(connection)
        when = connection.next_timer()
        if entry is None or when is None:
            return
        if self._timers.arm(entry.timer, when if when > now else now + GRANULARITY_S):
            self._timer_changed.set()

    async def _watch_timers(self) -> None:
        while True:
            now = trio.current_time()
            for connection in self._timers.due(now):
                self._fire(connection, now)
            deadline = self._timers.next_at
            with trio.move_on_at(math.inf if deadline is None else deadline):
                await self._timer_changed.wait()
            self._timer_changed = trio.Event()
            await trio.lowlevel.checkpoint()

    def _fire(self, connection: QuicConnection, now: float) -> None:
        try:
            connection.handle_timer(now)
        except Exception as exc:  # noqa: BLE001  # boundary: aioquic's bug, one connection's end
            self._give_up(connection, exc)
        else:
            self._serve(connection, now)

    # the end

    def _abandon_all(self) -> None:
        now = trio.current_time()
        for connection in list(self._connections):
            connection.close(CloseCode.SHUTDOWN, "shutting down")
            self._serve(connection, now)
            self.remove(connection)
            connection.on_abandoned()
        self._is_closed = True


class _Answered(Exception):
    """A stateless answer was sent; there is nothing to begin."""


class _Entry:
    """What the endpoint keeps about one connection."""

    __slots__ = ("address", "admission", "after_close", "cids", "close_datagrams", "timer")

    def __init__(self, connection: QuicConnection, address: Address) -> None:
        self.address = address
        self.cids: set[bytes] = set()
        self.timer = Timer(connection)
        self.admission: ExitStack | None = None
        self.close_datagrams: Sequence[tuple[bytes, NetworkPath]] = ()
        self.after_close = 0
