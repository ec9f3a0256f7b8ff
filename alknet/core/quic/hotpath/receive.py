"""Receiving plain 1-RTT packets.

A packet is plain if it comes on the proven path in use of a confirmed connection, to a connection
ID in use, in the current key phase. What that means is worked out once, after each packet that went
aioquic's way (`_Inbound`); the next packets are compared with it, and leave it as it is: nothing
but a packet that is not plain changes the path or the connection IDs.

Of a plain packet, ACK frames, PADDING and STREAM frames that continue a stream are read here. Any
other frame is given to aioquic's handler for it, alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

from aioquic._buffer import Buffer, BufferReadError
from aioquic._crypto import AEAD, HeaderProtection
from aioquic.quic.congestion.base import K_GRANULARITY
from aioquic.quic.connection import (
    NetworkAddress,
    QuicConnectionError,
    QuicConnectionState,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.crypto import CryptoContext
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.packet import NON_ACK_ELICITING_FRAME_TYPES, QuicErrorCode, QuicFrameType
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStream, StreamFinishedError
from aioquic.tls import Epoch
from cryptography.exceptions import InvalidTag

from alknet.core.quic.bounds import BoundedConnection
from alknet.core.quic.hotpath.acks import (
    EIGHT_BYTES,
    FOUR_BYTES,
    acknowledge,
    read_ack_untrusted,
)

__all__ = ["HotReceive"]

ACK = int(QuicFrameType.ACK)
# The bits of the first byte that header protection covers, and what a plain packet has there.
PROTECTED_BITS = 0x1F
FIXED_BIT, SPIN_BIT, KEY_PHASE_SHIFT = 0x40, 0x20, 2
# Bytes from the end of the connection ID to the end of the sample (RFC 9001 sec. 5.4.2).
SAMPLE_START, SAMPLE_END = 4, 20
# Half the numbers that a packet number of 1 to 4 bytes can tell apart.
HALF_WINDOW = (0, 1 << 7, 1 << 15, 1 << 23, 1 << 31)
LARGEST_NUMBER = 1 << 62
NONCE_BYTES = 12

_from_bytes = int.from_bytes

_Handler = Callable[[QuicReceiveContext, int, Buffer], None]
_Handlers = dict[int, tuple[_Handler, frozenset[Epoch]]]


class HotReceive(BoundedConnection):
    """`receive_datagram` for plain packets."""

    is_hot = True
    """Whether plain packets take the short way; aioquic's own way otherwise, for comparison."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._packets_received = 0
        self._hot_inbound: _Inbound | None = None
        # Streams of which one direction has ended: sending looks whether both have.
        self._hot_ended: list[QuicStream] = []
        super().__init__(*args, **kwargs)

    @property
    def packets_received(self) -> int:
        """Packets that were decrypted and no duplicates."""
        return self._packets_received

    def receive_datagram(self, data: bytes, addr: NetworkAddress, now: float) -> None:
        """Handle an incoming datagram, as in aioquic."""
        inbound = self._hot_inbound
        if (
            inbound is None
            or not data.startswith(inbound.cid, 1)
            or addr != inbound.address
            or self._close_event is not None
            or inbound.crypto.aead is not inbound.aead
            or self._quic_logger is not None
            or len(data) < inbound.shortest
            or not self.is_hot
        ):
            self._receive_rare(data, addr, now)
            return
        offset = inbound.offset
        mask = inbound.mask(data[offset + SAMPLE_START : offset + SAMPLE_END])
        first = data[0] ^ (mask[0] & PROTECTED_BITS)
        head = inbound.heads.get(first)
        if head is None:
            self._receive_rare(data, addr, now)
            return
        # The packet number, RFC 9000 sec. A.3.
        length = (first & 3) + 1
        stop = offset + length
        if length == 2:  # what most send
            truncated = (data[offset] << 8 | data[offset + 1]) ^ (mask[1] << 8 | mask[2])
        else:
            truncated = _from_bytes(data[offset:stop]) ^ _from_bytes(mask[1 : length + 1])
        half = HALF_WINDOW[length]
        expected = inbound.space.expected_packet_number
        number = (expected & -2 * half) + truncated
        if number <= expected - half:
            if number < LARGEST_NUMBER - 2 * half:
                number += 2 * half
        elif number > expected + half and number >= 2 * half:
            number -= 2 * half
        try:
            plain = inbound.decrypt(
                (inbound.iv ^ number).to_bytes(NONCE_BYTES),
                data[stop:],
                head + truncated.to_bytes(length),
            )
        except InvalidTag:
            return
        self._accept(inbound, number, plain, bool(first & SPIN_BIT), now)

    def _accept(
        self, inbound: _Inbound, number: int, plain: bytes, spin_bit: bool, now: float
    ) -> None:
        space = inbound.space
        window = space.received_packets
        if number in window._received or number < window._lower:
            return
        if number > space.expected_packet_number:
            space.expected_packet_number = number + 1
        if number > self._spin_highest_pn:
            self._spin_highest_pn = number
            self._spin_bit = spin_bit != self._is_client
        self._packets_received += 1
        self._idle_frames = 0
        try:
            is_ack_eliciting = self._read_frames(inbound, plain, now)
        except QuicConnectionError as exc:
            self._logger.warning(exc)
            self.close(exc.error_code, exc.frame_type, exc.reason_phrase)
            return
        if self._state is not QuicConnectionState.CONNECTED:  # the peer has closed it
            return
        loss = self._loss
        if loss._rtt_smoothed != inbound.rtt_smoothed or loss._rtt_variance != inbound.rtt_variance:
            inbound.on_rtt(loss)
        self._close_at = now + inbound.idle_timeout_s
        self._ack_eliciting_sent_since_receipt = False
        inbound.record(number, now)
        if is_ack_eliciting and space.ack_at is None:
            space.ack_at = now + self._ack_delay

    def _receive_rare(self, data: bytes, addr: NetworkAddress, now: float) -> None:
        """Take aioquic's way, and look what the next plain packet is like."""
        self._hot_inbound = None
        super().receive_datagram(data, addr, now)
        if self.is_hot and self._handshake_confirmed and self._close_event is None:
            self._hot_inbound = self._look_ahead(data)

    def _look_ahead(self, data: bytes) -> _Inbound | None:
        """Return what makes a packet plain that is sent like *data*; None if nothing does."""
        path = self._network_paths[0]
        cid = data[1 : 1 + self._configuration.connection_id_length]
        if not path.is_validated or not self._loss._rtt_initialized:
            return None
        if not any(cid == active.cid for active in self._host_cids):
            return None
        if not self._is_client and (
            cid != self.host_cid or self._cryptos[Epoch.ZERO_RTT].recv.is_valid()
        ):
            return None
        agreed_s = self._configuration.idle_timeout
        if self._remote_max_idle_timeout:
            agreed_s = min(agreed_s, self._remote_max_idle_timeout)
        return _Inbound(
            path, cid, self._cryptos[Epoch.ONE_RTT].recv, self._spaces[Epoch.ONE_RTT], agreed_s
        )

    def _payload_received(
        self, context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False
    ) -> tuple[bool, bool]:
        self._packets_received += 1
        return super()._payload_received(context, plain, crypto_frame_required)

    # frames

    def _read_frames(self, inbound: _Inbound, plain: bytes, now: float) -> bool:
        """Handle the frames of a packet; return whether it elicits an acknowledgement."""
        end = len(plain)
        if not end:
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION,
                QuicFrameType.PADDING,
                "Packet contains no frames",
            )
        is_ack_eliciting = False
        pos = 0
        while pos < end:
            kind = plain[pos]
            if kind & 0xF8 == 8:
                is_ack_eliciting = True
                stop = self._read_stream(plain, pos, end)
                if stop:
                    pos = stop
                    continue
            elif kind == ACK:
                stop = self._read_ack(inbound.space, plain, pos, now)
                if stop:
                    pos = stop
                    continue
            elif not kind:
                pos = end - len(plain[pos:].lstrip(b"\0"))
                continue
            pos, elicits = self._read_rare(inbound, plain, pos, now)
            is_ack_eliciting |= elicits
        return is_ack_eliciting

    def _read_stream(self, plain: bytes, pos: int, end: int) -> int:
        """Take a STREAM frame that continues a stream within its limits; return where it ends.

        Returns 0 for any other, broken ones included, and has done nothing then.
        """
        kind = plain[pos]
        try:
            pos += 1
            stream_id = plain[pos]
            pos += 1
            if stream_id > 63:
                stream_id, pos = _long_integer(plain, pos - 1)
            offset = 0
            if kind & 4:
                offset = plain[pos]
                pos += 1
                if offset > 63:
                    offset, pos = _long_integer(plain, pos - 1)
            stop = end
            if kind & 2:
                length = plain[pos]
                pos += 1
                if length > 63:
                    length, pos = _long_integer(plain, pos - 1)
                stop = pos + length
        except IndexError:
            return 0
        stream = self._streams.get(stream_id)
        if stream is None or not pos < stop <= end:
            return 0
        receiver = stream.receiver
        limit = self._local_max_data
        used = limit.used + stop - pos
        reached = offset + stop - pos
        if (
            offset != receiver._buffer_start
            or offset != receiver.highest_offset
            or receiver.is_finished
            or reached > stream.max_stream_data_local
            or used > limit.value
        ):
            return 0
        limit.used = used
        receiver.highest_offset = receiver._buffer_start = reached
        is_last = kind & 1 == 1
        if is_last:
            receiver.is_finished = True
            receiver._final_size = reached
            self._hot_ended.append(stream)
        self._events.append(StreamDataReceived(plain[pos:stop], is_last, stream_id))
        return stop

    def _read_ack(self, space: QuicPacketSpace, plain: bytes, pos: int, now: float) -> int:
        """Take an ACK frame; return where it ends, or 0 for one that is broken or a lie."""
        ack = read_ack_untrusted(plain, pos + 1)
        if ack is None:
            return 0
        stop, ranges, delay = ack
        if ranges[-1][1] >= self._packet_number:
            return 0
        self._count_idle(ACK)
        delay_s = (delay << self._remote_ack_delay_exponent) / 1_000_000
        acknowledge(self._loss, space, ranges, delay_s, now)
        return stop

    def _read_rare(self, inbound: _Inbound, plain: bytes, pos: int, now: float) -> tuple[int, bool]:
        """Let aioquic handle the frame at *pos*; return its end and whether it elicits an ACK."""
        buf = Buffer(data=plain)
        buf.seek(pos)
        try:
            frame_type = buf.pull_uint_var()
        except BufferReadError:
            raise _violation(None, "Malformed frame type") from None
        handlers: _Handlers = self.__dict__["_QuicConnection__frame_handlers"]
        if frame_type not in handlers:
            raise _violation(frame_type, "Unknown frame type")
        context = QuicReceiveContext(
            epoch=Epoch.ONE_RTT,
            host_cid=inbound.cid,
            network_path=inbound.path,
            quic_logger_frames=None,
            time=now,
            version=None,
        )
        handle, _ = handlers[frame_type]  # all are allowed in 1-RTT packets
        try:
            handle(context, frame_type, buf)
        except BufferReadError:
            raise _violation(frame_type, "Failed to parse frame") from None
        except StreamFinishedError:
            pass
        if frame_type == QuicFrameType.RETIRE_CONNECTION_ID:
            self._hot_inbound = None
        return buf.tell(), frame_type not in NON_ACK_ELICITING_FRAME_TYPES


