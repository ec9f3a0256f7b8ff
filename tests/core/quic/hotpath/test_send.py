"""Sending plain packets: the same as aioquic does, in less time."""

from __future__ import annotations

import math
from typing import Any

import pytest
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.tls import CipherSuite, Epoch

from alknet.core.limits import Limits
from alknet.core.quic.engine import Engine
from alknet.core.quic.hotpath.ready import FEW_STREAMS
from tests.core.quic.hotpath.differential import Duel, Traffic, Twins, Weather

WEATHERS = {
    "calm": Weather(),
    "lossy": Weather(loss=0.1),
    "reordered": Weather(jitter=0.02),
    "storm": Weather(loss=0.2, repeat=0.2, jitter=0.05),
}


def as_aioquic_does(engine: Engine) -> None:
    """Switch off what we do on top."""
    engine.piggybacks_acks = engine.favours_small = False
    engine.max_packets_per_pass = 1_000_000


def sending_duel(seed: int = 0, *, receives: bool = False, **options: Any) -> Duel:
    return Duel(seed, receives=receives, sends=True, prepare=as_aioquic_does, **options)


def use(duel: Duel, steps: int) -> None:
    """Do random things, then let all settle on a calm network."""
    traffic = Traffic(duel)
    for _ in range(steps):
        traffic.step()
    duel.weather = Weather()
    duel.run(3)
    for side in (duel.client, duel.server):
        assert side.plain.close_event is None
        assert side.seen


def open_stream(side: Twins, data: bytes, *, end_stream: bool = False) -> int:
    stream_id = side.do(lambda engine: engine.open_stream(unidirectional=False))
    give(side, stream_id, data, end_stream=end_stream)
    return stream_id


def give(side: Twins, stream_id: int, data: bytes, *, end_stream: bool = False) -> None:
    side.do(lambda engine: engine.send_stream_data(stream_id, data, end_stream=end_stream))


def consume(side: Twins) -> None:
    """Read all that has arrived."""

    def read(engine: Engine) -> None:
        for stream_id, stream in list(engine._streams.items()):
            arrived = stream.receiver._buffer_start
            engine.credit(stream_id, arrived - engine._stream_consumed.get(stream_id, 0))

    side.do(read)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("weather", WEATHERS)
def test_random_traffic_is_sent_alike(weather: str, seed: int) -> None:
    use(sending_duel(seed, weather=WEATHERS[weather]), 30)


@pytest.mark.parametrize("seed", range(2))
def test_random_traffic_is_sent_and_received_alike(seed: int) -> None:
    use(sending_duel(seed, receives=True, weather=WEATHERS["lossy"]), 30)


@pytest.mark.parametrize("seed", range(2))
def test_narrow_windows_are_kept_and_announced_alike(seed: int) -> None:
    limits = Limits(
        stream_receive_window_bytes=16_384,
        connection_receive_window_bytes=40_000,
        streams_per_connection=4,
    )
    use(sending_duel(seed, limits=limits, weather=WEATHERS["lossy"]), 40)


@pytest.mark.parametrize("suite", list(CipherSuite)[:3])
def test_every_cipher_suite_seals_alike(suite: CipherSuite) -> None:
    duel = sending_duel(suite=suite)
    use(duel, 30)
    assert duel.client.hot._hot_crypto.send.cipher_suite is suite


@pytest.mark.parametrize("weather", ["calm", "lossy"])
def test_bulk_both_ways_on_several_streams_is_sent_alike(weather: str) -> None:
    duel = sending_duel(weather=WEATHERS[weather])
    sent: dict[tuple[Twins, int], bytes] = {}
    for number in range(5):
        side = (duel.client, duel.server)[number % 2]
        data = duel.rng.randbytes(20_000 + number)
        sent[duel.other(side), open_stream(side, data)] = data
    for _ in range(200):
        duel.run(0.02)
        consume(duel.client)
        consume(duel.server)
        if all(len(side.received(stream)) == len(data) for (side, stream), data in sent.items()):
            break
    for (side, stream_id), data in sent.items():
        assert side.received(stream_id) == data


def test_more_streams_than_a_few_take_turns_alike() -> None:
    duel = sending_duel()
    ids = [open_stream(duel.client, duel.rng.randbytes(3_000)) for _ in range(FEW_STREAMS + 4)]
    duel.run(1)
    for stream_id in ids[::2]:
        give(duel.client, stream_id, bytes(5_000))
    for stream_id in ids:
        give(duel.client, stream_id, bytes(2_000))
    duel.run(1)
    assert all(len(duel.server.received(stream_id)) >= 5_000 for stream_id in ids)


