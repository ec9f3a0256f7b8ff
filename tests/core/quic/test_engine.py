"""The contract of the private seams in aioquic: every release that we allow must pass this."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import Epoch

from alknet.core.contracts import cut_utf8
from alknet.core.limits import Limits
from alknet.core.quic import seams
from alknet.core.quic.bounds import MAX_PATIENCE_S
from alknet.core.quic.engine import Closing, Engine, client_engine, server_engine
from alknet.core.quic.handshake import ClientPolicy
from alknet.core.quic.policy import client_policy, server_policy
from alknet.core.tls.trust import PinnedKey
from tests.core.quic.sansio import (
    ALPN,
    SERVER_ADDRESS,
    EnginePair,
    Link,
    connected,
    new_credentials,
)

KIB = 1024
SMALL = Limits(
    stream_receive_window_bytes=16 * KIB,
    connection_receive_window_bytes=40 * KIB,
    streams_per_connection=4,
)


# the guard


def test_guard_names_what_a_release_lacks() -> None:
    assert seams.missing_names() == []
    assert seams.lacking(SimpleNamespace(here=1), "here gone") == ["SimpleNamespace.gone"]
    with pytest.raises(ImportError, match=r"lacks what alknet builds on: Context\._gone"):
        seams.require(["Context._gone"])


def test_guard_sees_each_owner_that_lost_its_names() -> None:
    pair = EnginePair()
    pair.dialer.connect(SERVER_ADDRESS, pair.now)
    for owner, names in (
        (QuicConnection(configuration=QuicConfiguration()), seams.CONNECTION_NAMES),
        (pair.dialer.tls, seams.CONTEXT_NAMES),
    ):
        assert seams.lacking(owner, names) == []
        assert len(seams.lacking(object(), names)) == len(names.split())


# flow control


def test_window_follows_the_reader_and_never_doubles() -> None:
    pair = connected(SMALL)
    stream_id = pair.dialer.open_stream(unidirectional=False)
    pair.dialer.send_stream_data(stream_id, bytes(200 * KIB))
    pair.run()
    assert len(pair.server.received(stream_id)) == 16 * KIB  # unread: the window, no more
    consumed = 0
    while consumed < 100 * KIB:
        pair.acceptor.credit(stream_id, 5 * KIB)
        consumed += 5 * KIB
        pair.run()
        received = len(pair.server.received(stream_id))
        assert received <= consumed + 16 * KIB
        assert received >= consumed + 12 * KIB  # raised when a quarter of it is free
        assert pair.acceptor._local_max_data.value <= consumed + 40 * KIB


def test_connection_window_bounds_all_streams_together() -> None:
    pair = connected(SMALL)
    streams = [pair.dialer.open_stream(unidirectional=False) for _ in range(4)]
    for stream_id in streams:
        pair.dialer.send_stream_data(stream_id, bytes(16 * KIB))
    pair.run()
    assert sum(len(pair.server.received(stream_id)) for stream_id in streams) == 40 * KIB
    for stream_id in streams:
        received = len(pair.server.received(stream_id))
        pair.acceptor.credit(stream_id, received)
    pair.run()
    assert sum(len(pair.server.received(stream_id)) for stream_id in streams) == 64 * KIB


@pytest.mark.parametrize("what", ["stream", "connection"])
def test_peer_that_exceeds_a_window_is_closed(what: str) -> None:
    pair = connected(SMALL)
    for _ in range(4 if what == "connection" else 1):
        stream_id = pair.dialer.open_stream(unidirectional=False)
        pair.dialer.send_stream_data(stream_id, bytes(16 * KIB + (what == "stream")))
        pair.dialer._streams[stream_id].max_stream_data_remote = 10**9
    pair.dialer._remote_max_data = 10**9
    pair.run()
    assert pair.acceptor.close_event is not None
    assert pair.acceptor.close_event.error_code == QuicErrorCode.FLOW_CONTROL_ERROR
    assert pair.dialer.closing is Closing.BY_PEER


def test_lost_window_updates_are_sent_again() -> None:
    pair = connected(SMALL)
    stream_id = pair.dialer.open_stream(unidirectional=False)
    pair.dialer.send_stream_data(stream_id, bytes(20 * KIB))
    pair.run()
    pair.filter = lambda data, from_client: [data] if from_client else []
    pair.acceptor.credit(stream_id, 16 * KIB)
    pair.run(0.05)
    pair.filter = lambda data, _: [data]
    pair.run()
    assert len(pair.server.received(stream_id)) == 20 * KIB


def test_reset_gives_back_the_connection_credit_of_bytes_that_never_came() -> None:
    pair = connected(SMALL)

    def on_event(event: events.QuicEvent) -> None:
        if isinstance(event, events.StreamReset):
            assert event.error_code == 7
            pair.acceptor.credit_abandoned(event.stream_id)
            pair.acceptor.release(event.stream_id)

    pair.server.on_event = on_event
    for _ in range(30):  # more than one window in all
        stream_id = pair.dialer.open_stream(unidirectional=True)
        pair.dialer.send_stream_data(stream_id, bytes(16 * KIB))
        pair.filter = lambda data, from_client: [] if from_client and len(data) > 500 else [data]
        pair.run(0.01)
        pair.dialer.reset_stream(stream_id, 7)
        pair.filter = lambda data, _: [data]
        pair.run()
    assert len(pair.server.of(events.StreamReset)) == 30
    assert pair.acceptor._consumed == pair.acceptor._local_max_data.used > 40 * KIB


def test_unwanted_bytes_return_connection_credit_but_no_stream_credit() -> None:
    pair = connected(SMALL)
    stream_id = pair.dialer.open_stream(unidirectional=False)
    pair.dialer.send_stream_data(stream_id, bytes(60 * KIB))
    pair.run()
    pair.acceptor.credit(stream_id, 16 * KIB, is_wanted=False)
    pair.run()
    assert len(pair.server.received(stream_id)) == 16 * KIB
    assert pair.acceptor._consumed == 16 * KIB


def test_stop_sending_resets_the_peers_side() -> None:
    pair = connected(SMALL)
    stream_id = pair.dialer.open_stream(unidirectional=False)
    pair.dialer.send_stream_data(stream_id, b"some")
    pair.run()
    pair.acceptor.stop_receiving(stream_id, 9)
    pair.run()
    assert pair.client.of(events.StopSendingReceived)[0].error_code == 9
    assert pair.server.of(events.StreamReset)[0].error_code == 9
    assert not pair.acceptor.is_released(stream_id)
    pair.acceptor.release(stream_id)
    assert pair.acceptor.is_released(stream_id)
    assert pair.dialer.unacknowledged(stream_id) == 0


# stream limits


@pytest.mark.parametrize("unidirectional", [False, True])
def test_stream_limit_follows_release(unidirectional: bool) -> None:
    pair = connected(SMALL)
    opened = []
    while pair.dialer.can_open(unidirectional=unidirectional):
        opened.append(pair.dialer.open_stream(unidirectional=unidirectional))
        pair.dialer.send_stream_data(opened[-1], b"x", end_stream=True)
    assert len(opened) == 4
    pair.run()
    if not unidirectional:
        for stream_id in opened:
            pair.acceptor.send_stream_data(stream_id, b"", end_stream=True)
    pair.run()
    assert not pair.dialer.can_open(unidirectional=unidirectional)  # over, but nobody read them
    pair.acceptor.release(opened[0])
    pair.run()
    assert pair.dialer.can_open(unidirectional=unidirectional)
    pair.dialer.open_stream(unidirectional=unidirectional)
    assert not pair.dialer.can_open(unidirectional=unidirectional)


def test_stream_limit_waits_for_acknowledgement_of_our_answers() -> None:
    pair = connected(SMALL)
    for _ in range(4):
        stream_id = pair.dialer.open_stream(unidirectional=False)
        pair.dialer.send_stream_data(stream_id, b"x", end_stream=True)
        pair.dialer._streams[stream_id].receiver.is_finished = False
    pair.run()
    pair.filter = lambda data, from_client: [] if from_client else [data]  # no ACK arrives
    for stream_id in (0, 4, 8, 12):
        pair.acceptor.send_stream_data(stream_id, bytes(KIB), end_stream=True)
        pair.acceptor.release(stream_id)
    pair.run(0.05)
    assert pair.acceptor._local_max_streams_bidi.value == 4
    pair.filter = lambda data, _: [data]
    pair.run()
    assert pair.acceptor._local_max_streams_bidi.value == 8


def test_flood_of_short_streams_is_bounded_by_the_limit() -> None:
    pair = connected(SMALL)
    pair.dialer._remote_max_streams_uni = 10**6
    for _ in range(20):
        stream_id = pair.dialer.open_stream(unidirectional=True)
        pair.dialer.send_stream_data(stream_id, b"x", end_stream=True)
    pair.run()
    assert pair.acceptor.close_event is not None
    assert pair.acceptor.close_event.error_code == QuicErrorCode.STREAM_LIMIT_ERROR
    assert len(pair.server.of(events.StreamDataReceived)) <= 4


def test_engine_forgets_streams_that_are_over() -> None:
    pair = connected(SMALL)
    for _ in range(50):
        stream_id = pair.dialer.open_stream(unidirectional=False)
        pair.dialer.send_stream_data(stream_id, b"question", end_stream=True)
        pair.run()
        pair.acceptor.credit(stream_id, 8)
        pair.acceptor.send_stream_data(stream_id, b"answer", end_stream=True)
        pair.run()
        pair.dialer.credit(stream_id, 6)
        pair.acceptor.release(stream_id)
        pair.dialer.release(stream_id)
        pair.run()
    for engine in (pair.dialer, pair.acceptor):
        assert not engine._streams
        assert not engine._stream_consumed


# state


def test_is_quiet_until_something_is_unacknowledged() -> None:
    pair = connected()

    def is_quiet() -> bool:
        return pair.dialer.is_quiet

    assert is_quiet()
    stream_id = pair.dialer.open_stream(unidirectional=False)
    assert is_quiet()
    pair.dialer.send_stream_data(stream_id, b"data")
    assert not is_quiet()
    pair.run()
    assert is_quiet()
    pair.dialer.send_stream_data(stream_id, b"", end_stream=True)
    assert not is_quiet()
    pair.run()
    assert is_quiet()
    other = pair.dialer.open_stream(unidirectional=True)
    pair.dialer.reset_stream(other, 1)
    assert not is_quiet()
    pair.run()
    assert is_quiet()


def test_key_update_from_both_sides_keeps_data_flowing() -> None:
    pair = connected()
    stream_id = pair.dialer.open_stream(unidirectional=False)
    for turn in range(6):
        (pair.dialer, pair.acceptor)[turn % 2].request_key_update()
        pair.dialer.send_stream_data(stream_id, bytes([turn]) * 3000)
        pair.acceptor.send_stream_data(stream_id, b"ok") if turn else pair.run()
        pair.run()
    assert pair.server.received(stream_id) == b"".join(bytes([i]) * 3000 for i in range(6))
    assert pair.client.received(stream_id) == b"ok" * 5
    assert pair.dialer.closing is Closing.NO


def test_a_second_key_update_waits_until_the_first_was_acknowledged() -> None:
    pair = connected()
    stream_id = pair.dialer.open_stream(unidirectional=False)
    assert not pair.dialer.update_keys()  # takes note of the phase
    pair.dialer.send_stream_data(stream_id, b"before")
    pair.run()
    assert pair.dialer.update_keys()
    assert not pair.dialer.update_keys()
    pair.dialer.send_stream_data(stream_id, b"after")
    assert not pair.dialer.update_keys()
    pair.run()
    assert pair.dialer.update_keys()
    # The peer has followed; its own update waits for an acknowledgement in the new phase.
    pair.dialer.send_stream_data(stream_id, b"again")
    pair.run()
    assert not pair.acceptor.update_keys()
    pair.acceptor.send_stream_data(stream_id, b"answer")
    pair.run()
    assert pair.acceptor.update_keys()
    assert pair.server.received(stream_id) == b"beforeafteragain"


def test_keys_are_not_updated_before_the_handshake_is_confirmed() -> None:
    server = new_credentials()
    policy = client_policy(PinnedKey(server.node_id), None)
    engine = client_engine(policy, alpn="x", server_name=None, limits=Limits())
    assert not engine.update_keys()


def test_a_peer_that_answers_late_holds_a_quiet_connection_no_longer_than_a_minute() -> None:
    pair = connected()
    engine = pair.acceptor
    engine._loss._rtt_smoothed = 3_600.0
    assert engine.idle_timeout_s == MAX_PATIENCE_S
    pair.dialer.send_ping(0)
    pair.run(0.5)
    assert engine._close_at is not None
    assert engine._close_at <= pair.now + MAX_PATIENCE_S


def test_an_idle_timeout_of_ours_is_kept_however_long() -> None:
    pair = connected(Limits(idle_timeout_s=300.0))
    pair.acceptor._loss._rtt_smoothed = 3_600.0
    assert pair.acceptor.idle_timeout_s == 300.0


def test_a_slow_path_is_given_the_time_of_three_probes() -> None:
    pair = connected()
    pair.acceptor._loss._rtt_smoothed = 13.0
    assert 3 * 13.0 < pair.acceptor.idle_timeout_s < MAX_PATIENCE_S


def test_a_closed_connection_is_kept_no_longer_than_a_minute() -> None:
    pair = connected()
    engine = pair.acceptor
    engine._loss._rtt_smoothed = 3_600.0
    engine.close()
    engine.datagrams_to_send(pair.now)
    assert engine.get_timer() == pair.now + MAX_PATIENCE_S
    engine.handle_timer(pair.now + MAX_PATIENCE_S)
    assert engine.get_timer() is None


def test_a_peer_that_disables_its_idle_timeout_gets_ours() -> None:
    pair = connected()
    pair.acceptor._remote_max_idle_timeout = 0.0
    assert pair.acceptor.idle_timeout_s == Limits().idle_timeout_s
    pair.run(Limits().idle_timeout_s - 1)
    assert pair.acceptor.closing is Closing.NO


def test_oversized_handshake_is_refused_before_it_is_buffered() -> None:
    pair = connected()
    stream = pair.dialer._crypto_streams[Epoch.ONE_RTT]
    stream.sender._buffer_stop = stream.sender._buffer_start = 70_000
    stream.sender.write(b"far away")
    pair.run(0.01)
    assert pair.acceptor.close_event is not None
    assert pair.acceptor.close_event.error_code == QuicErrorCode.CRYPTO_BUFFER_EXCEEDED


# datagrams


@pytest.mark.parametrize("cid_length", [8, 20])
def test_datagram_of_exactly_the_longest_size_arrives(cid_length: int) -> None:
    link, acceptor = _stock_client(cid_length)
    longest = acceptor.max_datagram_payload
    assert longest == 1200 - 22 - cid_length
    acceptor.send_datagram_frame(bytes(longest))
    link.run()
    (event,) = link.client.of(events.DatagramFrameReceived)
    assert len(event.data) == longest
    acceptor.send_datagram_frame(bytes(2_000))  # what the transport refuses to accept
    link.run()
    assert len(acceptor._datagrams_pending) == 1


def test_datagrams_that_no_longer_fit_do_not_block_the_queue() -> None:
    link, acceptor = _stock_client(8)
    acceptor.send_datagram_frame(bytes(acceptor.max_datagram_payload))
    acceptor.send_datagram_frame(b"short")
    acceptor._peer_cid.cid += bytes(4)  # as if the peer had issued a longer one
    acceptor.datagrams_to_send(link.now)
    assert not acceptor._datagrams_pending


def test_datagram_size_respects_what_the_peer_takes() -> None:
    link, acceptor = _stock_client(8, max_datagram_frame_size=100)
    assert acceptor.max_datagram_payload == 97
    acceptor.send_datagram_frame(bytes(97))
    link.run()
    assert len(link.client.of(events.DatagramFrameReceived)) == 1
    _, silent = _stock_client(8, max_datagram_frame_size=None)
    assert silent.max_datagram_payload == 0


def test_oldest_datagrams_are_dropped_first() -> None:
    engine = connected().dialer
    for number in range(5):
        engine.send_datagram_frame(bytes([number]))
    engine.drop_oldest_datagrams(2)
    assert list(engine._datagrams_pending) == [b"\x03", b"\x04"]


# closing


def test_close_event_says_who_and_why() -> None:
    pair = connected()
    pair.dialer.close(error_code=5, reason_phrase="done")
    assert pair.dialer.closing is Closing.BY_US
    pair.run(0.001)
    assert pair.acceptor.closing is Closing.BY_PEER
    assert pair.acceptor.close_event is not None
    assert (pair.acceptor.close_event.error_code, pair.acceptor.close_event.reason_phrase) == (
        5,
        "done",
    )


@pytest.mark.parametrize("frame_type", [None, 0])
def test_any_reason_fits_the_close(frame_type: int | None) -> None:
    pair = EnginePair()
    pair.filter = lambda data, from_client: [data] if from_client else []
    pair.connect()  # the server has handshake keys, the client nothing from it
    pair.filter = lambda data, _: [data]
    pair.acceptor.close(error_code=1, frame_type=frame_type, reason_phrase="é" * 2000)
    pair.run()
    assert pair.dialer.closing is Closing.BY_PEER
    late = connected()
    late.dialer.close(error_code=1, reason_phrase="é" * 2000)
    late.run(0.001)
    assert late.acceptor.close_event is not None
    assert late.acceptor.close_event.reason_phrase == "é" * 256


def test_text_is_cut_between_characters() -> None:
    assert cut_utf8("aé", 2) == "a"
    assert cut_utf8("aé", 3) == "aé"
    assert cut_utf8("\ud800", 10) == "?"


def _stock_client(
    cid_length: int, *, max_datagram_frame_size: int | None = 65_535
) -> tuple[Link, Engine]:
    """Connect an engine of ours that dials with connection IDs of another length."""
    key = new_credentials()
    policy = ClientPolicy(PinnedKey(key.node_id), None)
    configuration = QuicConfiguration(
        alpn_protocols=[ALPN],
        connection_id_length=cid_length,
        max_datagram_frame_size=max_datagram_frame_size,
    )
    engine = Engine(configuration, policy, Limits())
    engine._host_cids[0].cid = engine.host_cid = os.urandom(cid_length)
    engine._local_initial_source_connection_id = engine.host_cid
    link = Link(
        engine,
        lambda cid: server_engine(
            server_policy(key), alpns=[ALPN], limits=Limits(), original_destination_cid=cid
        ),
    )
    link.connect()
    assert isinstance(link.server.engine, Engine)
    return link, link.server.engine


def test_the_guard_runs_when_the_engine_is_imported() -> None:
    script = (
        "from aioquic.quic.connection import QuicConnection\n"
        "del QuicConnection._write_stream_limits\n"
        "import alknet.core.quic.engine\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert b"ImportError: this aioquic lacks what alknet builds on" in done.stderr
    assert b"_write_stream_limits" in done.stderr
