"""What we do on top of aioquic's passes: a cap, small streams first, acknowledgements that ride."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import cast

import pytest
from aioquic.quic.connection import QuicNetworkPath
from aioquic.quic.packet_builder import QuicDeliveryState

from alknet.core.limits import Limits
from alknet.core.quic import mtu
from alknet.core.quic.engine import Engine
from alknet.core.quic.flow import StreamLimit
from alknet.core.quic.hotpath import burst
from alknet.core.quic.hotpath.ready import SMALL_BYTES, SMALL_SHARE_BYTES
from alknet.core.quic.hotpath.send import MAX_PACKETS_PER_PASS
from tests.core.quic.hotpath.passes import ONE_RTT, carry, frames_in, quiet_pair, with_streams
from tests.core.quic.sansio import CLIENT_ADDRESS, EnginePair


@pytest.fixture(autouse=True)
def _no_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the search for the path MTU from adding packets of its own."""
    monkeypatch.setattr(mtu, "WORTH_BYTES", 1 << 60)


# the cap


def test_a_pass_ends_at_its_cap_and_says_so() -> None:
    pair, (stream_id,) = with_streams(1)
    size = int(2.5 * MAX_PACKETS_PER_PASS) * 1_100
    pair.dialer.send_stream_data(stream_id, bytes(size))
    passes = [(carry(pair, to_server=True), pair.dialer.wants_another_pass) for _ in range(3)]
    assert passes[:2] == [(MAX_PACKETS_PER_PASS, True)] * 2
    last, wants_another = passes[2]
    assert 0 < last < MAX_PACKETS_PER_PASS
    assert not wants_another
    assert len(pair.server.received(stream_id)) == size + 1


def test_a_pass_that_fits_its_cap_wants_no_other() -> None:
    pair, (stream_id,) = with_streams(1)
    pair.dialer.max_packets_per_pass = 1
    pair.dialer.send_stream_data(stream_id, b"x")
    assert carry(pair, to_server=True) == 1
    assert carry(pair, to_server=True) == 0
    assert not pair.dialer.wants_another_pass


@pytest.mark.parametrize("left", [0, 11 + 16])
def test_a_full_window_wants_no_other_pass(left: int) -> None:
    pair, (stream_id,) = with_streams(1)
    pair.dialer.max_packets_per_pass = 2
    pair.dialer._loss._cc.congestion_window = 2 * 1_200 + left
    pair.dialer.send_stream_data(stream_id, bytes(10_000))
    assert carry(pair, to_server=True) == 2
    assert not pair.dialer.wants_another_pass


def test_pacing_ends_a_pass_before_its_cap_does() -> None:
    pair, (stream_id,) = with_streams(1)
    pair.dialer.max_packets_per_pass = 2
    pacer = pair.dialer._loss._pacer
    pacer.packet_time = 0.01
    pacer.bucket_time, pacer.bucket_max, pacer.evaluation_time = 0.015, 0.02, pair.now
    pair.dialer.send_stream_data(stream_id, bytes(10_000))
    assert carry(pair, to_server=True) == 2
    assert not pair.dialer.wants_another_pass
    assert pair.dialer._pacing_at is not None


def test_without_pacing_a_burst_is_whole() -> None:
    pair, (stream_id,) = with_streams(1)
    assert pair.dialer._loss._pacer.packet_time is None
    pair.dialer._loss._pacer.bucket_time = 0.0
    pair.dialer.send_stream_data(stream_id, bytes(10_000))
    assert carry(pair, to_server=True) == 9
    assert pair.dialer._pacing_at is None


# acknowledgements that ride


def call(pair: EnginePair, stream_id: int, pause: float) -> int:
    """Ask and answer; return how many packets that took until nothing was left to say."""
    pair.dialer.send_stream_data(stream_id, b"question")
    count = carry(pair, to_server=True)
    pair.acceptor.send_stream_data(stream_id, b"answer")
    count += carry(pair, to_server=False)
    pair.now += pause
    return count + carry(pair, to_server=True) + carry(pair, to_server=False)


def test_a_call_costs_two_packets() -> None:
    pair, (stream_id,) = with_streams(1)
    assert [call(pair, stream_id, 0.003) for _ in range(30)] == [2] * 30
    assert pair.dialer._spaces[ONE_RTT].ack_eliciting_in_flight <= 2