@pytest.mark.parametrize("first", [b"", b"x", bytes(5_000)])
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_ends_are_sent_alike(first: bytes, loss: float) -> None:
    duel = sending_duel(weather=Weather(loss=loss))
    ids = [open_stream(duel.client, first) for _ in range(3)]
    duel.run(0.5)
    for stream_id in ids:
        give(duel.client, stream_id, b"", end_stream=True)
        duel.run(0.002)
    ids.append(open_stream(duel.client, first, end_stream=True))
    duel.weather = Weather()
    duel.run(5)
    ended = {
        event.stream_id
        for event in duel.server.seen
        if isinstance(event, StreamDataReceived) and event.end_stream
    }
    assert ended == set(ids)


def test_a_lost_copy_of_an_end_that_has_arrived_is_not_sent_again() -> None:
    duel = sending_duel()
    client, server = duel.client, duel.server
    duel.run(1)
    stream_id = open_stream(client, b"data")
    client.send(duel.now)
    give(client, stream_id, b"", end_stream=True)
    client.send(duel.now)
    timer = client.timer
    assert timer is not None
    duel.now = timer
    client.handle_timer(duel.now)  # the data goes again, with a second copy of the end
    for data, _ in client.send(duel.now):
        duel.deliver(data, server)
    duel.now += 0.02  # its acknowledgement is due; a round trip shorter than the time-out was
    for data, _ in server.send(duel.now):
        duel.deliver(data, client)  # so the first copy is lost
    sender = client.hot._streams[stream_id].sender
    assert sender.is_finished
    assert not sender._pending_eof
    assert client.send(duel.now) == []


def test_streams_that_are_over_are_forgotten_and_replaced_alike() -> None:
    duel = sending_duel(limits=Limits(streams_per_connection=3))
    for _ in range(12):
        stream_id = open_stream(duel.client, b"question", end_stream=True)
        duel.run(0.1)
        give(duel.server, stream_id, b"answer", end_stream=True)
        duel.run(0.1)
        for side in (duel.client, duel.server):
            side.do(lambda engine, i=stream_id: engine.release(i))  # type: ignore[misc]
        duel.run(0.1)
    for side in (duel.client, duel.server):
        assert not side.hot._streams
        assert not side.hot._streams_queue
        assert not side.hot._hot_ready
        assert not side.hot._hot_ended


def test_a_stream_beyond_the_limit_waits_alike() -> None:
    duel = sending_duel(limits=Limits(streams_per_connection=1))
    first = open_stream(duel.client, b"x", end_stream=True)
    second = open_stream(duel.client, b"blocked")
    duel.run(0.1)
    assert not duel.server.received(second)
    give(duel.server, first, b"", end_stream=True)
    duel.server.do(lambda engine: engine.release(first))
    duel.run(1)
    assert duel.server.received(second) == b"blocked"


@pytest.mark.parametrize("window", [0, 30, 500, 1_200, 1_300, 3_000])
def test_a_window_that_is_nearly_full_is_filled_alike(window: int) -> None:
    duel = sending_duel()
    stream_id = open_stream(duel.client, b"x")
    duel.run(1)
    give(duel.client, stream_id, bytes(10_000))
    other = open_stream(duel.client, bytes(700), end_stream=True)

    def narrow(engine: Engine) -> None:
        engine._loss._cc.congestion_window = engine._loss.bytes_in_flight + window

    duel.client.do(narrow)
    sent = duel.client.send(duel.now)
    assert sum(len(data) for data, _ in sent) <= window
    duel.client.do(lambda engine: setattr(engine._loss._cc, "congestion_window", 100_000))
    duel.run(3)
    assert len(duel.server.received(other)) == 700


@pytest.mark.parametrize("bucket", [-0.1, 0.0, 0.001, 0.0035, 0.01])
def test_pacing_holds_packets_back_alike(bucket: float) -> None:
    duel = sending_duel()
    stream_id = open_stream(duel.client, b"x")
    duel.run(1)

    def fill(engine: Engine) -> None:
        pacer = engine._loss._pacer
        pacer.packet_time, pacer.bucket_max, pacer.bucket_time = 0.001, 0.02, bucket
        pacer.evaluation_time = duel.now
        engine._loss._cc.congestion_window = 1_000_000

    duel.client.do(fill)
    give(duel.client, stream_id, bytes(20_000))
    assert len(duel.client.send(duel.now)) == max(0, math.ceil(bucket / 0.001))
    assert duel.client.hot._pacing_at is not None
    duel.run(3)
    assert len(duel.server.received(stream_id)) == 20_001


