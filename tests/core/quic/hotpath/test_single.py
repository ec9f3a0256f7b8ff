"""A pass of one packet does what any other pass would, and leaves what it does not understand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from alknet.core.quic.engine import Engine
from alknet.core.quic.hotpath import burst, send
from alknet.core.quic.hotpath.burst import Datagrams
from alknet.core.quic.hotpath.send import HotSend
from alknet.core.quic.hotpath.single import send_single
from tests.core.quic.hotpath.differential import random_bytes
from tests.core.quic.hotpath.passes import ONE_RTT, carry, with_streams
from tests.core.quic.hotpath.snapshot import clone, differences
from tests.core.quic.sansio import EnginePair

# A short header, a number of two bytes and the tag; a STREAM frame with an offset below 64.
OVERHEAD, STREAM_HEAD = 1 + 8 + 2 + 16, 1 + 1 + 1 + 2
ANSWER = 11 * b"well: "
NOT_TAKEN = "left to the other way"


@cache
def asked() -> tuple[EnginePair, int]:
    """A pair after several calls, whose acceptor was asked something and has not answered."""
    with random_bytes(0):
        pair, (stream_id, _) = with_streams(2)
        for _ in range(5):
            pair.now += 0.02
            pair.dialer.send_stream_data(stream_id, b"question")
            carry(pair, to_server=True)
            pair.acceptor.send_stream_data(stream_id, b"answer")
            carry(pair, to_server=False)
            assert carry(pair, to_server=True) == 0
        pair.now += 0.02
        pair.dialer.send_stream_data(stream_id, b"the last question")
        carry(pair, to_server=True)
        for engine in (pair.dialer, pair.acceptor):
            engine._loss._pacer.packet_time = None
    return pair, stream_id


def compare(
    monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Engine], object]
) -> tuple[object, Engine]:
    """Let both ways send in the state that *prepare* makes; return what the one has said."""
    pair, stream_id = asked()
    said: list[object] = []

    def watched(connection: HotSend, now: float) -> Datagrams | None:
        before = clone(connection)  # type: ignore[arg-type]  # each is an Engine
        datagrams = send_single(connection, now)
        if datagrams is None:
            assert differences(before, connection) == []  # type: ignore[arg-type]
        said.append(NOT_TAKEN if datagrams is None else len(datagrams))
        return datagrams

    engines = clone(pair.acceptor), clone(pair.acceptor)
    sent = []
    for engine, way in zip(engines, (watched, lambda *_: None), strict=True):
        monkeypatch.setattr(send, "send_single", way)
        prepare(engine)
        with random_bytes(1):
            sent.append(engine.datagrams_to_send(pair.now))
        assert engine._streams[stream_id].sender.highest_offset > 0
    assert sent[0] == sent[1]
    assert differences(*engines) == []
    assert [stream.stream_id for stream in engines[0]._hot_ready] == [
        stream.stream_id for stream in engines[1]._hot_ready
    ]
    assert engines[0].get_timer() == engines[1].get_timer()
    assert engines[0].wants_another_pass == engines[1].wants_another_pass
    assert engines[0]._hot_acked_at == engines[1]._hot_acked_at
    return (said[0] if said else None), engines[0]


def answer(engine: Engine, size: int = len(ANSWER)) -> None:
    engine.send_stream_data(0, (ANSWER * (size // len(ANSWER) + 1))[:size])


def ack_bytes(engine: Engine) -> int:
    return len(burst.ack_now(engine, asked()[0].now))


def test_an_answer_takes_an_ack_along(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, engine = compare(monkeypatch, answer)
    assert taken == 1
    space = engine._spaces[ONE_RTT]
    assert space.ack_at is None
    handlers = next(reversed(space.sent_packets.values())).delivery_handlers
    assert [handler.__name__ for handler, _ in handlers] == [
        "_on_stream_delivery",
        "_on_ack_delivery",
    ]
    assert not engine._hot_ready


def test_a_single_packet_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    with random_bytes(3):
        pair, (stream_id,) = with_streams(1)
        heard = b""
        for n in range(200):
            pair.now += 0.01
            pair.dialer.send_stream_data(stream_id, b"%04d" % n * (n % 30 + 1))
            heard += b"%04d" % n * (n % 30 + 1)
            assert carry(pair, to_server=True) >= 1
            pair.acceptor.send_stream_data(stream_id, b"yes")
            carry(pair, to_server=False)
        assert pair.server.received(stream_id) == b"?" + heard
        assert pair.client.received(stream_id) == b"yes" * 200


def _first_of_stream(engine: Engine) -> None:
    engine.send_stream_data(engine.open_stream(unidirectional=True), ANSWER)
    engine._hot_ready.clear()
    engine._hot_ready[engine._streams[3]] = None


def _rode_just_now(engine: Engine) -> None:
    answer(engine)
    engine._hot_acked_at = asked()[0].now - burst.RIDES_EVERY_S / 2


def _no_ack(engine: Engine) -> None:
    answer(engine)
    engine._spaces[ONE_RTT].ack_at = None
    engine._acks.on_acknowledged(engine._spaces[ONE_RTT], engine._local_max_data.used)


def _full(engine: Engine) -> None:
    answer(engine, engine._max_datagram_size - OVERHEAD - STREAM_HEAD - ack_bytes(engine))


def _full_without_ack(engine: Engine) -> None:
    engine.piggybacks_acks = False
    answer(engine, engine._max_datagram_size - OVERHEAD - STREAM_HEAD)


def _all_that_streams_may(engine: Engine) -> None:
    answer(engine)
    stream = engine._streams[0]
    stream.max_stream_data_remote = stream.sender._buffer_stop


def _all_that_connections_may(engine: Engine) -> None:
    answer(engine)
    engine._remote_max_data = engine._remote_max_data_used + len(ANSWER)


def _window_for_two(engine: Engine) -> None:
    answer(engine)
    controller = engine._loss._cc
    controller.bytes_in_flight += 5_000
    controller.congestion_window = controller.bytes_in_flight + 2 * engine._max_datagram_size


def _said_since(engine: Engine, *, has_said: bool) -> None:
    answer(engine)
    engine._ack_eliciting_sent_since_receipt = has_said
    engine._close_at = asked()[0].now + 1


def _not_paced(engine: Engine) -> None:
    answer(engine)
    assert engine._loss._pacer.packet_time is None
    engine._loss._pacer.bucket_time = 0.0


def _skips_a_number(engine: Engine) -> None:
    answer(engine)
    engine._skip_at = engine._packet_number + 1


def _other_stream_is_last(engine: Engine) -> None:
    answer(engine)
    engine._streams_queue.remove(engine._streams[0])
    engine._streams_queue.insert(0, engine._streams[0])


def _pacing(engine: Engine, bucket_s: float) -> None:
    answer(engine)
    pacer = engine._loss._pacer
    pacer.packet_time, pacer.bucket_max = 0.01, 0.05
    pacer.bucket_time, pacer.evaluation_time = bucket_s, asked()[0].now


TAKEN: dict[str, Callable[[Engine], None]] = {
    "the first of a stream": _first_of_stream,
    "an ack rode just now": _rode_just_now,
    "nothing to acknowledge": _no_ack,
    "as much as fits": _full,
    "as much as fits without an ack": _full_without_ack,
    "all that the stream may": _all_that_streams_may,
    "all that the connection may": _all_that_connections_may,
    "a window for two": _window_for_two,
    "nothing came since the last": lambda engine: _said_since(engine, has_said=True),
    "the first since something came": lambda engine: _said_since(engine, has_said=False),
    "no pacing": _not_paced,
    "a number is left out": _skips_a_number,
    "another was served last": _other_stream_is_last,
    "a bucket for two": lambda engine: _pacing(engine, 0.02),
    "a bucket for one": lambda engine: _pacing(engine, 0.01),
    "a bucket for less than one": lambda engine: _pacing(engine, 0.001),
}


@pytest.mark.parametrize("what", TAKEN)
def test_it_is_as_if_it_were_any_pass(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    taken, _ = compare(monkeypatch, TAKEN[what])
    assert taken == 1


def test_what_is_paced_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, engine = compare(monkeypatch, lambda engine: _pacing(engine, 0.0))
    assert taken == 0
    assert engine._pacing_at is not None
    assert engine._hot_ready


@pytest.mark.parametrize(("bucket_s", "is_ready"), [(0.01, True), (0.02, False)])
def test_a_bucket_that_is_empty_then_leaves_the_stream_for_later(
    monkeypatch: pytest.MonkeyPatch, bucket_s: float, is_ready: bool
) -> None:
    _, engine = compare(monkeypatch, lambda engine: _pacing(engine, bucket_s))
    assert bool(engine._hot_ready) is is_ready
    assert (engine._pacing_at is not None) is is_ready
    assert engine._streams[0].sender.buffer_is_empty is not is_ready


def _one_byte_more(engine: Engine) -> None:
    answer(engine, engine._max_datagram_size - OVERHEAD - STREAM_HEAD - ack_bytes(engine) + 1)


def _end(engine: Engine) -> None:
    answer(engine)
    engine.send_stream_data(0, b"", end_stream=True)


def _end_alone(engine: Engine) -> None:
    engine.send_stream_data(0, b"", end_stream=True)


def _again(engine: Engine) -> None:
    sender = engine._streams[0].sender
    sender._pending.add(sender.highest_offset - 3, sender.highest_offset)
    sender.buffer_is_empty = False
    engine._hot_ready[engine._streams[0]] = None


def _again_and_more(engine: Engine) -> None:
    sender = engine._streams[0].sender
    sender._pending.add(sender.highest_offset - 3, sender.highest_offset - 1)
    answer(engine)


def _more_than_streams_may(engine: Engine) -> None:
    _all_that_streams_may(engine)
    engine._streams[0].max_stream_data_remote -= 1


def _more_than_connections_may(engine: Engine) -> None:
    _all_that_connections_may(engine)
    engine._remote_max_data -= 1


def _window_for_less(engine: Engine) -> None:
    _window_for_two(engine)
    engine._loss._cc.congestion_window -= 1


def _blocked(engine: Engine) -> None:
    answer(engine)
    engine._streams[0].is_blocked = True


def _nothing_left(engine: Engine) -> None:
    """As pacing leaves it, which does not look whether there is more."""
    engine._streams[0].sender.buffer_is_empty = False
    engine._hot_ready[engine._streams[0]] = None


LEFT: dict[str, Callable[[Engine], None]] = {
    "one byte more than fits": _one_byte_more,
    "an end": _end,
    "an end alone": _end_alone,
    "what was sent before": _again,
    "what was sent before, and more": _again_and_more,
    "more than the stream may": _more_than_streams_may,
    "more than the connection may": _more_than_connections_may,
    "a window for less than two": _window_for_less,
    "a stream that may not be open": _blocked,
    "nothing": _nothing_left,
}


@pytest.mark.parametrize("what", LEFT)
def test_what_is_not_simple_is_left(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    taken, _ = compare(monkeypatch, LEFT[what])
    assert taken == NOT_TAKEN


def _ack_due(engine: Engine) -> None:
    answer(engine)
    engine._spaces[ONE_RTT].ack_at = asked()[0].now


def _ack_overdue(engine: Engine) -> None:
    answer(engine)
    engine._spaces[ONE_RTT].ack_at = asked()[0].now - 0.01


def _two_streams(engine: Engine) -> None:
    answer(engine)
    engine.send_stream_data(engine.open_stream(unidirectional=True), ANSWER)


def _window_raised(engine: Engine) -> None:
    answer(engine)
    engine._streams[0].max_stream_data_local += 10_000
    engine.announce_window(engine._streams[0])


def _limit_raised(engine: Engine) -> None:
    answer(engine)
    engine._local_max_data.value += 10_000


def _stream_over(engine: Engine) -> None:
    answer(engine)
    stream = engine._streams[4]
    stream.sender.is_finished = stream.receiver.is_finished = True
    engine._hot_ended.append(stream)


NOT_ASKED: dict[str, Callable[[Engine], None]] = {
    "an ack is due": _ack_due,
    "an ack is overdue": _ack_overdue,
    "two streams are ready": _two_streams,
    "a window has grown": _window_raised,
    "a limit has grown": _limit_raised,
    "a stream is over": _stream_over,
    "nothing to send": lambda _engine: None,
}


@pytest.mark.parametrize("what", NOT_ASKED)
def test_a_pass_with_more_than_data_is_not_single(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    taken, _ = compare(monkeypatch, NOT_ASKED[what])
    assert taken is None
