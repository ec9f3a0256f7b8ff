"""Acknowledgements on the short way: the same packets, samples, losses and windows as aioquic's."""

from __future__ import annotations

from functools import cache

import pytest
from aioquic._buffer import Buffer
from aioquic.quic.packet import QuicErrorCode, pull_ack_frame
from aioquic.tls import Epoch
from hypothesis import given, settings
from hypothesis import strategies as st

from alknet.core.quic.bounds import MAX_IDLE_FRAMES
from alknet.core.quic.engine import Engine
from alknet.core.quic.hotpath.acks import acknowledge, read_ack_untrusted
from tests.core.quic.hostile import varint
from tests.core.quic.hotpath.differential import Duel, Twins, random_bytes

ANY_LENGTH = 0x43
PACKETS = 30


def ack(*ranges: tuple[int, int], delay: int = 0) -> bytes:
    """An ACK frame of these ranges, lowest and highest number, in descending order."""
    low, high = ranges[0]
    frame = varint(2, high, delay, len(ranges) - 1, high - low)
    for lower, higher in ranges[1:]:
        frame += varint(low - higher - 2, higher - lower)
        low = lower
    return frame


@cache
def _waiting() -> Duel:
    """A client that waits for the acknowledgement of `PACKETS` packets and an acknowledgement."""
    with random_bytes(0):  # whichever test is the first
        duel = Duel()
    stream_id = duel.client.do(lambda engine: engine.open_stream(unidirectional=False))
    duel.run(0.2)
    duel.client.set(lambda engine: setattr(engine, "_skip_at", 10**9))
    duel.client.set(lambda engine: engine._spaces[Epoch.ONE_RTT].sent_packets.clear())
    duel.now += 1
    for number in range(PACKETS):
        if number == 12:
            duel.say(duel.server, varint(1))
            duel.now += 0.1
        else:
            duel.client.do(lambda engine: engine.send_stream_data(stream_id, bytes(100)))
        duel.client.send(duel.now)
        duel.now += 0.001
    return duel


def waiting() -> tuple[Duel, Twins, int]:
    """Fork `_waiting`; also return the client and the number of its first packet."""
    duel = Duel.__new__(Duel)
    duel.__dict__ |= _waiting().__dict__
    duel.client, duel.server = duel.client.fork(), duel.server.fork()
    sent = duel.client.plain._spaces[Epoch.ONE_RTT].sent_packets
    first, last = min(sent), max(sent)
    assert list(sent) == list(range(first, last + 1))
    assert len(sent) == PACKETS
    assert _ack_only(duel.client.plain) == [first + 12]
    return duel, duel.client, first


def hear(duel: Duel, frames: bytes) -> None:
    """Let the client receive *frames*, the short way."""
    before = duel.client.hot._hot_inbound
    left = duel.client.watch()
    duel.deliver(duel.server.seal(frames, first=ANY_LENGTH), duel.client)
    assert before is duel.client.hot._hot_inbound is not None
    assert left == [] or duel.client.hot.close_event is not None


# reading


@given(
    largest=st.integers(0, 2**62 - 1),
    delay=st.integers(0, 2**62 - 1),
    length=st.one_of(st.integers(0, 3), st.integers(0, 2**62 - 1)),
    rest=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), max_size=5),
    cut=st.integers(0, 40),
    more=st.integers(-1, 1),
)
@settings(max_examples=150, deadline=None)
def test_frames_are_read_as_aioquic_reads_them(
    largest: int,
    delay: int,
    length: int,
    rest: list[tuple[int, int]],
    cut: int,
    more: int,
) -> None:
    frame = varint(largest, delay, max(0, len(rest) + more), length)
    frame += b"".join(varint(*pair) for pair in rest)
    frame = frame[: max(0, len(frame) - cut)] if cut < 20 else frame
    for plain in (frame, frame + b"\x01"):
        _compare(plain)


@given(st.binary(max_size=30))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_as_aioquic_reads_them(plain: bytes) -> None:
    _compare(plain)


