"""The HTTP/3 placeholder: right answers, and the RFC's codes for what is wrong."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import pylsqpack
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from alknet.core.contracts import Connection, ConnectionEnded, Stream, StreamReset
from alknet.core.endpoint.supervise import supervise
from alknet.http import NotFoundOverQuic
from alknet.http.h3 import proto
from alknet.http.h3.proto import FrameReader, FrameType, H3Code, H3Error
from alknet.http.placeholder import BODY, MAX_BODY_BYTES, REQUEST_TIMEOUT_S
from alknet.testing.memory import memory_connection_pair

GET = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"x"), (b":path", b"/")]
HEAD = [(b":method", b"HEAD"), *GET[1:]]
SETTINGS = b"\x00\x04\x00"


def fields(values: list[tuple[bytes, bytes]]) -> bytes:
    return pylsqpack.Encoder().encode(0, values)[1]


def frame(kind: int, payload: bytes) -> bytes:
    return bytes([kind]) + (len(payload) | 2 << 30).to_bytes(4, "big") + payload


def request(values: list[tuple[bytes, bytes]] = GET, body: bytes = b"") -> bytes:
    return frame(1, fields(values)) + (frame(0, body) if body else b"")


@asynccontextmanager
async def client() -> AsyncGenerator[Connection]:
    """A connection to the handler, run as the endpoint runs it."""
    async with memory_connection_pair(alpn="h3") as (dialer, acceptor):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervise, acceptor, NotFoundOverQuic())
            yield dialer
            nursery.cancel_scope.cancel()


async def read_all(stream: Stream) -> bytes:
    data = b""
    while part := await stream.receive_some():
        data += part
    return data


async def ask(connection: Connection, *parts: bytes) -> tuple[dict[bytes, bytes], bytes]:
    async with await connection.open_stream() as stream:
        for part in parts:
            await stream.send_all(part)
        await stream.send_eof()
        return answer(await read_all(stream))


def answer(data: bytes) -> tuple[dict[bytes, bytes], bytes]:
    size = data[1]
    assert data[0] == FrameType.HEADERS
    _, headers = pylsqpack.Decoder(0, 0).feed_header(0, data[2 : 2 + size])
    rest = data[2 + size :]
    if rest:
        assert rest[:2] == bytes([FrameType.DATA, len(rest) - 2])
    return dict(headers), rest[2:]


async def say(connection: Connection, data: bytes, *, is_end: bool = False) -> None:
    """Send *data* on a unidirectional stream."""
    stream = await connection.open_stream(unidirectional=True)
    await stream.send_all(data)
    if is_end:
        await stream.send_eof()


async def close_code(connection: Connection) -> int:
    with trio.fail_after(30):
        return (await connection.wait_closed()).code


async def test_every_request_is_answered_with_404() -> None:
    async with client() as connection:
        await say(connection, SETTINGS)
        for _ in range(3):
            headers, body = await ask(connection, request())
            assert headers[b":status"] == b"404"
            assert int(headers[b"content-length"]) == len(BODY)
            assert body == BODY


async def test_the_control_stream_comes_first_with_settings() -> None:
    async with client() as connection:
        control = await connection.accept_uni_stream()
        data = bytes(await control.receive_some())
        assert data[0] == proto.StreamType.CONTROL
        (settings,) = FrameReader(proto.CONTROL).receive_untrusted(data[1:])
        proto.check_settings_untrusted(settings.payload)


async def test_a_head_request_gets_no_body() -> None:
    async with client() as connection:
        headers, body = await ask(connection, request(HEAD))
        assert (headers[b":status"], body) == (b"404", b"")


async def test_a_request_may_come_in_single_bytes_with_a_body_trailers_and_unknown_frames() -> None:
    grease = frame(0x21, b"anything")
    whole = grease + request(GET, b"body" * 100) + grease + frame(1, fields([(b"a", b"b")]))
    async with client() as connection:
        parts = [whole[at : at + 1] for at in range(len(whole))]
        assert (await ask(connection, *parts))[1] == BODY


async def test_a_long_body_is_answered_and_not_waited_for() -> None:
    async with client() as connection:
        stream = await connection.open_stream()
        await stream.send_all(frame(1, fields(GET)))
        await stream.send_all(b"\x00" + (8 * MAX_BODY_BYTES | 2 << 30).to_bytes(4, "big"))
        assert answer(await read_all(stream))[1] == BODY
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(StreamReset) as stopped:
            await stream.send_all(bytes(1000))
        assert stopped.value.code == H3Code.NO_ERROR


async def test_qpack_streams_that_say_nothing_are_welcome() -> None:
    async with client() as connection:
        await say(connection, SETTINGS)
        await say(connection, b"\x02\x20")
        await say(connection, b"\x03\x44\x7f\x85\x01")
        await say(connection, b"\x40\x21grease")
        assert (await ask(connection, request()))[1] == BODY


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x00\x07\x01\x00", H3Code.MISSING_SETTINGS),
        (SETTINGS + b"\x04\x00", H3Code.FRAME_UNEXPECTED),
        (SETTINGS + b"\x00\x00", H3Code.FRAME_UNEXPECTED),
        (SETTINGS + b"\x01\x00", H3Code.FRAME_UNEXPECTED),
        (SETTINGS + b"\x06\x00", H3Code.FRAME_UNEXPECTED),  # PING of HTTP/2
        (b"\x00\x04\x02\x02\x00", H3Code.SETTINGS_ERROR),  # of HTTP/2
        (b"\x00\x04\x04\x21\x00\x21\x00", H3Code.SETTINGS_ERROR),
        (b"\x00\x04\x01\x21", H3Code.FRAME_ERROR),
        (b"\x00\x04\x80\x00\xff\xff", H3Code.EXCESSIVE_LOAD),
        (b"\x01", H3Code.STREAM_CREATION_ERROR),  # a client cannot push
        (b"\x02\xc0\x01x", H3Code.QPACK_ENCODER_STREAM_ERROR),
        (b"\x02\x3f\xe1\x1f", H3Code.QPACK_ENCODER_STREAM_ERROR),
        (b"\x03\x80", H3Code.QPACK_DECODER_STREAM_ERROR),
        (b"\x03\x01", H3Code.QPACK_DECODER_STREAM_ERROR),
    ],
)
async def test_a_unidirectional_stream_that_is_wrong_ends_the_connection(
    data: bytes, code: H3Code
) -> None:
    async with client() as connection:
        await say(connection, data)
        assert await close_code(connection) == code


async def test_critical_streams_come_once_and_stay() -> None:
    async with client() as connection:
        await say(connection, SETTINGS)
        await say(connection, SETTINGS)
        assert await close_code(connection) == H3Code.STREAM_CREATION_ERROR
    async with client() as connection:
        await say(connection, SETTINGS, is_end=True)
        assert await close_code(connection) == H3Code.CLOSED_CRITICAL_STREAM


async def test_streams_of_unknown_types_are_bounded() -> None:
    async with client() as connection:
        for _ in range(40):
            with suppress(ConnectionEnded):
                await say(connection, b"\x21")
        assert await close_code(connection) == H3Code.EXCESSIVE_LOAD


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(0, b"x"), H3Code.FRAME_UNEXPECTED),
        (frame(4, b""), H3Code.FRAME_UNEXPECTED),
        (request() + frame(1, fields([])) + frame(0, b"x"), H3Code.FRAME_UNEXPECTED),
        (request()[:-1], H3Code.FRAME_ERROR),
        (frame(1, b"\xff" * 20), H3Code.QPACK_DECOMPRESSION_FAILED),
        (frame(1, b"\x02\x00\x80"), H3Code.QPACK_DECOMPRESSION_FAILED),  # the dynamic table
        (b"\x01\x80\x01\x00\x00", H3Code.EXCESSIVE_LOAD),
    ],
)
async def test_a_request_that_breaks_http_ends_the_connection(data: bytes, code: H3Code) -> None:
    async with client() as connection:
        stream = await connection.open_stream()
        await stream.send_all(data)
        await stream.send_eof()
        assert await close_code(connection) == code


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ([(b"a", b"b")], H3Code.MESSAGE_ERROR),
        (GET[1:], H3Code.MESSAGE_ERROR),
        (GET[:-1], H3Code.MESSAGE_ERROR),
        ([*GET, GET[0]], H3Code.MESSAGE_ERROR),
        ([(b"a", b"b"), *GET], H3Code.MESSAGE_ERROR),
        ([*GET, (b":status", b"200")], H3Code.MESSAGE_ERROR),
        ([*GET, (b"Upper", b"x")], H3Code.MESSAGE_ERROR),
        (None, H3Code.REQUEST_INCOMPLETE),
    ],
)
async def test_a_request_that_is_none_is_reset_and_hurts_no_other(
    values: list[tuple[bytes, bytes]] | None, code: H3Code
) -> None:
    async with client() as connection:
        with pytest.raises(StreamReset) as reset:
            await ask(connection, b"" if values is None else request(values))
        assert reset.value.code == code
        assert (await ask(connection, request()))[1] == BODY


async def test_who_asks_nothing_is_shown_out(autojump_clock: trio.testing.MockClock) -> None:
    async with client() as connection:
        await say(connection, SETTINGS)
        assert (await ask(connection, request()))[1] == BODY
        began = trio.current_time()
        assert (await connection.wait_closed()).code == H3Code.NO_ERROR
        assert trio.current_time() - began == pytest.approx(REQUEST_TIMEOUT_S)


async def test_a_request_that_takes_for_ever_is_reset(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with client() as connection:
        stream = await connection.open_stream()
        await stream.send_all(request()[:3])
        with pytest.raises(StreamReset) as reset:
            await stream.receive_some()
        assert reset.value.code == H3Code.REQUEST_CANCELLED


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_frames_do_not_depend_on_how_the_stream_is_cut(parts: list[bytes]) -> None:
    def read(pieces: list[bytes]) -> object:
        reader, frames = FrameReader(proto.REQUEST), []
        try:
            for piece in pieces:
                frames += reader.receive_untrusted(piece)
        except H3Error as exc:
            return exc.close_code
        return frames, reader.is_between_frames

    whole = b"".join(parts)
    assert read(parts) == read([whole]) == read([bytes([byte]) for byte in whole])