def _long_integer(plain: bytes, pos: int) -> tuple[int, int]:
    """Read a variable-length integer of 2 bytes or more; return it and its end.

    The end may be beyond *plain*; the integer is nothing then.
    """
    value = plain[pos]
    if value < 128:
        return (value & 63) << 8 | plain[pos + 1], pos + 2
    if value < 192:
        return _from_bytes(plain[pos : pos + 4]) & FOUR_BYTES, pos + 4
    return _from_bytes(plain[pos : pos + 8]) & EIGHT_BYTES, pos + 8


def _violation(frame_type: int | None, reason: str) -> QuicConnectionError:
    known = cast(int, frame_type)  # aioquic closes with None, too
    return QuicConnectionError(QuicErrorCode.FRAME_ENCODING_ERROR, known, reason)


class _Inbound:
    """What plain packets have in common, and what they need, within reach."""

    __slots__ = (
        "_agreed_s",
        "ack_ranges",
        "address",
        "aead",
        "cid",
        "crypto",
        "decrypt",
        "heads",
        "idle_timeout_s",
        "iv",
        "mask",
        "offset",
        "path",
        "rtt_smoothed",
        "rtt_variance",
        "shortest",
        "space",
    )

    def __init__(
        self,
        path: QuicNetworkPath,
        cid: bytes,
        crypto: CryptoContext,
        space: QuicPacketSpace,
        agreed_idle_timeout_s: float,
    ) -> None:
        self.path, self.address, self.cid = path, path.addr, cid
        self.crypto, self.space = crypto, space
        self.aead = cast(AEAD, crypto.aead)
        self.decrypt, self.iv = self.aead._aead.decrypt, self.aead._iv
        # AES takes the sample as it is; ChaCha20 takes it for a nonce (RFC 9001 sec. 5.4).
        hp = cast(HeaderProtection, crypto.hp)
        self.mask = hp._mask if hp._is_chacha20 else hp._encryptor.update
        self.offset = 1 + len(cid)
        self.shortest = self.offset + SAMPLE_END
        self.ack_ranges: list[range] = space.ack_queue.__dict__["_RangeSet__ranges"]
        # The first byte as it must be once its protection is removed, with what follows it.
        fixed = FIXED_BIT | crypto.key_phase << KEY_PHASE_SHIFT
        self.heads = {
            first: bytes([first]) + cid
            for spin in (0, SPIN_BIT)
            for first in range(fixed | spin, (fixed | spin) + 4)
        }
        self.idle_timeout_s = self._agreed_s = agreed_idle_timeout_s
        self.rtt_smoothed = self.rtt_variance = math.nan  # whatever it is, it is new

    def on_rtt(self, loss: QuicPacketRecovery) -> None:
        """Work out the idle time-out (RFC 9000 sec. 10.1), which follows the round trip."""
        self.rtt_smoothed, self.rtt_variance = loss._rtt_smoothed, loss._rtt_variance
        probe_s = self.rtt_smoothed + max(4 * self.rtt_variance, K_GRANULARITY)
        self.idle_timeout_s = max(self._agreed_s, 3 * (probe_s + loss.max_ack_delay))

    def record(self, number: int, now: float) -> None:
        """Remember a packet, to acknowledge it and to know its duplicates."""
        space = self.space
        if number > space.largest_received_packet:
            space.largest_received_packet = number
            space.largest_received_time = now
        ranges = self.ack_ranges
        if ranges and ranges[-1].stop == number:
            ranges[-1] = range(ranges[-1].start, number + 1)
        else:
            space.ack_queue.add(number)
            if len(ranges) > MAX_ACK_RANGES:
                space.ack_queue.shift()
        window = space.received_packets
        window._received.add(number)
        lower = number - window._size + 1
        if lower > window._lower:
            window._lower = lower
            if len(window._received) > 2 * window._size:
                window._received = {known for known in window._received if known >= lower}