EDGES = [0, 1, 62, 63, 64, 65, 16_383, 16_384, 2**30 - 1, 2**30, 2**62 - 1]


@pytest.mark.parametrize("value", EDGES)
def test_integers_of_all_lengths_are_read(value: int) -> None:
    assert read_ack_untrusted(varint(value, value, 0, value), 0) == (
        len(varint(value, value, 0, value)),
        [(0, value)],
        value,
    )
    for cut in range(1, 9):
        _compare(varint(value, 0, 0, 0)[:-cut])
        _compare(varint(2**62 - 1, value, 0, value)[:-cut])


def test_a_number_below_zero_is_no_acknowledgement() -> None:
    for low in (-1, 0, 1):
        read = read_ack_untrusted(varint(10, 0, 1, 2, 3, 3 - low), 0)
        assert (read is None) == (low < 0)
        _compare(varint(10, 0, 1, 2, 3, 3 - low))


def _compare(plain: bytes) -> None:
    buf = Buffer(data=plain)
    try:
        expected, delay = pull_ack_frame(buf)
    except ValueError:
        assert read_ack_untrusted(plain, 0) is None
        assert read_ack_untrusted(b"\x02" + plain, 1) is None
        return
    read = read_ack_untrusted(b"\x02" + plain, 1)
    assert read is not None
    end, ranges, encoded = read
    assert (end, encoded) == (buf.tell() + 1, delay)
    assert [(low, high + 1) for low, high in ranges] == [(r.start, r.stop) for r in expected]


# what is acknowledged

RANGES: dict[str, list[tuple[int, int]]] = {
    "the first": [(0, 0)],
    "all": [(0, PACKETS - 1)],
    "the last": [(PACKETS - 1, PACKETS - 1)],
    "some at the front": [(0, 9)],
    "the one that only acknowledges": [(12, 12)],
    "up to it": [(0, 12)],
    "in the middle": [(10, 15)],
    "after a gap of three": [(3, 8)],
    "after a gap of two": [(2, 2)],
    "two ranges": [(20, 25), (5, 9)],
    "many ranges": [(28, 28), (24, 26), (20, 20), (15, 18), (10, 10), (2, 4)],
    "from before the first": [(-2, 3)],
    "two from before the first": [(0, 3), (-3, -2)],
    "only before the first": [(-3, -1)],
}


@pytest.mark.parametrize("delay", [0, 100, 1_000, 10**6])
@pytest.mark.parametrize("kind", RANGES)
def test_what_is_acknowledged_is_taken_over_alike(kind: str, delay: int) -> None:
    duel, client, first = waiting()
    ranges = [(first + low, first + high) for low, high in RANGES[kind]]
    client.set(lambda engine: setattr(engine._loss, "_pto_count", 2))
    duel.now += 0.02
    hear(duel, ack(*ranges, delay=delay))
    left = client.hot._spaces[Epoch.ONE_RTT].sent_packets
    assert not any(low <= number <= high for low, high in ranges for number in left)
    known = kind != "only before the first"
    assert (client.hot._loss._pto_count == 0) == known
    duel.now += 0.005
    hear(duel, ack((first, first + PACKETS - 1)))
    client.check()


@given(
    st.lists(
        st.lists(st.integers(0, PACKETS - 1), min_size=1, max_size=12, unique=True),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([0.0, 0.0005, 0.004, 0.2]),
)
@settings(max_examples=40, deadline=None)
def test_any_order_of_acknowledgements_is_taken_over_alike(
    said: list[list[int]], step: float
) -> None:
    duel, _, first = waiting()
    for numbers in said:
        duel.now += step
        hear(duel, ack(*_ranges(numbers, first)))


def _ranges(numbers: list[int], first: int) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers, reverse=True):
        if ranges and ranges[-1][0] == first + number + 1:
            ranges[-1] = (first + number, ranges[-1][1])
        else:
            ranges.append((first + number, first + number))
    return ranges