def asked_duel() -> tuple[Duel, int]:
    """A duel in which the server has heard a question on a stream, and acknowledged nothing."""
    duel = sending_duel()
    client, server = duel.client, duel.server
    # A number that is left out, by chance, would be a gap: that is acknowledged at once.
    client.set(lambda engine: setattr(engine, "_skip_at", 1 << 40))
    stream_id = open_stream(client, b"x")
    duel.run(1)
    give(client, stream_id, b"question")
    for data, _ in client.send(duel.now):
        duel.deliver(data, server)
    return duel, stream_id


@pytest.mark.parametrize("late_s", [-0.001, 0.0, 0.001])
@pytest.mark.parametrize("has_data", [False, True])
def test_pacing_holds_back_no_acknowledgement_that_is_overdue(
    late_s: float, *, has_data: bool
) -> None:
    duel, stream_id = asked_duel()
    server = duel.server
    due = server.hot._hot_space.ack_at
    assert due is not None
    duel.now = due + late_s

    def empty(engine: Engine) -> None:
        pacer = engine._loss._pacer
        pacer.packet_time, pacer.bucket_max, pacer.bucket_time = 0.01, 0.02, -0.1
        pacer.evaluation_time = duel.now
        engine._pacing_at = duel.now  # as the last pass left it

    server.do(empty)
    if has_data:
        give(server, stream_id, bytes(5_000))
    assert bool(server.send(duel.now)) == (late_s > 0)


def test_key_updates_amid_bulk_are_sent_alike() -> None:
    duel = sending_duel()
    stream_id = open_stream(duel.client, b"x")
    phases = set()
    for _ in range(6):
        give(duel.client, stream_id, bytes(10_000))
        duel.run(0.1)
        phases.add(duel.client.hot._hot_crypto.key_phase)
        duel.client.do(lambda engine: engine.update_keys())
        give(duel.client, stream_id, bytes(10_000))
        duel.run(0.2)
        consume(duel.server)
        duel.run(0.2)
    assert phases == {0, 1}
    assert len(duel.server.received(stream_id)) == 120_001


def test_acknowledgements_of_many_ranges_are_sent_alike() -> None:
    duel = sending_duel()
    stream_id = open_stream(duel.client, b"x")
    duel.run(0.5)
    for number in range(40):
        give(duel.client, stream_id, b"more")
        for data, _ in duel.client.send(duel.now):
            if number % 2:
                duel.deliver(data, duel.server)
        for data, _ in duel.server.send(duel.now):
            duel.deliver(data, duel.client)
        duel.now += 0.001
    duel.run(3)
    assert len(duel.server.received(stream_id)) == 161


def test_windows_of_several_streams_are_announced_in_one_order() -> None:
    """That of the streams, whoever was read first."""
    duel = sending_duel(limits=Limits(stream_receive_window_bytes=16_384))
    ids = [open_stream(duel.client, bytes(16_384)) for _ in range(3)]
    duel.run(1)
    server = duel.server
    for read in ([ids[0]], [ids[2], ids[1]], [ids[1], ids[2], ids[0]]):
        for stream_id in read:
            server.do(lambda engine, i=stream_id: engine.credit(i, 5_000))  # type: ignore[misc]
        assert len(server.hot._hot_raised) == len(read)
        sent = server.send(duel.now)
        assert len(sent) == 1
        assert not server.hot._hot_raised
        for data, _ in sent:
            duel.deliver(data, duel.client)
    limits = [duel.client.hot._streams[stream_id].max_stream_data_remote for stream_id in ids]
    assert limits == [26_384, 26_384, 26_384]


