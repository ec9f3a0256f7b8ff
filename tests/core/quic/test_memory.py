"""What a connection keeps for itself once its handshake is over."""

from __future__ import annotations

import gc
import tracemalloc
from collections import deque

import pytest
from aioquic.quic.connection import MAX_LOCAL_CHALLENGES, QuicConnection
from aioquic.tls import AlertDescription, Epoch

from alknet.core.quic import memory
from alknet.core.quic.engine import Engine
from alknet.core.quic.memory import (
    ACTIVE_CONNECTION_IDS,
    KEPT_OF_TLS,
    InitialPair,
    RecentChallenges,
    ShortQueue,
)
from tests.core.quic.sansio import SERVER_ADDRESS, EnginePair, connected

KIB = 1024
# Of Python's memory, for one engine after its handshake; 20 when this was written. aioquic's own
# takes 94. What OpenSSL holds comes on top: some 5.
MOST_BYTES = 27 * KIB
# As Python writes a private name.
FRAME_HANDLERS = "_QuicConnection__frame_handlers"


def test_an_idle_engine_is_small() -> None:
    kept = [connected().dialer for _ in range(3)]  # fills caches
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10):
            kept += idle_engines()
        gc.collect()
        each = (tracemalloc.get_traced_memory()[0] - before) / 20
    finally:
        tracemalloc.stop()
    assert each < MOST_BYTES


def idle_engines() -> list[Engine]:
    pair = connected()
    pair.run(1)
    return [pair.dialer, pair.acceptor]


def test_connections_share_one_table_of_frames() -> None:
    first, second = connected().dialer, connected().dialer
    theirs = QuicConnection(configuration=first.configuration)
    ours, other, stock = (getattr(engine, FRAME_HANDLERS) for engine in (first, second, theirs))
    assert ours._table is other._table
    for frame_type in range(0x40):
        assert (frame_type in ours) == (frame_type in stock)
        if frame_type in stock:
            handler, epochs = ours[frame_type]
            assert handler == getattr(first, stock[frame_type][0].__name__)
            assert epochs == stock[frame_type][1]
            assert epochs is other[frame_type][1]


def test_buffers_and_keys_of_the_handshake_are_gone() -> None:
    pair = connected()
    pair.run(1)
    for engine in (pair.dialer, pair.acceptor):
        assert sum(buffer.capacity for buffer in engine._crypto_buffers.values()) == 0
        for epoch in (Epoch.INITIAL, Epoch.HANDSHAKE, Epoch.ZERO_RTT):
            assert not engine._cryptos[epoch].recv.is_valid()
            assert not engine._cryptos[epoch].send.is_valid()


def test_nothing_that_only_a_handshake_needs_is_left() -> None:
    pair = connected()
    pair.run(1)
    for engine in (pair.dialer, pair.acceptor):
        assert set(vars(engine.tls)) == set(KEPT_OF_TLS)
        assert engine._loss.spaces == [engine._spaces[Epoch.ONE_RTT]]
        for epoch in (Epoch.INITIAL, Epoch.HANDSHAKE):
            assert engine._spaces[epoch].discarded
            assert engine._spaces[epoch] is pair.dialer._spaces[Epoch.INITIAL]
            assert engine._crypto_streams[epoch] is pair.dialer._crypto_streams[Epoch.INITIAL]
    assert pair.acceptor.peer_key == pair.client_key.node_id
    assert pair.dialer.peer_key == pair.server_key.node_id


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\x04\0\0\x0d" + bytes(8) + b"\0\0\0\0\0", None),  # NewSessionTicket, of stock servers
        (b"\x04\0\0\x01\0", AlertDescription.decode_error),
        (b"\x18\0\0\x01\0", AlertDescription.unexpected_message),  # KeyUpdate
    ],
)
def test_tls_that_comes_after_the_handshake_is_judged_as_ever(
    message: bytes, code: AlertDescription | None
) -> None:
    pair = connected()
    pair.run(1)
    pair.acceptor._crypto_streams[Epoch.ONE_RTT].sender.write(message)
    pair.run(1)
    closed = pair.dialer.close_event
    assert (closed and closed.error_code) == (code and 0x100 + code)


def test_a_short_queue_keeps_its_order() -> None:
    queue = ShortQueue([b"a"])
    queue.extend([b"b", b"c"])
    assert [queue.popleft(), queue.popleft(), len(queue)] == [b"a", b"b", 1]
    queue.clear()
    with pytest.raises(IndexError):
        queue.popleft()


def test_only_the_last_challenges_are_remembered() -> None:
    ours: RecentChallenges = RecentChallenges()
    theirs: deque[bytes] = deque(maxlen=MAX_LOCAL_CHALLENGES)
    for number in range(2 * MAX_LOCAL_CHALLENGES):
        for queue in (ours, theirs):
            queue.append(bytes((number,)))
        assert list(ours) == list(theirs)


def test_packets_of_the_handshake_that_come_late_do_no_harm() -> None:
    pair = connected()
    late = [data for data in pair.client.sent if data[0] & 0x80]
    assert late
    pair.run(1)
    for data in late:
        pair.deliver(data, to_server=True)
    answers = [data for data in pair.server.sent if data[0] & 0x80]
    for data in answers:
        pair.deliver(data, to_server=False)
    pair.run(1)
    stream_id = pair.dialer.open_stream(unidirectional=False)
    pair.dialer.send_stream_data(stream_id, b"still here")
    pair.run(1)
    assert pair.server.received(stream_id) == b"still here"


def test_what_connections_share_after_the_handshake_is_never_written_to() -> None:
    shared = (memory._NO_STREAM, memory._NO_SPACE)
    before = [dict(vars(one)) for one in shared]
    test_packets_of_the_handshake_that_come_late_do_no_harm()
    assert [vars(one) for one in shared] == before
    assert vars(memory._NO_KEYS).keys() == vars(InitialPair()).keys()


def test_each_side_issues_a_few_connection_ids() -> None:
    pair = EnginePair()
    pair.connect()
    pair.run(1)
    for engine in (pair.dialer, pair.acceptor):
        assert isinstance(engine, Engine)
        assert len(engine._host_cids) == ACTIVE_CONNECTION_IDS
        assert len(engine._peer_cid_available) == ACTIVE_CONNECTION_IDS - 1


def test_keys_of_versions_that_nobody_speaks_are_not_made() -> None:
    pair = EnginePair()
    pair.dialer.connect(SERVER_ADDRESS, pair.now)
    for used in ([False, False], [True, False]):
        pairs = pair.dialer._cryptos_initial.values()
        assert ["recv" in vars(keys) for keys in pairs] == used
        pair.dialer.datagrams_to_send(pair.now)