def test_data_that_carries_an_ack_is_data() -> None:
    pair, (stream_id,) = with_streams(1)
    pair.now += 2 * burst.RIDES_EVERY_S
    pair.dialer.send_stream_data(stream_id, b"question")
    carry(pair, to_server=True)
    pair.acceptor.send_stream_data(stream_id, b"answer")
    space = pair.acceptor._spaces[ONE_RTT]
    before = space.ack_eliciting_in_flight, pair.acceptor._loss.bytes_in_flight
    ((lost, _),) = pair.acceptor.datagrams_to_send(pair.now)
    assert space.ack_at is None  # it rode
    assert space.ack_eliciting_in_flight == before[0] + 1
    assert pair.acceptor._loss.bytes_in_flight == before[1] + len(lost)
    pair.run(3)
    assert pair.client.received(stream_id) == b"answer"


def test_an_ack_does_not_ride_without_data() -> None:
    pair, (stream_id,) = with_streams(1)
    pair.now += 2 * burst.RIDES_EVERY_S
    pair.dialer.send_stream_data(stream_id, b"question")
    carry(pair, to_server=True)
    space = pair.acceptor._spaces[ONE_RTT]
    assert space.ack_at is not None
    assert carry(pair, to_server=False) == 0
    pair.acceptor._remote_max_data_used = pair.acceptor._remote_max_data
    pair.acceptor.send_stream_data(stream_id, b"held back by flow control")
    assert carry(pair, to_server=False) == 0
    assert space.ack_at is not None


def test_no_ack_answers_an_ack() -> None:
    pair, (stream_id,) = with_streams(1)
    call(pair, stream_id, 1.0)
    pair.run(1)
    before = pair.dialer.packets_sent, pair.acceptor.packets_sent
    pair.run(5)
    assert (pair.dialer.packets_sent, pair.acceptor.packets_sent) == before


def test_an_ack_rides_no_oftener_than_it_pays() -> None:
    pair, (stream_id,) = with_streams(1)
    call(pair, stream_id, 0.0001)
    space = pair.acceptor._spaces[ONE_RTT]
    for _ in range(3):
        call(pair, stream_id, 0.0001)
        assert space.ack_at is not None
    pair.now += 2 * burst.RIDES_EVERY_S
    pair.dialer.piggybacks_acks = False
    call(pair, stream_id, 0)
    assert space.ack_at is None


def test_an_ack_with_many_ranges_waits_for_its_time() -> None:
    pair, (stream_id,) = with_streams(1)
    space = pair.acceptor._spaces[ONE_RTT]
    number = 10_000
    while len(space.ack_queue) <= burst.MAX_RIDING_RANGES:
        space.ack_queue.add(number)
        number += 2
    pair.acceptor._acks.on_acknowledged(space, pair.acceptor._local_max_data.used)
    pair.dialer.send_stream_data(stream_id, b"question")
    carry(pair, to_server=True)
    pair.acceptor.send_stream_data(stream_id, b"answer")
    carry(pair, to_server=False)
    assert space.ack_at is not None


# order


def test_a_small_stream_does_not_wait_behind_bulk() -> None:
    pair, (bulk, small) = with_streams(2)
    pair.dialer.send_stream_data(bulk, bytes(100_000))
    pair.dialer.send_stream_data(small, bytes(SMALL_BYTES))
    (first, _), *_ = pair.dialer.datagrams_to_send(pair.now)
    assert frames_in(pair, first) == [small, bulk]


def test_aioquics_order_is_that_of_turns() -> None:
    pair, (bulk, small) = with_streams(2)
    pair.dialer.favours_small = False
    pair.dialer.send_stream_data(bulk, bytes(100_000))
    pair.dialer.send_stream_data(small, bytes(SMALL_BYTES))
    (first, _), (second, _), *_ = pair.dialer.datagrams_to_send(pair.now)
    assert frames_in(pair, first) == [bulk]
    pair.deliver(first, to_server=True)
    assert frames_in(pair, second) == [small, bulk]


