"""Other frames received the short way, and the idle time-out: the same as aioquic does."""

from __future__ import annotations

import pytest
from aioquic.quic.packet import NON_ACK_ELICITING_FRAME_TYPES, QuicFrameType
from aioquic.tls import Epoch

from alknet.core.limits import Limits
from alknet.core.quic.bounds import MAX_IDLE_FRAMES
from tests.core.quic.hostile import varint
from tests.core.quic.hotpath.duels import (
    FRAMES,
    PING,
    forked,
    hear,
    ready_once,
    stream,
)


@pytest.mark.parametrize("name", ["client", "server"])
@pytest.mark.parametrize("kind", FRAMES)
def test_frames_are_handled_alike_whole_and_cut_short(kind: str, name: str) -> None:
    frame = FRAMES[kind]
    for length in {1, 2, 3, 4, 6, 9, len(frame) // 2, len(frame) - 1, len(frame)}:
        if not 0 < length <= len(frame):
            continue
        duel = forked()
        side = getattr(duel, name)
        short = hear(duel, side, frame[:length])
        assert short or frame[0] == QuicFrameType.RETIRE_CONNECTION_ID
        if length == len(frame):
            hear(duel, side, stream(0, 5, b"after") + PING)


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_before_and_after_others_are_handled_alike(kind: str) -> None:
    duel = forked()
    hear(duel, duel.server, FRAMES[kind] + stream(0, 5, b"more") + FRAMES[kind])
    duel = forked()
    hear(duel, duel.client, bytes(2) + PING + stream(1, 5, b"more") + bytes(1) + FRAMES[kind])


def test_every_frame_may_come_in_a_plain_packet() -> None:
    """The short way does not look: aioquic allows them all."""
    table = ready_once().server.plain.__dict__["_QuicConnection__frame_handlers"]._table
    assert len(table) == 33
    assert all(Epoch.ONE_RTT in epochs for _, epochs in table.values())


@pytest.mark.parametrize("kind", FRAMES)
def test_what_elicits_an_acknowledgement_is_told_alike(kind: str) -> None:
    frame = FRAMES[kind]
    duel = forked()
    duel.server.set(lambda e: setattr(e._spaces[Epoch.ONE_RTT], "ack_at", None))
    hear(duel, duel.server, frame)
    space = duel.server.hot._spaces[Epoch.ONE_RTT]
    if duel.server.plain.close_event is None and len(varint(frame[0])) == 1:
        assert (space.ack_at is None) == (frame[0] in NON_ACK_ELICITING_FRAME_TYPES)


def test_an_acknowledgement_is_due_from_the_first_packet_that_elicits_it() -> None:
    duel = forked()
    duel.server.set(lambda e: setattr(e._spaces[Epoch.ONE_RTT], "ack_at", None))
    duel.server.set(lambda e: setattr(e, "_ack_delay", 0.007))
    duel.now += 1
    hear(duel, duel.server, PING)
    due = duel.server.hot._spaces[Epoch.ONE_RTT].ack_at
    assert due == duel.now + 0.007
    duel.now += 0.001
    hear(duel, duel.server, PING)
    assert duel.server.hot._spaces[Epoch.ONE_RTT].ack_at == due


def test_frames_without_data_are_counted_alike() -> None:
    for frame in (PING, varint(2, 0, 0, 0, 0), stream(0, 5, b""), stream(0, 0, b"hello")):
        for count in (MAX_IDLE_FRAMES, MAX_IDLE_FRAMES + 1):
            duel = forked()
            assert hear(duel, duel.server, frame * count)
            counts = frame != stream(0, 0, b"hello")
            closed = duel.server.plain.close_event is not None
            assert closed == (counts and count > MAX_IDLE_FRAMES)
            hear(duel, duel.server, frame * 2)


def test_a_packet_after_our_close_is_not_read() -> None:
    duel = forked()
    duel.server.do(lambda engine: engine.close(error_code=7))
    assert not hear(duel, duel.server, stream(0, 5, b"more"))
    assert duel.server.received(0) == b"hello"
    duel.server.send(duel.now)
    assert not hear(duel, duel.server, stream(0, 5, b"more"))
    assert duel.server.hot._hot_inbound is None


def test_the_peers_close_ends_the_packet_alike() -> None:
    duel = forked()
    closing = duel.server.plain._close_at
    hear(duel, duel.server, FRAMES["application close"] + stream(0, 5, b"more"))
    assert duel.server.received(0) == b"hellomore"
    assert duel.server.plain._close_at != closing
    hear(duel, duel.server, stream(0, 9, b"more"))
    assert duel.server.received(0) == b"hellomore"


def test_a_stateless_reset_ends_the_short_way() -> None:
    duel = forked()
    duel.server.do(lambda engine: engine.on_stateless_reset(duel.now))
    hear(duel, duel.server, stream(0, 5, b"more"))
    assert duel.server.received(0) == b"hello"


def test_the_idle_timeout_starts_anew_with_each_packet() -> None:
    duel = forked()
    duel.server.set(lambda e: setattr(e, "_ack_eliciting_sent_since_receipt", True))
    duel.now += 5
    assert hear(duel, duel.server, PING)
    assert duel.server.hot._close_at == duel.now + Limits().idle_timeout_s
    assert not duel.server.hot._ack_eliciting_sent_since_receipt


@pytest.mark.parametrize("fields", [("_rtt_smoothed",), ("_rtt_variance",)])
@pytest.mark.parametrize("value", [0.0001, 9.9, 10.0, 25.0])
def test_the_idle_timeout_follows_the_round_trip(fields: tuple[str, ...], value: float) -> None:
    duel = forked()
    hear(duel, duel.server, PING)
    for field in fields:
        duel.server.set(lambda e, f=field: setattr(e._loss, f, value))  # type: ignore[misc]
    assert hear(duel, duel.server, PING)


@pytest.mark.parametrize("theirs", [None, 0.0, 5.0, 29.0, 31.0])
def test_the_idle_timeout_is_the_smaller_of_both(theirs: float | None) -> None:
    duel = forked()
    duel.server.set(lambda e: setattr(e, "_remote_max_idle_timeout", theirs))
    duel.server.hot._hot_inbound = None
    hear(duel, duel.server, PING)
    assert hear(duel, duel.server, PING)
    wanted = min(theirs or 30.0, 30.0)
    assert duel.server.hot._close_at == duel.now + wanted
