"""Where each datagram belongs: to a connection, to nobody yet, or to nobody any more.

Stray datagrams never raise; they are counted, and some are answered (`packets`, `reset`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from alknet.core.quic import packets
from alknet.core.quic.cids import CID_LENGTH
from alknet.core.quic.reset import ResetSender, ends_in_token
from alknet.errors import Malformed

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from alknet.core.datagram import Address, NetworkPath
    from alknet.core.quic.accepting import Accepting
    from alknet.core.quic.cids import ConnectionIds
    from alknet.core.quic.connection import QuicConnection
    from alknet.core.quic.endpoint import QuicEndpoint
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


class Receiving:
    """Feeds datagrams to the engines of their connections and answers strays."""

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

    def feed(
        self, batch: Sequence[tuple[bytes, NetworkPath]], now: float
    ) -> dict[QuicConnection, None]:
        """Take datagrams; return the connections that are to be served for them."""
        routes = self._table.routes
        touched: dict[QuicConnection, None] = {}
        for data, address in batch:
            is_short = bool(data) and data[0] < LONG_FORM
            entry = routes.get(data[1 : 1 + CID_LENGTH]) if is_short else None
            if entry is not None:
                self._deliver(entry, data, address, now)
            else:
                entry = self._feed_rare(data, address, now)
            if entry is not None:
                touched[entry.connection] = None
        for connection in touched:
            connection.on_received(now)
        return touched

    def _feed_rare(self, data: bytes, address: NetworkPath, now: float) -> Entry | None:
        if not data:
            self._counters["empty"] += 1
            return None
        if data[0] >= LONG_FORM:
            return self._feed_long(data, address, now)
        if (entry := self._reset_by(data, address[:2], now)) is None:
            self._answer_unknown(data, address, now)
        return entry

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

    def _deliver(self, entry: Entry, data: bytes, address: NetworkPath, now: float) -> None:
        connection = entry.connection
        if connection.is_dialer:  # the system chooses its way, which may change
            address = address[:2]
        if connection.close_reason is not None:
            self._repeat_close(entry, len(data), address)
        connection.received_bytes += len(data)
        engine = connection.engine
        before = engine.packets_received
        try:
            engine.receive_datagram(data, address, now)
        except Exception as exc:  # noqa: BLE001  # boundary: aioquic's bug, one connection's end
            log_engine_error(self._counters, connection, exc)
            connection.on_engine_error()
        if engine.packets_received == before:
            self._try_reset(entry, data, address[:2], now)

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


def log_engine_error(counters: Counter[str], connection: QuicConnection, exc: Exception) -> None:
    """Count an exception of an engine, and log the first few with their tracebacks."""
    counters["engine_error"] += 1
    if counters["engine_error"] <= MAX_LOGGED_ERRORS:
        log.error("quic.engine_error", extra={"address": connection.remote_address}, exc_info=exc)
