"""Acknowledgements: what aioquic's `QuicPacketRecovery.on_ack_received` does, in one walk.

The packets that wait for an acknowledgement are kept in the order of their numbers, so the ones
that a frame acknowledges are found from the front; whatever is in front of them for long, loss
detection removes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace

__all__ = ["Ack", "acknowledge", "read_ack_untrusted"]

# What is left of a variable-length integer of 4 or 8 bytes without its length.
FOUR_BYTES = 0x3FFF_FFFF
EIGHT_BYTES = 0x3FFF_FFFF_FFFF_FFFF
# RFC 9002 sec. 6.1.2: the granularity of clocks, below which aioquic lets no round trip fall.
SHORTEST_RTT_S = 0.001

_from_bytes = int.from_bytes
_ACKED = QuicDeliveryState.ACKED


Ack = tuple[int, list[tuple[int, int]], int]
"""Where an ACK frame ends, its ranges (lowest and highest number) upwards, and its delay field."""


def read_ack_untrusted(plain: bytes, start: int) -> Ack | None:
    """Read the ACK frame (RFC 9000 sec. 19.3) whose type ends at *start*; None if it is broken."""
    try:
        pos, (high, delay, more, length) = _read_integers_untrusted(plain, start, 4)
        ranges = [(high - length, high)]
        if more:
            pos, fields = _read_integers_untrusted(plain, pos, 2 * more)
            for place in range(0, 2 * more, 2):
                high = ranges[-1][0] - fields[place] - 2
                ranges.append((high - fields[place + 1], high))
            ranges.reverse()
    except IndexError:
        return None
    if pos > len(plain) or ranges[0][0] < 0:
        return None
    return pos, ranges, delay


def _read_integers_untrusted(plain: bytes, pos: int, count: int) -> tuple[int, list[int]]:
    """Read *count* variable-length integers (RFC 9000 sec. 16).

    Raises:
        IndexError: They are not all there; if only the last is cut short, its end is returned,
            which is beyond *plain*.
    """
    found = []
    while count:
        count -= 1
        value = plain[pos]
        if value < 64:
            pos += 1
        elif value < 128:
            value = (value & 63) << 8 | plain[pos + 1]
            pos += 2
        else:
            start = pos
            pos += 4 if value < 192 else 8
            value = _from_bytes(plain[start:pos]) & (FOUR_BYTES if value < 192 else EIGHT_BYTES)
        found.append(value)
    return pos, found


def acknowledge(
    loss: QuicPacketRecovery,
    space: QuicPacketSpace,
    ranges: list[tuple[int, int]],
    delay_s: float,
    now: float,
) -> None:
    """Take over what the peer says has arrived.

    Raises:
        QuicConnectionError: It acknowledges a number that was left out; those before it count.
    """
    largest = ranges[-1][1]
    space.largest_acked_packet = max(space.largest_acked_packet, largest)
    sent = space.sent_packets
    numbers = _outstanding(sent, ranges)
    if not numbers:
        return
    on_packet_acked = loss._cc.on_packet_acked
    newest = sent[numbers[-1]]
    is_ack_eliciting = False
    for number in numbers:
        packet = sent.pop(number)
        if packet.is_ack_eliciting:
            is_ack_eliciting = True
            space.ack_eliciting_in_flight -= 1
        if packet.in_flight:
            on_packet_acked(packet=packet, now=now)
        for handler, args in packet.delivery_handlers:
            handler(_ACKED, *args)
    if numbers[-1] == largest and is_ack_eliciting:
        _measure(loss, now - cast(float, newest.sent_time), delay_s, now)
    first = next(iter(sent), None)
    if first is not None and first <= space.largest_acked_packet:
        loss._detect_loss(now=now, space=space)
    else:
        space.loss_time = None
    loss._pto_count = 0


def _outstanding(sent: Iterable[int], ranges: list[tuple[int, int]]) -> list[int]:
    """Return the numbers in *sent* that are in *ranges*; both ascend."""
    found: list[int] = []
    place, last = 0, len(ranges) - 1
    low, high = ranges[0]
    for number in sent:
        while number > high:
            if place == last:
                return found
            place += 1
            low, high = ranges[place]
        if number >= low:
            found.append(number)
    return found


def _measure(loss: QuicPacketRecovery, rtt_s: float, delay_s: float, now: float) -> None:
    """Take a sample of the round trip (RFC 9002 sec. 5), as aioquic does."""
    latest = max(rtt_s, SHORTEST_RTT_S)
    loss._rtt_min = min(loss._rtt_min, latest)
    delay_s = min(delay_s, loss.max_ack_delay)
    if latest > loss._rtt_min + delay_s:
        latest -= delay_s
    loss._rtt_latest = latest
    loss._rtt_variance = 3 / 4 * loss._rtt_variance + 1 / 4 * abs(loss._rtt_min - latest)
    loss._rtt_smoothed = 7 / 8 * loss._rtt_smoothed + 1 / 8 * latest
    loss._cc.on_rtt_measurement(now=now, rtt=rtt_s)
    loss._pacer.update_rate(
        congestion_window=loss._cc.congestion_window, smoothed_rtt=loss._rtt_smoothed
    )
