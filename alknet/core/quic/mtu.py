"""Path MTU discovery by probes (RFC 9000 sec. 14.3, RFC 8899); aioquic sends 1200 bytes for ever.

Theory of operation. A connection that has sent something worth it asks for more: a packet of PING
and PADDING, one size up, in a datagram of its own. Its acknowledgement raises the size of all
packets; three losses of it end the search at the size below, for ten minutes. The loss of a probe
says nothing about congestion, so probes are not in flight for congestion control.

A path may shrink later, without a word. Two signs of that: nothing at all is acknowledged any
more (two PTOs), or full packets are lost again and again, in which case a probe of the size in
use tells a lossy path from a black hole. Then, and when the peer has moved, all begins at 1200.

A peer that has moved to another host is on another path: what congestion control and the round-trip
estimate knew is about the old one (RFC 9000 sec. 9.4), and aioquic would go on with it.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Sequence
from typing import Any, cast

from aioquic._buffer import Buffer
from aioquic.quic.connection import NetworkAddress, QuicNetworkPath
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.tls import Epoch

from alknet.core.quic.congestion import CongestionControl
from alknet.core.quic.flow import FlowControlled

__all__ = ["BASE_BYTES", "DiscoversMtu", "Search", "probe_sizes"]

# What every path of QUIC takes (RFC 9000 sec. 14.1).
BASE_BYTES = 1200
# Links on the way: WireGuard and other tunnels, Ethernet; loopback and its like beyond.
LINK_BYTES = (1_420, 1_500)
JUMBO_LINK_BYTES = 9_000
IPV4_OVERHEAD, IPV6_OVERHEAD = 20 + 8, 40 + 8
# aioquic writes lengths of STREAM frames in two bytes: 16,383 at most.
MAX_BYTES = 16_000
# RFC 8899 sec. 5.1.2: MAX_PROBES and PMTU_RAISE_TIMER.
MAX_PROBES = 3
RAISE_TIMER_S = 600.0
# A connection that has sent less than this, handshake included, need not know.
WORTH_BYTES = 16 * 1024
# Full packets lost before it is asked whether the path still takes any: 1 % of overhead at most.
SUSPICIOUS_LOSSES = 8
# PTOs in a row after which the packets themselves may be what does not arrive.
SUSPICIOUS_PTOS = 2
MAX_UDP_PAYLOAD_SIZE = 0x03  # RFC 9000 sec. 18.2
UDP_PAYLOAD_BYTES = 65_527


class Search:
    """Which size to try next, on one path.

    Attributes:
        size: What the path is known to take.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        """Begin at `BASE_BYTES` and try *sizes*, which ascend."""
        self.size = BASE_BYTES
        self._sizes = sizes
        self._next = 0
        self._losses = 0
        self._is_probing = False
        self._is_verifying = False
        self._resumes_at = 0.0

    def probe(self, now: float) -> int | None:
        """Return the size of the probe to send now, if one is due."""
        if self._is_probing:
            return None
        if self._is_verifying:
            return self.size
        if self._next == len(self._sizes) or now < self._resumes_at:
            return None
        return self._sizes[self._next]

    def verify(self) -> None:
        """Find out whether the path still takes `size`."""
        if self.size > BASE_BYTES and not self._is_verifying:
            self._is_verifying = True
            self._losses = 0

    def on_sent(self) -> None:
        """The probe is on its way."""
        self._is_probing = True

    def on_acknowledged(self, size: int) -> None:
        """The probe of *size* has arrived."""
        self._is_probing = self._is_verifying = False
        self._losses = 0
        if size > self.size:
            self.size = size
            self._next += 1

    def on_lost(self, now: float) -> None:
        """The probe has not."""
        self._is_probing = False
        self._losses += 1
        if self._losses < MAX_PROBES:
            return
        if self._is_verifying:
            self.fall_back()
        else:
            self._losses = 0
            self._resumes_at = now + RAISE_TIMER_S

    def fall_back(self) -> None:
        """The path takes no full packets any more: begin anew."""
        self.size = BASE_BYTES
        self._next = self._losses = 0
        self._is_verifying = False
        self._resumes_at = 0.0


