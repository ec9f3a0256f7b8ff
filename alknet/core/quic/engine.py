"""aioquic's `QuicConnection` with what it lacks, and the only place that knows its private names.

Added: raw public keys (`handshake`), flow control that follows the reader instead of the
sender (`flow`), bounds against hostile peers (`bounds`), and plain questions about buffers, limits
and closing.

`alknet.core.quic.seams` fails the import when an aioquic release has lost one of the names, and
tests/core/quic/test_engine.py is the contract that each release must pass.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from enum import Enum
from typing import Any, cast

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.base import K_GRANULARITY
from aioquic.quic.connection import (
    NetworkAddress,
    QuicConnectionError,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.crypto import next_key_phase
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.quic.stream import QuicStream

from alknet.core.budget import MemoryBudget
from alknet.core.contracts import MAX_REASON_BYTES, cut_utf8
from alknet.core.identity import NodeId
from alknet.core.limits import Limits
from alknet.core.quic import congestion, seams
from alknet.core.quic.acks import ACK_DELAY_S, AckPolicy
from alknet.core.quic.cids import CID_LENGTH, ConnectionIds
from alknet.core.quic.handshake import ClientPolicy, KeyContext, ServerPolicy
from alknet.core.quic.mtu import DiscoversMtu
from alknet.core.quic.pacing import BurstPacer
from alknet.core.quic.qlog import QlogDirectory
from alknet.core.quic.windows import first_windows

__all__ = [
    "COLD_UNITS",
    "EVENT_UNITS",
    "Closing",
    "Engine",
    "client_engine",
    "server_engine",
]

# aioquic warns about every peer that misbehaves; the close reason says the same, where it belongs.
logging.getLogger("quic").addHandler(logging.NullHandler())

# The DATAGRAM frame size that we take from peers (RFC 9221 sec. 3: 65535 = any).
MAX_DATAGRAM_FRAME_SIZE = 65_535
# 1-RTT header byte, packet number, AEAD tag, and the DATAGRAM frame's type and length.
DATAGRAM_OVERHEAD = 1 + 2 + 16 + 3
# Room for a long chain of certificates. aioquic keeps 512 KiB, allocated by the offset in one
# frame: 1,000 half-open handshakes would hold half a gigabyte.
MAX_CRYPTO_BYTES = 64 * 1024
# CONNECTION_CLOSE must fit: an application's (`MAX_REASON_BYTES`) goes into one packet of 1200
# bytes, a transport's into an Initial (with a token) and a Handshake packet that share them.
# aioquic raises otherwise.
MAX_TRANSPORT_REASON_BYTES = 256
# In units of a plain packet received (6 us): one that goes aioquic's own way, with the answer that
# does too; and each event of a packet beyond the first, as of a stream that is opened and reset.
COLD_UNITS, EVENT_UNITS = 16, 12
RESET_REASON = "stateless reset: the peer has lost its state"


class Closing(Enum):
    """Who is ending the connection."""

    NO = 0
    BY_US = 1
    BY_PEER = 2


class Engine(DiscoversMtu):
    """One QUIC connection, sans-IO: time comes in as ``now``, see aioquic's `QuicConnection`."""

    def __init__(
        self,
        configuration: QuicConfiguration,
        policy: ServerPolicy | ClientPolicy,
        limits: Limits,
        *,
        cids: ConnectionIds | None = None,
        budget: MemoryBudget | None = None,
        **connection_ids: Any,
    ) -> None:
        self._cids = cids or ConnectionIds()
        self._acks = AckPolicy()
        self._policy = policy
        self._datagram_limit = sys.maxsize
        self._is_closed_by_peer = False
        self._cold_packets = 0
        # The key phase that we know of: its secret, and a packet that was sent in it.
        self._phase_secret: bytes | None = None
        self._first_of_phase = 0
        budget = budget or MemoryBudget(limits.buffered_bytes_total)
        super().__init__(limits, budget, configuration=configuration, **connection_ids)
        first = self._host_cids[0]
        first.cid = self._cids.new()
        self.host_cid = self._local_initial_source_connection_id = first.cid
        if not self._is_client:  # clients cannot give their first connection ID a token
            first.stateless_reset_token = self._cids.token(first.cid)
        self._loss._pacer = BurstPacer(max_datagram_size=configuration.max_datagram_size)

    # TLS: aioquic assigns a new context in `_initialize`, again after Retry and version change.

    @property
    def tls(self) -> KeyContext:
        """The TLS context, turned into ours when aioquic sets it."""
        return cast(KeyContext, self.__dict__["tls"])

    @tls.setter
    def tls(self, context: tls.Context) -> None:
        base = context.__dict__.pop("handshake_extensions")
        context.__class__ = KeyContext
        context = cast(KeyContext, context)
        context.adopt(self._policy)
        context.handshake_extensions = base
        self.__dict__["tls"] = context

    @property
    def peer_key(self) -> NodeId | None:
        """The peer's key, once its possession is proven."""
        return self.tls.peer_key

    @property
    def server_name(self) -> str | None:
        """The SNI that the client sent, if any."""
        return self.tls.server_name

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(start)
        if end > MAX_CRYPTO_BYTES:
            raise QuicConnectionError(
                QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, "a handshake of that size"
            )
        super()._handle_crypto_frame(context, frame_type, buf)

    # what receiving costs

    def receive_and_count(self, data: bytes, addr: NetworkAddress, now: float) -> int:
        """Take a datagram as `receive_datagram` does; return what that has cost, in units."""
        cold, events = self._cold_packets, len(self._events)
        self.receive_datagram(data, addr, now)
        more_events = len(self._events) - events - 1
        cost = 1 + COLD_UNITS * (self._cold_packets - cold)
        return cost + EVENT_UNITS * more_events if more_events > 0 else cost

    def _receive_rare(self, data: bytes, addr: NetworkAddress, now: float) -> None:
        self._cold_packets += 1
        super()._receive_rare(data, addr, now)

    # state

    def close(
        self, error_code: int = 0, frame_type: int | None = None, reason_phrase: str = ""
    ) -> None:
        """Begin to close, as in aioquic; a reason that no packet could hold is cut."""
        longest = MAX_REASON_BYTES if frame_type is None else MAX_TRANSPORT_REASON_BYTES
        super().close(error_code, frame_type, cut_utf8(reason_phrase, longest))

    @property
    def closing(self) -> Closing:
        """Who has begun to end the connection; known long before `ConnectionTerminated`."""
        if self._close_event is None:
            return Closing.NO
        return Closing.BY_PEER if self._is_closed_by_peer else Closing.BY_US

    def _close_begin(self, is_initiator: bool, now: float) -> None:
        self._is_closed_by_peer = not is_initiator
        super()._close_begin(is_initiator, now)

    def end_log(self) -> None:
        """Nothing more will happen: complete the qlog file, if one is written."""
        trace, directory = self._quic_logger, self._configuration.quic_logger
        if trace is not None and directory is not None:
            self._quic_logger = self._loss._quic_logger = None
            directory.end_trace(trace)

    @property
    def close_event(self) -> events.ConnectionTerminated | None:
        """Why the connection is closing, None while it is not."""
        return self._close_event

    @property
    def is_confirmed(self) -> bool:
        """The handshake is confirmed (RFC 9001 sec. 4.1.2): a client's key was accepted."""
        return self._handshake_confirmed

    @property
    def has_begun(self) -> bool:
        """A packet of the peer was decrypted: it is no random datagram that brought us here."""
        return self._state is not QuicConnectionState.FIRSTFLIGHT

    @property
    def has_events(self) -> bool:
        """`next_event` has something to tell."""
        return bool(self._events)

    @property
    def idle_timeout_s(self) -> float:
        """The idle time-out in force: the smaller of ours and the peer's (RFC 9000 sec. 10.1)."""
        return min(self._idle_timeout(), self._most_quiet_s)

    def _idle_timeout(self) -> float:
        if self._remote_max_idle_timeout == 0:  # "disabled", which aioquic takes for "at once"
            self._remote_max_idle_timeout = None
        return super()._idle_timeout()

    @property
    def has_keys(self) -> bool:
        """A first packet was processed, so that closing can be said to somebody."""
        return bool(self._network_paths) and bool(self._cryptos)

    @property
    def packets_sent(self) -> int:
        """Packets that were built so far."""
        return self._packet_number

    @property
    def is_quiet(self) -> bool:
        """Everything given to streams was acknowledged (or will never be sent)."""
        return all(
            stream.sender.is_finished
            or (
                stream.sender.buffer_is_empty
                and not stream.sender.reset_pending
                and stream.sender._buffer_stop == stream.sender._buffer_start
                and not _awaits_fin(stream)
            )
            for stream in self._streams.values()
        )

    @property
    def max_datagram_payload(self) -> int:
        """The longest DATAGRAM payload that fits one packet now and the peer takes; 0 for none.

        A longer one would stay at the head of aioquic's queue for ever.
        """
        peer = self._remote_max_datagram_frame_size
        if not peer:
            return 0
        fits = self._max_datagram_size - DATAGRAM_OVERHEAD - len(self._peer_cid.cid)
        return max(0, min(fits, peer - 3))

    def drop_oldest_datagrams(self, at_most: int) -> None:
        """Keep at most *at_most* unsent DATAGRAM frames."""
        while len(self._datagrams_pending) > at_most:
            self._datagrams_pending.popleft()

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """Build what can be sent now, as in aioquic."""
        self.on_pass(now)
        self._bound_patience(now)
        if self._datagrams_pending:
            self._drop_oversized_datagrams()
        if not self._handshake_confirmed:
            return super().datagrams_to_send(now)
        space, received = self._spaces[tls.Epoch.ONE_RTT], self._local_max_data.used
        if space.ack_at is not None and self._acks.is_due(space, received):
            space.ack_at = min(space.ack_at, now - K_GRANULARITY)
        datagrams = super().datagrams_to_send(now)
        if space.ack_at is None:
            self._acks.on_acknowledged(space, received)
        return datagrams

    def _confirm_handshake(self) -> None:
        super()._confirm_handshake()
        self._ack_delay = ACK_DELAY_S

    def _drop_oversized_datagrams(self) -> None:
        # The peer may have switched us to a longer connection ID since they were accepted.
        longest = self.max_datagram_payload
        if longest < self._datagram_limit:
            fitting = [data for data in self._datagrams_pending if len(data) <= longest]
            self._datagrams_pending.clear()
            self._datagrams_pending.extend(fitting)
        self._datagram_limit = longest

    def update_keys(self) -> bool:
        """Begin a key update if one is allowed now; return whether it was.

        RFC 9001 sec. 6.1 wants a packet of the current phase acknowledged first, which aioquic
        does not check; a peer that does ends the connection.
        """
        if not self._handshake_confirmed:
            return False
        crypto = self._cryptos[tls.Epoch.ONE_RTT]
        if crypto._update_key_requested:
            return False
        if crypto.send.secret != self._phase_secret:
            # The first time, or the peer has updated: who knows when. It begins now for us.
            self._phase_secret = crypto.send.secret
            self._first_of_phase = self._packet_number
        if self._spaces[tls.Epoch.ONE_RTT].largest_acked_packet < self._first_of_phase:
            return False
        self.request_key_update()
        self._phase_secret = next_key_phase(crypto.send).secret
        self._first_of_phase = self._packet_number
        return True

    # connection IDs

    def _replenish_connection_ids(self) -> None:
        known = len(self._host_cids)
        super()._replenish_connection_ids()
        for connection_id in self._host_cids[known:]:
            connection_id.cid = self._cids.new()  # nobody has seen aioquic's
            connection_id.stateless_reset_token = self._cids.token(connection_id.cid)

    # stateless reset; aioquic makes random tokens, never sends a reset and never looks for one

    @property
    def peer_reset_token(self) -> bytes | None:
        """What the peer would reset this connection with, if it has said so.

        That of the connection ID in use: tokens of others must not count (RFC 9000 sec. 10.3.1).
        """
        return self._peer_cid.stateless_reset_token or None

    def on_stateless_reset(self, now: float) -> None:
        """The peer has lost its state: end at once and send nothing more."""
        if self._close_event is not None:
            return
        self._close_event = events.ConnectionTerminated(
            error_code=QuicErrorCode.NO_ERROR,
            frame_type=QuicFrameType.PADDING,
            reason_phrase=RESET_REASON,
        )
        self._close_begin(is_initiator=False, now=now)

    # streams

    def can_open(self, *, unidirectional: bool) -> bool:
        """The peer's MAX_STREAMS has room for one more stream of ours."""
        if unidirectional:
            return self._local_next_stream_id_uni // 4 < self._remote_max_streams_uni
        return self._local_next_stream_id_bidi // 4 < self._remote_max_streams_bidi

    def open_stream(self, *, unidirectional: bool) -> int:
        """Reserve and return the next stream id; call `can_open` first."""
        stream_id = self.get_next_available_stream_id(is_unidirectional=unidirectional)
        self.send_stream_data(stream_id, b"")
        return stream_id

    def unacknowledged(self, stream_id: int) -> int:
        """Bytes of the stream that were accepted for sending and not yet acknowledged."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.sender.is_finished:
            return 0
        return stream.sender._buffer_stop - stream.sender._buffer_start

    @property
    def stream_count(self) -> int:
        """Streams that aioquic has not forgotten."""
        return len(self._streams)

    def unacknowledged_in_all(self) -> int:
        """`unacknowledged`, of all streams together."""
        return sum(self.unacknowledged(stream_id) for stream_id in self._streams)

    def stop_receiving(self, stream_id: int, code: int) -> None:
        """Send STOP_SENDING unless all of the stream has arrived."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            self.stop_stream(stream_id, code)


