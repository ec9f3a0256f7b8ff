"""Where each datagram belongs: to a connection, to nobody yet, or to nobody any more.

Stray datagrams never raise; they are counted, and some are answered (`packets`, `reset`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from alknet.core.quic import packets
from alknet.core.quic.cids import CID_LENGTH
from alknet.core.quic.engine import COLD_UNITS
from alknet.core.quic.inbox import Inbox
from alknet.core.quic.reset import ResetSender, ends_in_token
from alknet.errors import Malformed

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator, Sequence

    from alknet.core.datagram import Address, NetworkPath
    from alknet.core.quic.accepting import Accepting
    from alknet.core.quic.cids import ConnectionIds
    from alknet.core.quic.connection import QuicConnection
    from alknet.core.quic.endpoint import QuicEndpoint
    from alknet.core.quic.inbox import Datagram
    from alknet.core.quic.outbox import Outbox
    from alknet.core.quic.table import ConnectionTable, Entry

__all__ = ["Receiving", "log_engine_error"]

log = logging.getLogger(__name__)

# A closing connection answers packets 1, 2, 4, 8 ... with its close again (RFC 9000 sec. 10.2.1).
MAX_CLOSE_REPEATS = 8
# The first bit of a packet with a long header: of a handshake, or of another version.
LONG_FORM = 0x80
# An engine that raises on a peer's bytes is logged with its traceback this often, then counted.
MAX_LOGGED_ERRORS = 20
# What is handled before the socket is looked at again, in units of a plain packet (6 us). Who is
# known waits no longer than a round for their turn, whatever others send; a batch of plain packets
# that the kernel has joined (127) is one round.
ROUND_UNITS = 128
# A turn of what has waited; newcomers have one a round together.
TURN_UNITS = 64
# Serving a connection: events, a look at its timers, an acknowledgement.
VISIT_UNITS = 2
# A packet of nobody. One that takes a handshake further costs a turn; one that begins it, a round.
STRAY_UNITS = 4
# Packets of newcomers that wait: 6 ms of Retries. A client that is not answered asks again.
MAX_NEWCOMERS = 256


class Receiving:
    """Feeds datagrams to the engines of their connections, in turns, and answers strays."""

    def __init__(
        self,
        endpoint: QuicEndpoint,
        table: ConnectionTable,
        outbox: Outbox,
        cids: ConnectionIds,
        accepting: Accepting | None,
    ) -> None:
        self._endpoint = endpoint
        self._counters = endpoint.counters
        self._table = table
        self._outbox = outbox
        self._accepting = accepting
        self._resets = ResetSender(cids.token, CID_LENGTH)
        # None is the flow of all newcomers together: addresses can be forged.
        self._inbox: Inbox[Entry | None] = Inbox(endpoint.counters)

    @property
    def has_waiting(self) -> bool:
        """Something waits for `work_off`."""
        return bool(self._inbox)

    def feed(self, batch: Sequence[Datagram], now: float) -> Iterator[QuicConnection]:
        """Take datagrams and handle a round's worth of them, known connections' alone.

        Those of peers come first, then those of whom there are few; the rest waits for `work_off`.
        Yields each connection when it is to be served, before the next one has its turn.
        """
        left = ROUND_UNITS
        for entry, datagrams in self._sort(batch):
            if left <= 0 or entry in self._inbox:
                self._inbox.put(entry, datagrams)
                continue
            spent, handled = self._feed_known(entry, datagrams, left, now)
            left -= spent
            if handled < len(datagrams):
                self._inbox.put(entry, datagrams[handled:])
            yield entry.connection

    def work_off(self, now: float) -> Iterator[QuicConnection]:
        """Let what waits have a turn each, as long as the round lasts; yields as `feed` does."""
        left = ROUND_UNITS
        for _ in range(self._inbox.flow_count):
            if left <= 0 or not self._inbox:
                break
            flow, queue = self._inbox.pop()
            units = min(left, TURN_UNITS)
            if flow is not None:
                spent, handled = self._feed_known(flow, queue, units, now)
                left -= spent
                for _ in range(handled):
                    queue.popleft()
                yield flow.connection
            while flow is None and units > 0 and queue:
                data, address = queue.popleft()
                spent, entry = self._feed_newcomer(data, address, now)
                units -= spent
                left -= spent
                if entry is not None:
                    entry.connection.on_received(now)
                    yield entry.connection
            self._inbox.put_back(flow, queue)

    def forget(self, entry: Entry) -> None:
        """The connection is gone: so is what waits for it."""
        self._inbox.forget(entry)

    def _sort(self, batch: Sequence[Datagram]) -> Iterable[tuple[Entry, list[Datagram]]]:
        routes = self._table.routes
        known: dict[Entry, list[Datagram]] = {}
        for datagram in batch:
            data = datagram[0]
            if not data:
                self._counters["empty"] += 1
                continue
            cid = data[1 : 1 + CID_LENGTH] if data[0] < LONG_FORM else long_header_cid(data)
            entry = routes.get(cid)
            if entry is not None and entry.connection.is_settled:
                known.setdefault(entry, []).append(datagram)
            else:
                self._inbox.put(None, (datagram,), at_most=MAX_NEWCOMERS)
        return known.items() if len(known) < 2 else sorted(known.items(), key=_urgency)

    def _feed_known(
        self, entry: Entry, datagrams: Iterable[Datagram], units: int, now: float
    ) -> tuple[int, int]:
        """Deliver *datagrams* until *units* are spent; return how many were, and of how many."""
        spent, handled = VISIT_UNITS, 0
        is_known = entry.connection in self._table.entries  # or has it ended in this very round?
        for data, address in datagrams:
            if spent >= units:
                break
            handled += 1
            if is_known:
                spent += self._deliver(entry, data, address, now)
        entry.connection.on_received(now)
        return spent, handled

    def _feed_newcomer(
        self, data: bytes, address: NetworkPath, now: float
    ) -> tuple[int, Entry | None]:
        """Handle a packet of no connection, or of one whose handshake goes on.

        Returns its cost, and the connection that is to be served for it.
        """
        known = len(self._table.entries)
        if data[0] >= LONG_FORM:
            entry = self._feed_long(data, address, now)
        elif (entry := self._table.routes.get(data[1 : 1 + CID_LENGTH])) is not None:
            self._deliver(entry, data, address, now)
        elif (entry := self._reset_by(data, address[:2], now)) is None:
            self._answer_unknown(data, address, now)
        if len(self._table.entries) > known:
            return ROUND_UNITS, entry
        return (STRAY_UNITS if entry is None else TURN_UNITS), entry

    def _feed_long(self, data: bytes, address: NetworkPath, now: float) -> Entry | None:
        try:
            invariants = packets.read_invariants_untrusted(data)
            entry = self._table.routes.get(invariants.destination_cid)
            if entry is not None:
                self._deliver(entry, data, address, now)
                return entry
            if (entry := self._reset_by(data, address[:2], now)) is not None:
                return entry
            if self._accepting is None:
                self._counters["stray"] += 1
                return None
            answer = packets.encode_version_negotiation(invariants, len(data))
            if answer is not None:
                if self._accepting.may_answer(now):
                    self._counters["version_negotiation"] += 1
                    self._outbox.send(answer, address)
                return None
            header = packets.read_header_untrusted(data)
        except Malformed:
            if (entry := self._reset_by(data, address[:2], now)) is None:
                self._counters["malformed"] += 1
            return entry
        entry = self._accepting.begin(header, data, address, now)
        return self._deliver_first(entry, data, address, now) if entry else None

    def _deliver(self, entry: Entry, data: bytes, address: NetworkPath, now: float) -> int:
        """Give *data* to the engine of *entry*; return what that has cost, in units."""
        connection = entry.connection
        if connection.is_dialer:  # the system chooses its way, which may change
            address = address[:2]
        if connection.close_reason is not None:
            self._repeat_close(entry, len(data), address)
        connection.received_bytes += len(data)
        engine = connection.engine
        cost = COLD_UNITS
        before = engine.packets_received
        try:
            cost = engine.receive_and_count(data, address, now)
        except Exception as exc:  # noqa: BLE001  # boundary: aioquic's bug, one connection's end
            log_engine_error(self._counters, connection, exc)
            connection.on_engine_error()
        if engine.packets_received == before:
            self._try_reset(entry, data, address[:2], now)
        return cost

    def _deliver_first(
        self, entry: Entry, data: bytes, address: NetworkPath, now: float
    ) -> Entry | None:
        """Deliver an Initial; one that aioquic does not take leaves no connection behind."""
        self._deliver(entry, data, address, now)
        connection = entry.connection
        if connection.engine.has_begun or connection.close_reason is not None:
            return entry
        self._counters["undecryptable"] += 1
        self._endpoint.remove(connection)
        return None

    def _repeat_close(self, entry: Entry, received: int, address: NetworkPath) -> None:
        if not entry.close_datagrams:
            return
        entry.after_close += 1
        is_power_of_two = entry.after_close & (entry.after_close - 1) == 0
        if not is_power_of_two or entry.after_close >= 2**MAX_CLOSE_REPEATS:
            return
        size = sum(len(data) for data, _ in entry.close_datagrams)
        if entry.connection.engine.may_repeat_close(received, address, size):
            self._outbox.send_batch(entry.close_datagrams)

    # stateless reset

    def _reset_by(self, data: bytes, address: Address, now: float) -> Entry | None:
        """Return the connection that a datagram of no connection has reset."""
        for entry in self._table.peers_at(address, now):
            if self._try_reset(entry, data, address, now):
                return entry
        return None

    def _try_reset(self, entry: Entry, data: bytes, address: Address, now: float) -> bool:
        if entry.address != address:
            return False
        engine = entry.connection.engine
        if not ends_in_token(data, engine.peer_reset_token):
            return False
        self._counters["stateless_reset_received"] += 1
        engine.on_stateless_reset(now)
        return True

    def _answer_unknown(self, data: bytes, address: NetworkPath, now: float) -> None:
        if self._accepting is None or not self._resets.deserves(data):
            self._counters["unknown_connection_id"] += 1
        elif (answer := self._resets.answer(data, now)) is None:
            self._counters["stateless_reset_withheld"] += 1
        else:
            self._counters["stateless_reset_sent"] += 1
            self._outbox.send(answer, address)


def long_header_cid(data: bytes) -> bytes:
    """Return the destination connection ID of a long header, as much as there is (RFC 8999)."""
    return data[6 : 6 + data[5]] if len(data) > 5 else b""


def _urgency(known: tuple[Entry, list[Datagram]]) -> tuple[bool, int]:
    """Order flows of one batch: those of peers, then the short ones, before the others."""
    return not known[0].connection.is_known, len(known[1])


def log_engine_error(counters: Counter[str], connection: QuicConnection, exc: Exception) -> None:
    """Count an exception of an engine, and log the first few with their tracebacks."""
    counters["engine_error"] += 1
    if counters["engine_error"] <= MAX_LOGGED_ERRORS:
        log.error("quic.engine_error", extra={"address": connection.remote_address}, exc_info=exc)