def test_what_is_not_small_takes_its_turn() -> None:
    pair, (bulk, other) = with_streams(2)
    pair.dialer.send_stream_data(bulk, bytes(100_000))
    pair.dialer.send_stream_data(other, bytes(SMALL_BYTES + 1))
    (first, _), *_ = pair.dialer.datagrams_to_send(pair.now)
    assert frames_in(pair, first) == [bulk]


def test_many_small_streams_do_not_starve_bulk() -> None:
    pair, (bulk, *small) = with_streams(13)
    pair.dialer.send_stream_data(bulk, bytes(100_000))
    for stream_id in small:
        pair.dialer.send_stream_data(stream_id, bytes(SMALL_BYTES))
    seen = []
    for data, _ in pair.dialer.datagrams_to_send(pair.now):
        seen += frames_in(pair, data)
        pair.deliver(data, to_server=True)
    favoured = SMALL_SHARE_BYTES // SMALL_BYTES
    before_bulk = set(seen[: seen.index(bulk)])
    assert before_bulk == set(small[:favoured])


def test_streams_with_much_to_send_share_a_pass() -> None:
    pair, ids = with_streams(10)
    for stream_id in ids:
        pair.dialer.send_stream_data(stream_id, bytes(10_000))
    seen = []
    for data, _ in pair.dialer.datagrams_to_send(pair.now):
        seen += frames_in(pair, data)
        pair.deliver(data, to_server=True)
    assert seen[:20] == [*ids, *ids]


# lengths


@pytest.mark.parametrize("size", [16_300, 16_500, 30_000, 60_000])
def test_long_datagrams_arrive_whole(size: int) -> None:
    pair, (stream_id,) = with_streams(1)
    pair.dialer._max_datagram_size = size
    data = bytes(range(256)) * 400
    pair.dialer.send_stream_data(stream_id, data)
    datagrams = pair.dialer.datagrams_to_send(pair.now)
    assert {len(datagram) for datagram, _ in datagrams[:-1]} == {size}
    for datagram, _ in datagrams:
        pair.deliver(datagram, to_server=True)
    assert pair.server.received(stream_id) == b"?" + data
    assert pair.acceptor.close_event is None


# what it costs