class DiscoversMtu(FlowControlled):
    """A connection whose packets become as long as its path takes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._search: Search | None = None
        self._searched_path: QuicNetworkPath | None = None
        self._measured_path: QuicNetworkPath | None = None
        self._has_sent_datagrams = False
        self._known_losses = 0
        self._peer_takes = UDP_PAYLOAD_BYTES
        super().__init__(*args, **kwargs)

    @property
    def path_mtu(self) -> int:
        """The longest UDP payload that is sent now."""
        return self._max_datagram_size

    def send_datagram_frame(self, data: bytes) -> None:
        """Queue a DATAGRAM frame; who sends some wants to send longer ones."""
        self._has_sent_datagrams = True
        super().send_datagram_frame(data)

    def on_pass(self, now: float) -> None:
        """A send pass begins: go back to short packets if the path calls for it."""
        super().on_pass(now)
        path = self._network_paths[0]
        if path is not self._measured_path and path.is_validated:
            self._measure_anew(path, now)
        search = self._search
        if search is None:
            return
        if path is not self._searched_path:
            self._search = None
            self._resize(BASE_BYTES)
        elif search.size > BASE_BYTES:
            self._watch(search)

    def _measure_anew(self, path: QuicNetworkPath, now: float) -> None:
        """Forget what is known of another path; a NAT that chooses another port makes none."""
        known, self._measured_path = self._measured_path, path
        if known is None or known.addr[0] == path.addr[0]:
            return
        loss = self._loss
        loss._cc = self._congestion.successor(self._max_datagram_size, now)
        loss._rtt_initialized = False
        loss._rtt_min, loss._rtt_latest = math.inf, 0.0
        loss._rtt_smoothed = loss._rtt_variance = 0.0
        loss._pacer.packet_time = None
        self._hot_inbound = None  # the short way takes the round trip for known

    def _watch(self, search: Search) -> None:
        if self._loss._pto_count >= SUSPICIOUS_PTOS:
            search.fall_back()
            self._resize(BASE_BYTES)
        losses = self._congestion.full_losses
        if losses - self._known_losses >= SUSPICIOUS_LOSSES:
            self._known_losses = losses
            search.verify()

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """Build what can be sent now, as in aioquic, and a probe if one is due."""
        datagrams = super().datagrams_to_send(now)
        if self._handshake_confirmed and self._close_event is None:
            # Without any acknowledgement a loss would say nothing about the size.
            search = self._search or self._begin_search()
            if search is not None and not self._loss._pto_count:
                size = search.probe(now)
                if size is not None:
                    datagrams += self._probe(search, size, now)
        return datagrams

    def _begin_search(self) -> Search | None:
        path = self._network_paths[0]
        if not path.is_validated:
            return None
        if path.bytes_sent < WORTH_BYTES and not self._has_sent_datagrams:
            return None
        longest = min(self._peer_takes, self._limits.udp_payload_bytes)
        self._search = Search(probe_sizes(path.addr[0], longest))
        self._searched_path = path
        self._known_losses = self._congestion.full_losses
        return self._search

    def _probe(self, search: Search, size: int, now: float) -> list[tuple[bytes, NetworkAddress]]:
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=self._is_client,
            max_datagram_size=size,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            quic_logger=self._quic_logger,
            spin_bit=self._spin_bit,
            version=self._version or 0,  # short headers have none
        )
        builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[Epoch.ONE_RTT])
        buf = builder.start_frame(
            QuicFrameType.PING, handler=self._on_probe_delivery, handler_args=(search, size)
        )
        buf.push_bytes(bytes(builder.remaining_buffer_space))  # PADDING
        assert builder._packet is not None
        builder._packet.in_flight = False
        search.on_sent()
        datagrams = self._flush_builder(
            builder=builder,
            network_path=self._network_paths[0],
            peer_cid=self._peer_cid.cid,
            now=now,
        )
        # Acknowledgements are due for it all the same: the PTO counts from here.
        self._loss._time_of_last_sent_ack_eliciting_packet = now
        return datagrams

    def _on_probe_delivery(self, delivery: QuicDeliveryState, search: Search, size: int) -> None:
        if delivery is QuicDeliveryState.ACKED:
            search.on_acknowledged(size)
        else:
            search.on_lost(self._pass_at)
        if search is self._search and search.size != self._max_datagram_size:
            self._resize(search.size)

    def _resize(self, size: int) -> None:
        self._max_datagram_size = size
        self._loss._pacer._max_datagram_size = size
        self._congestion.resize(size)
        self._known_losses = self._congestion.full_losses

    @property
    def _congestion(self) -> CongestionControl:
        return cast(CongestionControl, self._loss._cc)

    def _send_probing_frames(
        self, network_path: QuicNetworkPath, now: float
    ) -> list[tuple[bytes, NetworkAddress]]:
        # What is known of one path says nothing about another.
        size, self._max_datagram_size = self._max_datagram_size, BASE_BYTES
        try:
            return super()._send_probing_frames(network_path, now)
        finally:
            self._max_datagram_size = size

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        self._peer_takes = announced_payload(data)


def probe_sizes(host: str, at_most: int) -> tuple[int, ...]:
    """Return the sizes worth a try on the way to *host*, ascending.

    Args:
        host: A literal address, perhaps with a zone.
        at_most: What the peer takes (its max_udp_payload_size).
    """
    ip = ipaddress.ip_address(host.partition("%")[0])
    overhead = IPV4_OVERHEAD if ip.version == 4 else IPV6_OVERHEAD
    sizes = [link - overhead for link in LINK_BYTES]
    if ip.is_loopback:
        sizes += [JUMBO_LINK_BYTES - overhead, MAX_BYTES]
    top = min(sizes[-1], at_most)
    if top <= BASE_BYTES:
        return ()
    return (*(size for size in sizes if size < top), top)


def announced_payload(parameters: bytes) -> int:
    """Find max_udp_payload_size among transport parameters that aioquic has found well-formed."""
    buf = Buffer(data=parameters)
    while not buf.eof():
        kind, length = buf.pull_uint_var(), buf.pull_uint_var()
        if kind == MAX_UDP_PAYLOAD_SIZE:
            return max(BASE_BYTES, min(buf.pull_uint_var(), UDP_PAYLOAD_BYTES))
        buf.seek(buf.tell() + length)
    return UDP_PAYLOAD_BYTES