@pytest.mark.parametrize("room", range(3, 11))
def test_an_end_waits_for_room_alike(room: int) -> None:
    """Its offset takes four bytes: a frame without data has eight."""
    duel = sending_duel()
    stream_id = open_stream(duel.client, bytes(20_000))
    duel.run(1)
    other = open_stream(duel.client, b"x")
    duel.run(1)

    def narrow(engine: Engine) -> None:
        window = engine._loss.bytes_in_flight + 11 + 16 + room
        engine._loss._cc.congestion_window = window

    duel.client.do(narrow)
    give(duel.client, stream_id, b"", end_stream=True)
    assert len(duel.client.send(duel.now)) == (room >= 8)
    give(duel.client, other, b"more")
    duel.client.send(duel.now)
    duel.client.do(lambda engine: setattr(engine._loss._cc, "congestion_window", 100_000))
    duel.run(3)
    assert duel.server.received(other) == b"xmore"


@pytest.mark.parametrize("room", [3, 4, 8, 12, 16, 24, 32, 40, 64])
def test_what_a_packet_has_no_room_to_announce_waits_alike(room: int) -> None:
    limits = Limits(stream_receive_window_bytes=16_384, connection_receive_window_bytes=49_152)
    duel = sending_duel(limits=limits)
    server = duel.server
    ids = [open_stream(duel.client, bytes(16_384)) for _ in range(3)]
    duel.run(1)
    for data, _ in duel.client.send(duel.now):
        duel.deliver(data, server)
    for stream_id in ids:
        server.do(lambda engine, i=stream_id: engine.credit(i, 16_000))  # type: ignore[misc]
    give(server, ids[0], b"answer")
    duel.client.do(lambda engine: engine.send_ping(1))
    for data, _ in duel.client.send(duel.now):
        duel.deliver(data, server)
    duel.now += 0.1  # an acknowledgement is overdue

    def narrow(engine: Engine) -> None:
        window = engine._loss.bytes_in_flight + 11 + 16 + room
        engine._loss._cc.congestion_window = window

    server.do(narrow)
    server.send(duel.now)
    server.send(duel.now)
    server.do(lambda engine: setattr(engine._loss._cc, "congestion_window", 100_000))
    duel.run(3)
    assert duel.client.received(ids[0]) == b"answer"
    for stream_id in ids:
        assert duel.client.hot._streams[stream_id].max_stream_data_remote == 32_384


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
@pytest.mark.parametrize("is_reset", [False, True])
def test_data_that_arrives_in_any_order_is_let_go_alike(
    order: tuple[int, ...], *, is_reset: bool
) -> None:
    duel = sending_duel()
    client, server = duel.client, duel.server
    stream_id = open_stream(client, b"x")
    duel.run(1)
    packets = []
    for _ in range(3):
        give(client, stream_id, bytes(100))
        packets += [data for data, _ in client.send(duel.now)]
    if is_reset:
        client.do(lambda engine: engine.reset_stream(stream_id, 7))
    for place in order:
        duel.deliver(packets[place], server)
        duel.now += 0.001
        server.set(lambda engine: setattr(engine._spaces[Epoch.ONE_RTT], "ack_at", duel.now))
        for data, _ in server.send(duel.now):
            duel.deliver(data, client)
    sender = client.hot._streams[stream_id].sender
    assert (sender._buffer_start == 301) == (not is_reset)
    assert not client.hot._hot_ready or is_reset


def test_what_was_lost_goes_again_while_flow_control_holds_back_the_rest() -> None:
    duel = sending_duel()
    client = duel.client
    held, lost = open_stream(client, b"x"), open_stream(client, b"y")
    duel.run(1)
    give(client, lost, bytes(3_000))
    assert client.send(duel.now)

    def lose(engine: Engine) -> None:
        engine._on_stream_delivery(QuicDeliveryState.LOST, engine._streams[lost], 1, 3_001, False)
        engine._remote_max_data_used = engine._remote_max_data

    client.do(lose)
    give(client, held, bytes(100))
    assert len(client.send(duel.now)) == 3


@pytest.mark.parametrize("room", range(5, 14))
def test_an_acknowledgement_is_to_be_acknowledged_if_that_fits(room: int) -> None:
    duel, _ = asked_duel()
    server = duel.server

    def prepare(engine: Engine) -> None:
        space = engine._spaces[Epoch.ONE_RTT]
        space.ack_queue.subtract(0, space.largest_received_packet)
        space.ack_queue.add(0)
        space.ack_at = duel.now
        engine._packet_number = 80
        engine._loss._cc.congestion_window = engine._loss.bytes_in_flight + 11 + 16 + room

    server.do(prepare)
    assert len(server.send(duel.now)) == 1
    packet = server.hot._hot_space.sent_packets[80]
    assert packet.is_ack_eliciting == (room >= 8)
