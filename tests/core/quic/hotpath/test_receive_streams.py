"""Stream frames received the short way: the same as aioquic does."""

from __future__ import annotations

import pytest
from aioquic.quic import events
from aioquic.quic.packet import QuicFrameType
from aioquic.tls import Epoch

from alknet.core.quic.engine import Engine
from tests.core.quic.hostile import varint
from tests.core.quic.hotpath.duels import (
    PING,
    forked,
    hear,
    stream,
)


@pytest.mark.parametrize("kind", range(8, 16))
@pytest.mark.parametrize("offset", [0, 4, 5, 6])
@pytest.mark.parametrize("data", [b"", b"some more data" * 30])
def test_stream_frames_are_taken_alike(kind: int, offset: int, data: bytes) -> None:
    duel = forked()
    assert hear(duel, duel.server, stream(0, offset, data, kind))
    hear(duel, duel.server, stream(0, 5, b"filling the gap"))
    hear(duel, duel.server, stream(0, 20, b"after it", 0x0F))
    hear(duel, duel.server, stream(0, 28, b"beyond the end"))


@pytest.mark.parametrize("fin", [0, 1])
def test_bytes_in_order_become_an_event(fin: int) -> None:
    duel = forked()
    assert hear(duel, duel.server, stream(0, 5, b"more", 0x0E | fin))
    event = duel.server.seen[-1]
    assert event == events.StreamDataReceived(b"more", bool(fin), 0)
    assert isinstance(event, events.StreamDataReceived)
    assert type(event.end_stream) is bool
    receiver = duel.server.hot._streams[0].receiver
    assert receiver.is_finished == bool(fin)
    assert (duel.server.hot._hot_ended[-1:] == [duel.server.hot._streams[0]]) == bool(fin)


@pytest.mark.parametrize("kind", range(8, 16))
@pytest.mark.parametrize("length", [1, 63, 64, 1000])
def test_bytes_in_order_are_not_left_to_aioquic(kind: int, length: int) -> None:
    duel = forked()
    far = duel.server.fork()
    for stream_id, offset in ((0, 5), (64, 0), (64, 100), (0, 20_000), (0, 2**31)):
        duel.server = far.fork()
        duel.server.set(lambda e, i=stream_id, at=offset: _begin(e, i, at))  # type: ignore[misc]
        left = duel.server.watch()
        hear(duel, duel.server, stream(stream_id, offset, bytes(length), kind))
        assert (left == []) == (bool(kind & 4) or offset == 0)


def _begin(engine: Engine, stream_id: int, offset: int) -> None:
    known = engine._get_or_create_stream(0x08, stream_id)
    known.receiver.highest_offset = known.receiver._buffer_start = offset
    known.max_stream_data_local = engine._local_max_data.value = 2**40


def test_the_last_byte_of_a_window_is_not_left_to_aioquic() -> None:
    for name in ("stream", "connection"):
        duel = forked()
        if name == "stream":
            duel.server.set(lambda e: setattr(e._streams[0], "max_stream_data_local", 15))
        else:
            duel.server.set(lambda e: setattr(e._local_max_data, "value", 20))
        left = duel.server.watch()
        hear(duel, duel.server, stream(0, 5, bytes(10)) + bytes(3) + stream(0, 15, b"x"))
        assert left == [0x0E]


def test_padding_and_acknowledgements_are_not_left_to_aioquic() -> None:
    duel = forked()
    left = duel.server.watch()
    hear(duel, duel.server, bytes(5) + varint(2, 4, 0, 0, 0) + bytes(5) + PING)
    assert left == [1]


def test_packets_in_order_need_no_search_for_their_place() -> None:
    duel = forked()

    def refuse(*_: object) -> None:
        raise AssertionError("searched")

    duel.server.hot._spaces[Epoch.ONE_RTT].ack_queue.add = refuse  # type: ignore[method-assign, assignment]
    hear(duel, duel.server, PING)
    hear(duel, duel.server, PING)
    with pytest.raises(AssertionError):
        hear(duel, duel.server, PING, number=duel.client.plain._packet_number + 1)