def calls_of(action: Callable[[], object]) -> int:
    """Count the functions that *action* calls, Python's and C's."""
    count = 0

    def on_event(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(on_event)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def test_idle_streams_cost_a_pass_nothing() -> None:
    costs = []
    for count in (2, 200):
        pair, ids = with_streams(count)
        pair.dialer.send_stream_data(ids[0], b"x")
        pair.dialer.datagrams_to_send(pair.now)
        pair.dialer.send_stream_data(ids[0], bytes(20_000))
        costs.append(calls_of(lambda p=pair: p.dialer.datagrams_to_send(p.now)))  # type: ignore[misc]
    assert costs[0] == costs[1]


def test_an_idle_pass_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, _ = with_streams(1)
    pair.dialer.datagrams_to_send(pair.now)
    monkeypatch.delattr(burst.Burst, "__init__")
    monkeypatch.setattr(burst.Burst, "run", None)
    assert pair.dialer.datagrams_to_send(pair.now) == []


# what is left to aioquic


def _begin_path_challenge(engine: Engine) -> None:
    engine._network_paths[0].remote_challenges.append(bytes(8))


def _issue_connection_id(engine: Engine) -> None:
    engine._host_cids.pop()
    engine._replenish_connection_ids()


RARE: dict[str, Callable[[Engine], object]] = {
    "a ping": lambda engine: engine.send_ping(1),
    "a datagram": lambda engine: engine.send_datagram_frame(b"x"),
    "a probe": lambda engine: engine._send_probe(),
    "a key update": lambda engine: engine.request_key_update(),
    "a retired connection ID": lambda engine: engine.change_connection_id(),
    "a path challenge": _begin_path_challenge,
    "a reset": lambda engine: engine.reset_stream(0, 1),
    "a stop": lambda engine: engine.stop_receiving(0, 1),
    "a new connection ID": _issue_connection_id,
    "handshake done": lambda engine: setattr(engine, "_handshake_done_pending", True),
}


@pytest.mark.parametrize("rare", RARE)
def test_what_is_rare_is_left_to_aioquic_once(rare: str) -> None:
    pair, _ = with_streams(1)
    engine = pair.dialer
    engine.datagrams_to_send(pair.now)
    assert not engine._is_special()
    RARE[rare](engine)
    assert engine._is_special()
    engine.send_stream_data(engine.open_stream(unidirectional=True), b"x")
    assert engine.datagrams_to_send(pair.now)
    assert not engine._is_special()


@pytest.mark.parametrize(
    "change",
    [
        lambda engine: engine.close(),
        lambda engine: engine._network_paths.append(QuicNetworkPath(CLIENT_ADDRESS)),
        lambda engine: setattr(engine._network_paths[0], "is_validated", False),
        lambda engine: setattr(engine, "_handshake_confirmed", False),
        lambda engine: setattr(engine, "_quic_logger", object()),
        lambda engine: setattr(engine, "_streams_blocked_pending", True),
        lambda engine: setattr(engine, "_remote_preferred_address", object()),
        lambda engine: engine._crypto_streams[ONE_RTT].sender.write(b"x"),
    ],
)
def test_what_is_not_plain_is_left_to_aioquic(change: Callable[[Engine], object]) -> None:
    pair, _ = with_streams(1)
    pair.dialer.datagrams_to_send(pair.now)
    assert not pair.dialer._is_special()
    change(pair.dialer)
    assert pair.dialer._is_special()


def _close(engine: Engine) -> None:
    engine.close()
    engine.datagrams_to_send(1e6)  # so late that all other timers are earlier


@pytest.mark.parametrize(
    "change",
    [
        _close,
        lambda engine: setattr(engine._network_paths[0], "is_validated", False),
        lambda engine: setattr(engine, "_handshake_confirmed", False),
    ],
)
def test_timers_of_what_is_not_plain_are_aioquics(change: Callable[[Engine], object]) -> None:
    pair, (stream_id,) = with_streams(1)
    engine = pair.acceptor
    engine.send_stream_data(stream_id, b"x")
    engine.datagrams_to_send(pair.now)
    engine._network_paths[0].validation_deadline = 2.0
    change(engine)
    timer = engine.get_timer()
    engine.is_hot = False
    assert timer == engine.get_timer()


def test_a_handshakes_timer_is_aioquics() -> None:
    pair = EnginePair()
    assert not pair.dialer.wants_another_pass
    pair.dialer.connect(CLIENT_ADDRESS, pair.now)
    pair.dialer.datagrams_to_send(pair.now)
    timer = pair.dialer.get_timer()
    pair.dialer.is_hot = False
    assert timer == pair.dialer.get_timer() is not None


def test_a_connection_id_that_was_lost_is_sent_again() -> None:
    pair, _ = with_streams(1)
    engine = pair.dialer
    engine.datagrams_to_send(pair.now)
    lost = engine._host_cids[-1]
    engine._on_new_connection_id_delivery(QuicDeliveryState.LOST, lost)
    assert engine._is_special()
    assert engine.datagrams_to_send(pair.now)
    assert lost.was_sent
    assert not engine._is_special()


def test_nothing_is_noted_for_long_while_aioquic_sends() -> None:
    pair = quiet_pair()
    for engine in (pair.dialer, pair.acceptor):
        engine.is_hot = False
    for _ in range(20):
        stream_id = pair.dialer.open_stream(unidirectional=False)
        pair.dialer.send_stream_data(stream_id, b"question", end_stream=True)
        pair.run(0.1)
        pair.acceptor.send_stream_data(stream_id, b"answer", end_stream=True)
        for engine in (pair.acceptor, pair.dialer):
            engine.credit(stream_id, 1 << 20)
        pair.run(0.1)
        for engine in (pair.acceptor, pair.dialer):
            engine.datagrams_to_send(pair.now)
            assert not engine._streams
            assert not engine._hot_ready
            assert not engine._hot_raised
            assert not engine._hot_ended


def test_a_window_of_a_forgotten_stream_is_not_announced_again() -> None:
    pair, (stream_id,) = with_streams(1)
    stream = pair.dialer._streams[stream_id]
    for engine in (pair.dialer, pair.acceptor):
        engine.send_stream_data(stream_id, b"", end_stream=True)
    pair.run()
    assert not pair.dialer._streams
    pair.dialer._on_max_stream_data_delivery(QuicDeliveryState.LOST, stream)
    assert pair.dialer.datagrams_to_send(pair.now) == []
    assert not pair.dialer._hot_raised


def test_a_stream_that_the_peer_resets_is_forgotten() -> None:
    pair, (stream_id, other) = with_streams(2)
    pair.dialer.send_stream_data(stream_id, b"", end_stream=True)
    pair.run()
    pair.acceptor.reset_stream(stream_id, 7)
    pair.run()
    assert list(pair.dialer._streams) == [other]
    assert list(pair.acceptor._streams) == [other]


def test_a_stream_that_is_noted_twice_is_forgotten_once() -> None:
    pair, (stream_id, other) = with_streams(2)
    stream = pair.acceptor._streams[stream_id]
    limit = cast(StreamLimit, pair.acceptor._local_max_streams_bidi)
    before = limit._ended
    for engine in (pair.dialer, pair.acceptor):
        engine.send_stream_data(stream_id, b"", end_stream=True)
    pair.acceptor._hot_ended += [stream, stream]
    pair.run()
    assert list(pair.acceptor._streams) == [other]
    assert limit._ended == before + 1


def test_a_place_for_a_stream_is_announced_in_the_pass_that_finds_it() -> None:
    """Beside an acknowledgement, too: nothing else may be said for as long as a keep-alive."""
    pair = quiet_pair(Limits(streams_per_connection=1))
    stream_id = pair.dialer.open_stream(unidirectional=False)
    pair.dialer.send_stream_data(stream_id, b"?", end_stream=True)
    carry(pair, to_server=True)
    pair.acceptor.send_stream_data(stream_id, b"!", end_stream=True)
    carry(pair, to_server=False)
    for engine in (pair.dialer, pair.acceptor):
        engine.release(stream_id)
    pair.dialer._hot_space.ack_at = pair.now
    pair.dialer.send_ping(1)
    carry(pair, to_server=True)
    pair.acceptor._hot_space.ack_at = pair.now
    assert carry(pair, to_server=False) == 2
    assert pair.dialer._remote_max_streams_bidi == 2
    assert pair.acceptor.datagrams_to_send(pair.now) == []


@pytest.mark.parametrize("frame", ["reset", "stop"])
def test_a_reset_or_stop_that_was_lost_is_sent_again(frame: str) -> None:
    pair, (stream_id,) = with_streams(1)
    engine, peer = pair.dialer, pair.acceptor
    if frame == "reset":
        engine.reset_stream(stream_id, 7)
    else:
        engine.stop_receiving(stream_id, 7)
    assert len(engine.datagrams_to_send(pair.now)) == 1  # and nobody gets it
    for _ in range(5):  # later packets arrive, so that the loss shows
        other = engine.open_stream(unidirectional=False)
        engine.send_stream_data(other, b"?")
        carry(pair, to_server=True)
    peer._hot_space.ack_at = pair.now
    carry(pair, to_server=False)
    carry(pair, to_server=True)
    stream = peer._streams[stream_id]
    assert stream.receiver.is_finished if frame == "reset" else stream.sender.reset_pending


def test_a_window_of_the_connection_is_announced_alone() -> None:
    pair, _ = with_streams(1)
    limit = pair.dialer._local_max_data
    limit.value += 1 << 20
    assert carry(pair, to_server=True) == 1
    assert limit.sent == limit.value == pair.acceptor._remote_max_data


def test_an_end_fits_in_four_bytes() -> None:
    pair, _ = with_streams(1)
    loss = pair.dialer._loss
    loss._cc.congestion_window = loss.bytes_in_flight + 11 + 16 + 4
    stream_id = pair.dialer.open_stream(unidirectional=False)
    pair.dialer.send_stream_data(stream_id, b"", end_stream=True)
    assert carry(pair, to_server=True) == 1


def test_the_timer_without_a_round_trip_is_aioquics() -> None:
    pair, (stream_id,) = with_streams(1)
    pair.dialer.send_stream_data(stream_id, b"x")
    pair.dialer.datagrams_to_send(pair.now)
    pair.dialer._loss._rtt_initialized = False
    pair.dialer._loss._rtt_initial = 0.7
    timer = pair.dialer.get_timer()
    pair.dialer.is_hot = False
    assert timer == pair.dialer.get_timer()