def client_engine(
    policy: ClientPolicy,
    *,
    alpn: str,
    server_name: str | None,
    limits: Limits,
    cids: ConnectionIds | None = None,
    qlog: QlogDirectory | None = None,
    budget: MemoryBudget | None = None,
) -> Engine:
    """Make the dialling side; *server_name* is sent as SNI."""
    budget = budget or MemoryBudget(limits.buffered_bytes_total)
    configuration = _configuration(limits, budget, is_client=True, alpns=[alpn])
    configuration.quic_logger = qlog
    configuration.server_name = server_name
    return Engine(configuration, policy, limits, cids=cids, budget=budget)


def server_engine(  # noqa: PLR0913  what an endpoint's engines share, all named
    policy: ServerPolicy,
    *,
    alpns: Sequence[str],
    limits: Limits,
    original_destination_cid: bytes,
    retry_source_cid: bytes | None = None,
    cids: ConnectionIds | None = None,
    qlog: QlogDirectory | None = None,
    budget: MemoryBudget | None = None,
) -> Engine:
    """Make the accepting side; the client's first packet went to *original_destination_cid*."""
    budget = budget or MemoryBudget(limits.buffered_bytes_total)
    configuration = _configuration(limits, budget, is_client=False, alpns=list(alpns))
    configuration.quic_logger = qlog
    # The constructor wants both; `ServerPolicy.choose` sets the real ones per ClientHello.
    configuration.certificate = configuration.private_key = object()
    return Engine(
        configuration,
        policy,
        limits,
        cids=cids,
        budget=budget,
        original_destination_connection_id=original_destination_cid,
        retry_source_connection_id=retry_source_cid,
    )


def _configuration(
    limits: Limits, budget: MemoryBudget, *, is_client: bool, alpns: list[str]
) -> QuicConfiguration:
    stream_window, connection_window = first_windows(limits, budget)
    return QuicConfiguration(
        alpn_protocols=alpns,
        connection_id_length=CID_LENGTH,
        congestion_control_algorithm=congestion.NAME,
        idle_timeout=limits.idle_timeout_s,
        is_client=is_client,
        max_data=connection_window,
        max_stream_data=stream_window,
        max_datagram_frame_size=MAX_DATAGRAM_FRAME_SIZE,
    )


def _awaits_fin(stream: QuicStream) -> bool:
    return stream.sender._buffer_fin is not None and not stream.sender._acked_fin


seams.require()
