"""A UDP socket full of QUIC connections: routing, timers, and one send pass per tick.

Four tasks, none of which ever waits for application code:

* the *reader* drains the socket, feeds each datagram to its connection's engine, and lets the
  connection handle its events and send before the next one has its turn;
* the *waiting room* is for what a round of the reader has no time for, and for all newcomers
  (`receiving`): a round of it for each of the reader's;
* the *timer* sleeps until the earliest of all connections' deadlines (`timers`);
* the *flusher* sends for connections to which the application has given something; all that was
  given in one tick leaves in one pass. What nothing will join (`Stream.send_now`) leaves at once,
  while nobody waits for a turn. A connection that has more than its turn takes is queued again
  behind the others, and after a round of turns the other tasks run.

Stray datagrams never raise; they are counted in `counters`.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import trio

from alknet.core.budget import MemoryBudget
from alknet.core.contracts import CloseCode
from alknet.core.datagram import Address, DatagramSocket, NetworkPath, canonical_address
from alknet.core.limits import Limits
from alknet.core.quic.accepting import Accepting, QuicAcceptor
from alknet.core.quic.cids import ConnectionIds
from alknet.core.quic.connection import QuicConnection
from alknet.core.quic.engine import client_engine
from alknet.core.quic.handshake import ClientPolicy
from alknet.core.quic.outbox import Outbox
from alknet.core.quic.qlog import QlogDirectory
from alknet.core.quic.receiving import Receiving, log_engine_error
from alknet.core.quic.reset import ResetKey
from alknet.core.quic.table import ConnectionTable, Entry
from alknet.core.quic.timers import Deadlines
from alknet.core.quic.wakeups import Alarm, Doorbell

__all__ = ["QuicAcceptor", "QuicEndpoint"]

# A deadline that has passed although its connection was just served is looked at again after
# this, the granularity of RFC 9002 sec. 6.1.2: an engine that is stuck must not stop the clock.
GRANULARITY_S = 0.001
# Deadlines further off than this (acknowledgements held back, probe and idle time-outs) come in
# ticks, so that those of many connections wake the timer task once. Nobody can tell: such a timer
# may be late by as much on any busy loop, and the ACK delay leaves room for it.
FAR_S, TICK_S = 0.010, 0.004
# Timers that fire before the reader and all other tasks have their turn: one that sends the packets
# of a handshake again takes 0.2 ms, and those of a flood come due together.
MAX_FIRED = 4
# Datagrams that are sent before the reader and all other tasks have their turn: about a
# millisecond's work, of which one connection takes `MAX_PACKETS_PER_PASS` at most.
ROUND_PACKETS = 128


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
        qlog: QlogDirectory | None = None,
        budget: MemoryBudget | None = None,
        shard: int = 0,
    ) -> None:
        """Take over *socket*.

        Args:
            reset_key: Of the endpoint that was here before, so that its connections can be reset;
                a fresh one if None.
            qlog: Where connections are logged; its `QlogDirectory.run` is the caller's affair.
            budget: For what all connections hold, if shared with other endpoints.
            shard: Which of the processes that share the address this is: in each connection ID.
        """
        self.limits = limits
        self.budget = budget or MemoryBudget(limits.buffered_bytes_total)
        self.counters: Counter[str] = Counter()
        self._socket = socket
        self.qlog = qlog
        self._cids = ConnectionIds(reset_key, shard=shard)
        self._is_closed = False
        self._timers: Deadlines[QuicConnection] = Deadlines()
        self._alarm = Alarm()
        self._dirty: OrderedDict[QuicConnection, None] = OrderedDict()
        self._flush_wanted = Doorbell()
        self._waiting = Doorbell()
        self._table = ConnectionTable()
        self._outbox = Outbox(socket, self.counters, self._flush_wanted.ring)
        self._accepting = (
            None
            if acceptor is None
            else Accepting(self, acceptor, self._table, self._outbox, self._cids)
        )
        self._receiving = Receiving(self, self._table, self._outbox, self._cids, self._accepting)

    @property
    def local_address(self) -> Address:
        return self._socket.local_address

    @property
    def connections(self) -> Sequence[QuicConnection]:
        """All connections, those in their closing period included."""
        return tuple(self._table.entries)

    def stop_accepting(self) -> None:
        """Refuse new connections from now on, at once; existing ones go on."""
        if self._accepting is not None:
            self._accepting.is_open = False

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
                nursery.start_soon(self._work_off, name="quic waiting room")
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
            cids=self._cids,
            qlog=self.qlog,
            budget=self.budget,
        )
        connection = QuicConnection(self, engine, is_dialer=True, address=address)
        self._table.add(connection, address, engine.host_cid)
        engine.connect(address, trio.current_time())
        self.schedule(connection)
        try:
            await connection.wait_confirmed()
        except BaseException:  # raised again: nobody else knows the connection
            connection.close(CloseCode.OK, "dial abandoned")
            raise
        return connection

    def on_unreachable(self, address: Address) -> None:
        """ICMP says that nobody listens there: give up dials to it, not connections."""
        for connection in self.connections:
            if connection.is_dialer and not connection.is_established:
                connection.on_unreachable(address)

    # from connections

    def schedule(self, connection: QuicConnection) -> None:
        """Send for *connection* in this tick's pass."""
        if connection in self._table.entries:
            self._dirty[connection] = None
            self._flush_wanted.ring()

    def send_at_once(self, connection: QuicConnection) -> None:
        """Send for *connection* now, unless others wait for their turn: then `schedule` it.

        For what nothing else of this tick will join; never called from inside a pass.
        """
        if self._dirty or self._outbox or connection not in self._table.entries:
            self.schedule(connection)
        else:
            self._serve(connection, trio.current_time())

    def add_route(self, cid: bytes, connection: QuicConnection) -> None:
        """Lead packets with that connection ID to *connection*, if it is still known."""
        self._table.add_route(cid, connection)

    def remove_route(self, cid: bytes) -> None:
        """Forget a connection ID that the peer has retired."""
        self._table.remove_route(cid)

    def on_moved(self, connection: QuicConnection, address: Address) -> None:
        """The peer is at another address from now on."""
        self._table.move(connection, address)

    def remove(self, connection: QuicConnection) -> None:
        """The closing period is over: nothing will be sent or routed any more."""
        entry = self._table.remove(connection)
        if entry is not None:
            self._end_handshake(entry)
            self._receiving.forget(entry)
            self._timers.forget(entry.timer)
            connection.let_go()
        self._dirty.pop(connection, None)

    def on_established(self, connection: QuicConnection) -> None:
        """The handshake is complete: hand an accepted connection over, unless we stop."""
        entry = self._table.entries[connection]
        self._end_handshake(entry)
        if connection.is_dialer or self._accepting is None:
            return
        entry.proven_at = entry.address
        if not self._accepting.hand_over(connection):
            connection.close(CloseCode.SHUTDOWN, "shutting down")

    def on_ended(self, connection: QuicConnection) -> None:
        """The connection has ended, perhaps amid its handshake, which counts no more."""
        if (entry := self._table.entries.get(connection)) is not None:
            self._end_handshake(entry)
            if self._accepting is not None:
                self._accepting.charge(entry, trio.current_time())

    def _end_handshake(self, entry: Entry) -> None:
        if self._accepting is not None:
            self._accepting.end_handshake(entry)

    # receiving

    async def _read(self) -> None:
        while True:
            self._receive(await self._socket.receive())

    def _receive(self, batch: Sequence[tuple[bytes, NetworkPath]]) -> None:
        # Apart from the loop, whose variables would keep the last connections while it waits.
        now = trio.current_time()
        self._serve_received(self._receiving.feed(batch, now), now)

    async def _work_off(self) -> None:
        while True:
            await self._waiting.wait()
            self._receive_waiting()

    def _receive_waiting(self) -> None:
        now = trio.current_time()
        self._serve_received(self._receiving.work_off(now), now)

    def _serve_received(self, connections: Iterable[QuicConnection], now: float) -> None:
        self._serve_at_once(connections, now)
        if self._receiving.has_waiting:
            self._waiting.ring()

    # sending

    async def _flush(self) -> None:
        while True:
            await self._flush_wanted.wait()
            await self._outbox.drain()
            self._serve_dirty()

    def _serve_dirty(self) -> None:
        """Serve those who wait, a turn each, until a round is full; who has more waits again."""
        now = trio.current_time()
        left = ROUND_PACKETS
        for _ in range(len(self._dirty)):
            if left <= 0 or not self._dirty:
                break
            left -= self._serve(self._dirty.popitem(last=False)[0], now)
        if self._dirty:  # behind the reader, and all tasks that can run
            self._flush_wanted.ring()

    def _serve_at_once(self, connections: Iterable[QuicConnection], now: float) -> None:
        """Serve all, a round's worth at once; who waits for a turn already keeps its place."""
        left = ROUND_PACKETS
        for connection in connections:
            if left > 0 and connection not in self._dirty:
                left -= self._serve(connection, now)
            else:
                connection.handle_events()
                self.schedule(connection)

    def _serve(self, connection: QuicConnection, now: float) -> int:
        """After any change: tell those who wait, send what can be sent, set the timer.

        Returns the number of datagrams that were sent.
        """
        connection.handle_events()
        if (entry := self._table.entries.get(connection)) is None:
            return 0
        self._dirty.pop(connection, None)  # this pass takes what its turn allows
        try:
            sent = self._transmit(entry, now)
        except Exception as exc:  # noqa: BLE001  # boundary: aioquic's bug, one connection's end
            self._give_up(connection, exc)
            return 0
        if connection.engine.has_events:  # sending issues connection IDs: they need routes now
            connection.handle_events()
        connection.on_transmitted()
        self._arm(entry, now)
        if connection.engine.wants_another_pass:
            self.schedule(connection)
        return sent

    def _transmit(self, entry: Entry, now: float) -> int:
        connection = entry.connection
        if not connection.engine.has_keys:
            return 0
        datagrams = connection.engine.datagrams_to_send(now)
        if datagrams:
            self._outbox.send_batch(datagrams)
            if connection.close_reason is not None:
                entry.close_datagrams = datagrams
        return len(datagrams)

    def _give_up(self, connection: QuicConnection, exc: Exception) -> None:
        """The engine cannot even close any more: forget it; the peer will time out."""
        log_engine_error(self.counters, connection, exc)
        connection.on_engine_error()
        self.remove(connection)
        connection.on_abandoned()

    # timers

    def _arm(self, entry: Entry, now: float) -> None:
        when = entry.connection.next_timer()
        if when is None:
            return
        if when - now > FAR_S:
            when = math.ceil(when / TICK_S) * TICK_S
        elif when <= now:
            when = now + GRANULARITY_S
        if self._timers.arm(entry.timer, when):
            self._alarm.move(when)

    async def _watch_timers(self) -> None:
        while True:
            await self._alarm.sleep_until(self._timers.next_at)
            self._fire_due()

    def _fire_due(self) -> None:
        now = trio.current_time()
        fired = [c for c in self._timers.due(now, MAX_FIRED) if self._fire(c, now)]
        self._serve_at_once(fired, now)

    def _fire(self, connection: QuicConnection, now: float) -> bool:
        """Let *connection* do what is due; return whether it is to be served then."""
        when = connection.next_timer()
        if when is not None and when > now:  # moved since it was set, as most are
            self._arm(self._table.entries[connection], now)
            return False
        try:
            connection.handle_timer(now)
        except Exception as exc:  # noqa: BLE001  # boundary: aioquic's bug, one connection's end
            self._give_up(connection, exc)
            return False
        return True

    # the end

    def _abandon_all(self) -> None:
        now = trio.current_time()
        for connection in self.connections:
            connection.close(CloseCode.SHUTDOWN, "shutting down")
            self._serve(connection, now)
            self.remove(connection)
            connection.on_abandoned()
        self._is_closed = True
