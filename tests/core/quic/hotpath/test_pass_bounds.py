"""What bounds a pass: sizes, counts and times, as numbers; and what it leaves behind."""

from __future__ import annotations

import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet_builder import QuicDeliveryState

from alknet.core.quic import mtu
from alknet.core.quic.hotpath import burst
from tests.core.quic.hotpath.passes import carry, frames_in, with_streams

# First byte, connection ID, packet number; tag.
OVERHEAD = 1 + 8 + 2 + 16


@pytest.fixture(autouse=True)
def _no_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the search for the path MTU from adding packets of its own."""
    monkeypatch.setattr(mtu, "WORTH_BYTES", 1 << 60)


@pytest.mark.parametrize(("ranges", "rides"), [(8, True), (9, False)])
def test_an_acknowledgement_of_eight_ranges_rides(ranges: int, *, rides: bool) -> None:
    pair, (stream_id,) = with_streams(1)
    engine = pair.acceptor
    space = engine._hot_space
    pair.now += 2 * burst.RIDES_EVERY_S
    space.ack_queue.subtract(0, 1_000)
    for number in range(ranges - 1):
        space.ack_queue.add(2 * number)
    pair.dialer._packet_number = 1_000
    pair.dialer.send_stream_data(stream_id, b"question")
    carry(pair, to_server=True)
    assert len(space.ack_queue) == ranges
    engine._acks.on_acknowledged(space, engine._local_max_data.used)  # so it is not urgent
    space.ack_at = pair.now + 0.01
    engine.send_stream_data(stream_id, b"answer")
    assert carry(pair, to_server=False) == 1
    assert (space.ack_at is None) == rides


@pytest.mark.parametrize("window", [1 << 30, 700])
def test_an_acknowledgement_that_rides_leaves_less_room_for_data(window: int) -> None:
    pair, (stream_id,) = with_streams(1)
    engine = pair.acceptor
    pair.now += 2 * burst.RIDES_EVERY_S
    pair.dialer.send_stream_data(stream_id, b"question")
    carry(pair, to_server=True)
    engine._loss._cc.congestion_window = engine._loss.bytes_in_flight + window
    engine.send_stream_data(stream_id, bytes(3_000))
    (first, _), *_ = engine.datagrams_to_send(pair.now)
    assert engine._hot_space.ack_at is None
    assert len(first) == min(window, engine._max_datagram_size)


@pytest.mark.parametrize("window", [1 << 30, 700])
def test_an_acknowledgement_that_is_due_leaves_less_room_for_data(window: int) -> None:
    pair, (stream_id,) = with_streams(1)
    engine = pair.acceptor
    engine.piggybacks_acks = False
    pair.dialer.send_stream_data(stream_id, b"question")
    carry(pair, to_server=True)
    engine._loss._cc.congestion_window = engine._loss.bytes_in_flight + window
    engine.send_stream_data(stream_id, bytes(3_000))
    pair.now += 1
    (first, _), *_ = engine.datagrams_to_send(pair.now)
    assert engine._hot_space.ack_at is None
    assert len(first) == min(window, engine._max_datagram_size)


def test_a_pass_has_32_packets() -> None:
    pair, (stream_id,) = with_streams(1)
    pair.dialer.send_stream_data(stream_id, bytes(100_000))
    assert carry(pair, to_server=True) == 32


def test_a_stream_of_a_kilobyte_is_small() -> None:
    for size, order in ((1_024, [1, 0]), (1_025, [0])):
        pair, ids = with_streams(2)
        pair.dialer.send_stream_data(ids[0], bytes(100_000))
        pair.dialer.send_stream_data(ids[1], bytes(size))
        (first, _), *_ = pair.dialer.datagrams_to_send(pair.now)
        assert frames_in(pair, first) == [ids[place] for place in order]


def test_small_streams_go_first_with_eight_kilobytes() -> None:
    pair, (bulk, *small) = with_streams(10)
    pair.dialer.send_stream_data(bulk, bytes(20_000))
    for stream_id in small:
        pair.dialer.send_stream_data(stream_id, bytes(1_000))
    pair.dialer.send_stream_data(small[7], bytes(24))  # 8 * 1,000 + 192 are 8 KiB
    pair.dialer.send_stream_data(small[8], b"")
    seen: list[int] = []
    for data, _ in pair.dialer.datagrams_to_send(pair.now):
        seen += frames_in(pair, data)
        pair.deliver(data, to_server=True)
    assert set(seen[: seen.index(bulk)]) == set(small[:8])


def test_a_stream_that_is_over_is_not_ready_any_more() -> None:
    """The window was full with its last byte, so the pass had no look at what is left of it."""
    pair, (stream_id, other) = with_streams(2)
    engine = pair.dialer
    pair.acceptor.send_stream_data(stream_id, b"", end_stream=True)
    pair.run()
    engine._loss._cc.congestion_window = engine._loss.bytes_in_flight + OVERHEAD + 5 + 8
    engine.send_stream_data(stream_id, b"question", end_stream=True)
    assert carry(pair, to_server=True) == 1
    pair.run()
    assert list(engine._streams) == [other]
    assert not engine._hot_ready
    engine._loss._cc.congestion_window = 1 << 30
    engine.send_stream_data(other, b"x")
    assert carry(pair, to_server=True) == 1


def test_the_timer_of_a_plain_connection_is_found_without_aioquic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair, (stream_id,) = with_streams(1)
    pair.dialer.send_stream_data(stream_id, b"question")
    carry(pair, to_server=True)
    timers = [pair.dialer.get_timer(), pair.acceptor.get_timer()]
    with monkeypatch.context() as patch:
        patch.setattr(QuicConnection, "get_timer", lambda _: -1.0)
        assert [pair.dialer.get_timer(), pair.acceptor.get_timer()] == timers
        pair.dialer.is_hot = False
        assert pair.dialer.get_timer() == -1.0


def test_an_acknowledgement_of_ranges_is_to_be_acknowledged_now_and_then() -> None:
    """Every eighth packet: then the ranges that the peer knows of are forgotten."""
    pair, (stream_id,) = with_streams(1)
    engine, space = pair.acceptor, pair.acceptor._hot_space
    for ranges in (1, 2):
        pings = []
        for number in range(64 * ranges, 64 * ranges + 16):
            pair.dialer.send_stream_data(stream_id, b"x")
            carry(pair, to_server=True)
            space.ack_queue.subtract(0, space.largest_received_packet)
            if ranges == 2:
                space.ack_queue.add(0)
            engine._packet_number = number
            space.ack_at = pair.now
            assert carry(pair, to_server=False) == 1
            pings += [number] if space.sent_packets[number].is_ack_eliciting else []
        assert pings == ([128, 136] if ranges == 2 else [])
    assert pair.dialer.close_event is None


def test_what_has_arrived_makes_no_stream_ready() -> None:
    pair, (stream_id,) = with_streams(1)
    engine = pair.dialer
    engine.send_stream_data(stream_id, b"question")
    carry(pair, to_server=True)
    engine.send_stream_data(stream_id, b"", end_stream=True)
    assert len(engine.datagrams_to_send(pair.now)) == 1  # lost
    pair.now += 1
    carry(pair, to_server=False)
    assert not engine._streams[stream_id].sender.is_finished
    assert not engine._hot_ready


@pytest.mark.parametrize("delivery", [QuicDeliveryState.LOST, QuicDeliveryState.ACKED])
def test_a_window_is_announced_again_if_it_was_lost(delivery: QuicDeliveryState) -> None:
    pair, (stream_id,) = with_streams(1)
    engine = pair.acceptor
    stream = engine._streams[stream_id]
    was_lost = delivery is QuicDeliveryState.LOST
    engine._on_max_stream_data_delivery(delivery, stream)
    assert (list(engine._hot_raised) == [stream]) == was_lost
    assert carry(pair, to_server=False) == was_lost
    assert stream.max_stream_data_local == stream.max_stream_data_local_sent
    assert not engine._hot_raised


@pytest.mark.parametrize("early_s", [0.0, 0.0001])
def test_an_acknowledgement_is_sent_at_the_time_when_it_is_due(early_s: float) -> None:
    pair, (stream_id,) = with_streams(1)
    pair.dialer.send_stream_data(stream_id, b"question")
    carry(pair, to_server=True)
    due = pair.acceptor._hot_space.ack_at
    assert due is not None
    pair.now = due - early_s
    assert carry(pair, to_server=False) == (early_s == 0)


def test_a_time_that_pacing_has_set_is_over_with_it() -> None:
    pair, (stream_id,) = with_streams(1)
    pair.dialer.send_stream_data(stream_id, b"question")
    carry(pair, to_server=True)
    pair.acceptor._pacing_at = pair.now
    pair.now += 1
    assert carry(pair, to_server=False) == 1
    assert pair.acceptor._pacing_at is None


def test_a_connection_that_has_said_its_close_sends_no_more() -> None:
    pair, (stream_id,) = with_streams(1)
    engine = pair.dialer
    engine.send_stream_data(stream_id, b"question")
    engine.close()
    assert len(engine.datagrams_to_send(pair.now)) == 1
    assert engine._is_special()
    assert engine.datagrams_to_send(pair.now) == []


def test_a_stream_that_the_peer_wants_no_more_of_is_reset_at_once() -> None:
    pair, (stream_id,) = with_streams(1)
    pair.acceptor.stop_receiving(stream_id, 7)
    assert carry(pair, to_server=False) == 1
    assert carry(pair, to_server=True) == 1
    receiver = pair.acceptor._streams[stream_id].receiver
    assert receiver.is_finished


def test_a_pass_in_which_a_stream_is_forgotten_has_no_more_packets() -> None:
    pair, (stream_id, other) = with_streams(2)
    engine = pair.dialer
    engine.max_packets_per_pass = 1
    engine.send_stream_data(stream_id, b"", end_stream=True)
    pair.run()
    pair.acceptor.send_stream_data(stream_id, b"", end_stream=True)
    carry(pair, to_server=False)
    assert len(engine._streams) == 2
    engine.send_stream_data(other, bytes(5_000))
    assert carry(pair, to_server=True) == 1
    assert list(engine._streams) == [other]


@pytest.mark.parametrize("is_paced", [False, True])
def test_a_place_for_a_stream_is_announced_as_fast_as_pacing_lets(*, is_paced: bool) -> None:
    pair, (stream_id, other) = with_streams(2, most=2)
    engine = pair.acceptor
    for side in (pair.dialer, engine):
        side.send_stream_data(stream_id, b"", end_stream=True)
        side.release(stream_id)
    carry(pair, to_server=True)
    carry(pair, to_server=False)
    pair.now += 0.001
    pair.dialer._hot_space.ack_at = pair.now
    carry(pair, to_server=True)
    assert engine._hot_ended
    engine.send_stream_data(other, b"x")
    if is_paced:
        pacer = engine._loss._pacer
        pacer.packet_time, pacer.bucket_max, pacer.bucket_time = 0.01, 0.02, 0.005
        pacer.evaluation_time = pair.now
    assert carry(pair, to_server=False) == 2 - is_paced
    assert (engine._pacing_at is not None) == is_paced
    pair.now += 0.02
    carry(pair, to_server=False)
    assert pair.dialer._remote_max_streams_bidi == 3


def test_packets_go_to_the_connection_id_in_use() -> None:
    pair, (stream_id,) = with_streams(1)
    engine = pair.dialer
    for _ in range(2):
        before = engine._peer_cid.cid
        engine.change_connection_id()
        pair.run()
        engine.send_stream_data(stream_id, b"x")
        assert not engine._is_special()
        ((data, _),) = engine.datagrams_to_send(pair.now)
        assert data[1:9] == engine._peer_cid.cid != before
        pair.deliver(data, to_server=True)
    assert pair.server.received(stream_id) == b"?xx"