def test_bytes_after_a_gap_wait_for_it() -> None:
    duel = forked()
    hear(duel, duel.server, stream(0, 7, b"world"))
    hear(duel, duel.server, stream(0, 12, b"!", 0x0F))
    hear(duel, duel.server, stream(0, 5, b", "))
    assert duel.server.received(0) == b"hello, world!"


@pytest.mark.parametrize("stream_id", [0, 1, 2, 3, 4, 6, 5, 7, 400, 4_000, 70_000, 2**30, 2**61])
@pytest.mark.parametrize("name", ["client", "server"])
def test_streams_of_all_kinds_are_treated_alike(name: str, stream_id: int) -> None:
    duel = forked()
    side = getattr(duel, name)
    assert hear(duel, side, stream(stream_id, 5, b"more"))


@pytest.mark.parametrize("limits", [{"stream": 20}, {"connection": 30}, {"stream": 16}, {}])
@pytest.mark.parametrize("length", [10, 11, 14, 15, 16])
def test_windows_are_kept_alike(limits: dict[str, int], length: int) -> None:
    duel = forked()

    def shrink(engine: Engine) -> None:
        engine._streams[0].max_stream_data_local = limits.get("stream", 1000)
        engine._local_max_data.value = limits.get("connection", 1000)
        assert engine._local_max_data.used == 10

    duel.server.set(shrink)
    hear(duel, duel.server, stream(0, 5, bytes(length)))
    hear(duel, duel.server, stream(2, 5, bytes(10)))


def test_a_window_can_be_filled_to_the_last_byte_the_short_way() -> None:
    duel = forked()
    duel.server.set(lambda e: setattr(e._local_max_data, "value", 20))
    duel.server.set(lambda e: setattr(e._streams[0], "max_stream_data_local", 15))
    assert hear(duel, duel.server, stream(0, 5, bytes(10)))
    assert duel.server.plain.close_event is None
    assert duel.server.received(0) == b"hello" + bytes(10)


@pytest.mark.parametrize("gap", [0, 100])
@pytest.mark.parametrize("code", ["reset", "fin", "forgotten", "stopped"])
def test_streams_that_are_over_are_treated_alike(code: str, gap: int) -> None:
    duel = forked()
    if code == "reset":
        hear(duel, duel.server, varint(QuicFrameType.RESET_STREAM, 0, 7, 5 + gap))
    elif code == "fin":
        hear(duel, duel.server, stream(0, 5 + gap, b"", 0x0F))
    elif code == "stopped":
        duel.server.do(lambda engine: engine.stop_receiving(0, 1))
    else:
        duel.server.set(lambda engine: engine._streams.pop(0))
    assert hear(duel, duel.server, stream(0, 5, b"more"))
    hear(duel, duel.server, stream(0, 5, b"more") + PING)


@pytest.mark.parametrize("offset", [63, 64, 16_383, 16_384, 70_000, 2**30 - 1, 2**30, 2**40])
def test_offsets_of_all_sizes_are_understood(offset: int) -> None:
    duel = forked()

    def far(engine: Engine) -> None:
        known = engine._streams[0]
        known.max_stream_data_local = engine._local_max_data.value = 2**50
        known.receiver.highest_offset = known.receiver._buffer_start = offset

    duel.server.set(far)
    for length in (1, 63, 64, 65, 200, 1000):
        at = duel.server.plain._streams[0].receiver.highest_offset
        assert hear(duel, duel.server, stream(0, at, bytes(length)) + stream(0, at + length, b"x"))
    assert duel.server.plain._streams[0].receiver.highest_offset == offset + 1399


def test_a_length_of_four_or_eight_bytes_is_understood() -> None:
    for length in (b"\x80\x00\x00\x04", b"\xc0" + bytes(6) + b"\x04"):
        duel = forked()
        assert hear(duel, duel.server, b"\x0e\x00\x05" + length + b"more" + PING)
        assert duel.server.received(0) == b"hellomore"