def test_an_acknowledgement_that_is_repeated_changes_nothing() -> None:
    duel, client, first = waiting()
    hear(duel, ack((first, first + 5)))
    client.set(lambda engine: setattr(engine._loss, "_pto_count", 2))
    smoothed = client.hot._loss._rtt_smoothed
    duel.now += 0.5
    hear(duel, ack((first, first + 5)))
    assert client.hot._loss._rtt_smoothed == smoothed
    assert client.hot._loss._pto_count == 2


def test_an_older_acknowledgement_does_not_lower_the_largest() -> None:
    duel, client, first = waiting()
    hear(duel, ack((first + 10, first + 10)))
    hear(duel, ack((first + 8, first + 8)))
    assert client.hot._spaces[Epoch.ONE_RTT].largest_acked_packet == first + 10


def test_losses_are_found_when_something_older_is_outstanding() -> None:
    duel, client, first = waiting()
    space = client.hot._spaces[Epoch.ONE_RTT]
    hear(duel, ack((first + 1, first + 1)))
    assert space.loss_time is not None or first not in space.sent_packets
    hear(duel, ack((first, first)))
    assert space.loss_time is None
    hear(duel, ack((first + 9, first + 9)))
    assert first + 6 not in space.sent_packets


def test_losses_are_not_looked_for_when_nothing_older_is_outstanding() -> None:
    duel, client, first = waiting()

    def refuse(**_: object) -> None:
        raise AssertionError("looked for")

    loss, space = client.hot._loss, client.hot._spaces[Epoch.ONE_RTT]
    loss._detect_loss = refuse  # type: ignore[method-assign]
    acknowledge(loss, space, [(first, first)], 0.0, duel.now)
    acknowledge(loss, space, [(first, first + 3)], 0.0, duel.now)
    with pytest.raises(AssertionError):
        acknowledge(loss, space, [(first + 5, first + 5)], 0.0, duel.now)


def test_the_loss_time_is_forgotten_with_the_last_outstanding_packet() -> None:
    duel, client, first = waiting()
    client.set(lambda engine: setattr(engine._spaces[Epoch.ONE_RTT], "loss_time", 7.0))
    hear(duel, ack((first, first + PACKETS - 1)))
    assert not client.hot._spaces[Epoch.ONE_RTT].sent_packets
    assert client.hot._spaces[Epoch.ONE_RTT].loss_time is None


@pytest.mark.parametrize("largest", [-5, 0, 1, 2, 5, 15])
def test_the_largest_number_may_be_outstanding_itself(largest: int) -> None:
    """As after packets that were sent, forgotten and numbered again by hand."""
    duel, client, first = waiting()
    client.set(
        lambda engine: setattr(
            engine._spaces[Epoch.ONE_RTT], "largest_acked_packet", first + largest
        )
    )
    hear(duel, ack((first, first)))


# round trips

RTTS = [0.0, 0.0001, 0.0009, 0.001, 0.0011, 0.02, 0.2, 3.0]


@pytest.mark.parametrize("rtt", RTTS)
@pytest.mark.parametrize("delay_s", [0.0, 0.001, 0.0249, 0.025, 0.026, 1.0])
def test_samples_are_taken_alike(rtt: float, delay_s: float) -> None:
    duel, client, first = waiting()
    smallest = 0.01
    client.set(lambda engine: setattr(engine._loss, "_rtt_min", smallest))
    duel.now = client.plain._spaces[Epoch.ONE_RTT].sent_packets[first].sent_time or 0.0
    duel.now += rtt
    hear(duel, ack((first, first), delay=int(delay_s * 1_000_000) >> 3))
    assert client.hot._loss._rtt_min == pytest.approx(min(smallest, max(rtt, 0.001)))
    duel.now += 0.03
    hear(duel, ack((first, first + 3), delay=int(delay_s * 1_000_000) >> 3))


