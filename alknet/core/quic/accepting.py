"""Taking connections: admission, address validation, refusal (RFC 9000 sec. 8.1 and 5.2.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from aioquic.quic.retry import QuicRetryTokenHandler

from alknet.core.contracts import CloseCode
from alknet.core.datagram import format_address
from alknet.core.identity import ANONYMOUS
from alknet.core.quic import packets
from alknet.core.quic.churn import VIOLATION_COSTS, Churn
from alknet.core.quic.connection import QuicConnection
from alknet.core.quic.engine import server_engine
from alknet.core.quic.reset import Budget
from alknet.errors import Denied, Malformed, Unavailable

if TYPE_CHECKING:
    from aioquic.quic.packet import QuicHeader

    from alknet.core.datagram import NetworkPath
    from alknet.core.quic.cids import ConnectionIds
    from alknet.core.quic.endpoint import QuicEndpoint
    from alknet.core.quic.handshake import ServerPolicy
    from alknet.core.quic.outbox import Outbox
    from alknet.core.quic.table import ConnectionTable, Entry

__all__ = ["Accepting", "QuicAcceptor"]

# Handshakes that addresses which are not proven may begin and not end, per second and at once: each
# takes 2 ms of key exchange and signing, for which every other packet waits, so of a hundred calls
# a flood delays two. Above it clients prove their addresses first, as above the limit of half-open
# ones: a Retry costs a hundredth of that. A handshake that succeeds gives its place back at once.
UNPROVEN_PER_S = 10.0
UNPROVEN_AT_ONCE = 50.0
# Retries and version negotiations per second and at once: 25 us each with all around them, a tenth
# of a core. The first packets above that are dropped, and honest clients send theirs again. A
# refusal counts as three, for it is sealed with keys made for it alone.
ANSWERS_PER_S = 4_000.0
ANSWERS_AT_ONCE = 200.0
REFUSAL_COSTS = 3.0


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


class Accepting:
    """Decides what the first packet of a connection begins, and counts handshakes.

    Attributes:
        half_open: Handshakes in progress.
        is_open: New connections are taken; they are refused otherwise.
    """

    def __init__(
        self,
        endpoint: QuicEndpoint,
        acceptor: QuicAcceptor,
        table: ConnectionTable,
        outbox: Outbox,
        cids: ConnectionIds,
    ) -> None:
        self.half_open = 0
        self.is_open = True
        self._endpoint = endpoint
        self._acceptor = acceptor
        self._table = table
        self._outbox = outbox
        self._cids = cids
        self._retry = QuicRetryTokenHandler()
        self._churn = Churn()
        self._answers = Budget(ANSWERS_PER_S, at_once=ANSWERS_AT_ONCE)
        self._unproven = Budget(UNPROVEN_PER_S, at_once=UNPROVEN_AT_ONCE)

    def begin(
        self, header: QuicHeader, datagram: bytes, address: NetworkPath, now: float
    ) -> Entry | None:
        """Make the connection that a first *datagram* asks for.

        None if there is none to make: it was answered without one, or not at all.
        """
        if not packets.is_acceptable_initial(header, len(datagram)):
            self._endpoint.counters["stray"] += 1
            return None
        if self._churn.is_worn_out(address, self._endpoint.limits.connections_per_address, now):
            self._endpoint.counters["worn_out"] += 1
            return None
        if not self.is_open:
            self._refuse(header, address, now)
            return None
        try:
            original_cid, retry_cid = self._validate_address(header, address, now)
            keys = packets.open_first_untrusted(header, datagram)
            entry = self._begin(header, address, original_cid, retry_cid)
        except _Answered:
            return None
        except Malformed:
            self._endpoint.counters["undecryptable"] += 1
            return None
        except (Denied, Unavailable):
            self._refuse(header, address, now)
            return None
        entry.connection.engine.first_keys = keys
        return entry

    def charge(self, entry: Entry, now: float) -> None:
        """Count the end of a connection that was accepted, against a stranger's address."""
        connection, reason = entry.connection, entry.connection.close_reason
        if entry.proven_at is None or connection.identity is not ANONYMOUS or reason is None:
            return
        is_fault = reason.code != 0 if reason.is_transport else reason.code == CloseCode.PROTOCOL
        cost = VIOLATION_COSTS if is_fault and not reason.by_peer else 1.0
        limit = self._endpoint.limits.connections_per_address
        self._churn.charge(entry.proven_at, cost, limit, now)

    def hand_over(self, connection: QuicConnection) -> bool:
        """Give a connection whose handshake is complete to its handler; False if we stop."""
        self._unproven.give_back()
        if self.is_open:
            self._acceptor.on_connection(connection)
        return self.is_open

    def end_handshake(self, entry: Entry) -> None:
        """The handshake is over, one way or the other: it counts no more. Idempotent."""
        if entry.admission is not None:
            self.half_open -= 1
            entry.admission.close()
            entry.admission = None

    def may_answer(self, now: float, cost: float = 1.0) -> bool:
        """Whether the second's budget has an answer left for those who have no connection."""
        if self._answers.take(now, cost):
            return True
        self._endpoint.counters["answer_withheld"] += 1
        return False

    def _validate_address(
        self, header: QuicHeader, address: NetworkPath, now: float
    ) -> tuple[bytes, bytes | None]:
        """Ask for a Retry (RFC 9000 sec. 8.1.2) while many handshakes are half open, or begin."""
        if header.token:
            with suppress(ValueError):
                original = self._retry.validate_token(
                    address=address,
                    destination_cid=header.destination_cid,
                    token=header.token,
                    now=now,
                )
                return original, header.destination_cid
        is_calm = self.half_open < self._endpoint.limits.half_open_before_retry
        if is_calm and self._unproven.take(now):
            return header.destination_cid, None
        if not self.may_answer(now):
            raise _Answered
        self._endpoint.counters["retry"] += 1
        cid = self._cids.new()
        self._outbox.send(packets.encode_retry(header, address[:2], self._retry, cid, now), address)
        raise _Answered

    def _begin(
        self,
        header: QuicHeader,
        address: NetworkPath,
        original_cid: bytes,
        retry_cid: bytes | None,
    ) -> Entry:
        with ExitStack() as stack:
            stack.enter_context(self._acceptor.admit(format_address(address)))
            engine = server_engine(
                self._acceptor.policy,
                alpns=self._acceptor.alpns(),
                limits=self._endpoint.limits,
                original_destination_cid=original_cid,
                retry_source_cid=retry_cid,
                cids=self._cids,
                qlog=self._endpoint.qlog,
                budget=self._endpoint.budget,
            )
            connection = QuicConnection(self._endpoint, engine, is_dialer=False, address=address)
            cids = engine.host_cid, header.destination_cid
            entry = self._table.add(connection, address[:2], *cids)
            entry.admission = stack.pop_all()
        self.half_open += 1
        return entry

    def _refuse(self, header: QuicHeader, address: NetworkPath, now: float) -> None:
        self._endpoint.counters["refused"] += 1
        if self.may_answer(now, REFUSAL_COSTS):
            self._outbox.send(packets.encode_refusal(header), address)


class _Answered(Exception):
    """A stateless answer was sent, or withheld; there is nothing to begin."""