@pytest.mark.parametrize("extra", [-1e-9, 0.0, 1e-9])
def test_the_delay_is_subtracted_unless_it_would_go_below_the_minimum(extra: float) -> None:
    duel, client, first = waiting()
    sent_at = client.plain._spaces[Epoch.ONE_RTT].sent_packets[first].sent_time or 0.0
    client.set(lambda engine: setattr(engine._loss, "_rtt_min", 0.5))
    duel.now = sent_at + 0.5 + 0.016 + extra
    hear(duel, ack((first, first), delay=2_000))


def test_the_peers_scale_of_delays_is_used() -> None:
    for exponent in (0, 3, 10):
        duel, client, first = waiting()
        client.set(lambda e, n=exponent: setattr(e, "_remote_ack_delay_exponent", n))  # type: ignore[misc]
        duel.now += 0.05
        hear(duel, ack((first, first), delay=9))


def test_the_pacer_follows() -> None:
    duel, client, first = waiting()
    before = client.hot._loss._pacer.packet_time
    duel.now += 0.3
    hear(duel, ack((first, first)))
    assert client.hot._loss._pacer.packet_time != before


# lies


def test_acknowledging_what_was_never_sent_closes_alike() -> None:
    duel, client, first = waiting()
    last = client.plain._packet_number - 1
    hear(duel, ack((first, last)))
    assert client.hot.close_event is None
    duel, client, first = waiting()
    hear(duel, ack((first, last + 1)))
    assert client.hot.close_event is not None
    assert client.hot.close_event.error_code == QuicErrorCode.PROTOCOL_VIOLATION
    assert first in client.hot._spaces[Epoch.ONE_RTT].sent_packets


@pytest.mark.parametrize("place", [0, 4, 5, 9])
def test_acknowledging_a_number_that_was_left_out_closes_alike(place: int) -> None:
    duel, client, first = waiting()
    client.set(lambda engine: engine._skip_packet_number(duel.now))
    skipped = client.plain._packet_number - 1
    hear(duel, ack((first + PACKETS - place, skipped)))
    assert client.hot.close_event is not None
    assert client.hot.close_event.error_code == QuicErrorCode.PROTOCOL_VIOLATION
    assert first in client.hot._spaces[Epoch.ONE_RTT].sent_packets


def test_acknowledgements_count_as_frames_without_data() -> None:
    for count in (MAX_IDLE_FRAMES, MAX_IDLE_FRAMES + 1):
        duel, client, first = waiting()
        hear(duel, ack((first, first)) * count)
        assert (client.hot.close_event is not None) == (count > MAX_IDLE_FRAMES)
        assert client.hot._idle_frames == count


def test_congestion_control_hears_of_what_was_in_flight() -> None:
    duel, client, first = waiting()
    in_flight = client.hot._loss.bytes_in_flight
    sent = client.hot._spaces[Epoch.ONE_RTT].sent_packets
    sizes = [sent[first + n].sent_bytes for n in range(14) if sent[first + n].in_flight]
    assert len(sizes) == 13
    hear(duel, ack((first, first + 13)))
    assert client.hot._loss.bytes_in_flight == in_flight - sum(sizes)


def _ack_only(engine: Engine) -> list[int]:
    packets = engine._spaces[Epoch.ONE_RTT].sent_packets.values()
    return [packet.packet_number for packet in packets if not packet.is_ack_eliciting]


def test_only_what_elicits_is_sampled() -> None:
    duel, client, first = waiting()
    number = first + 12
    smoothed = client.hot._loss._rtt_smoothed
    eliciting = client.hot._spaces[Epoch.ONE_RTT].ack_eliciting_in_flight
    duel.now += 0.7
    hear(duel, ack((number, number)))
    assert client.hot._loss._rtt_smoothed == smoothed
    assert client.hot._spaces[Epoch.ONE_RTT].ack_eliciting_in_flight <= eliciting
    duel, client, _ = waiting()
    duel.now += 0.7
    hear(duel, ack((number - 1, number)))
    assert client.hot._loss._rtt_smoothed > smoothed
