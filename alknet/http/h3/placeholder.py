"""An ``h3`` handler that answers 404 to every request, until there is a real one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from alknet.core.contracts import Connection, ConnectionEnded, Stream, StreamReset
from alknet.core.scopes import open_background
from alknet.core.varint import pull_varint_untrusted
from alknet.http.h3 import proto
from alknet.http.h3.proto import Frame, FrameReader, FrameType, H3Code, H3Error, StreamType
from alknet.http.placeholder import BODY, MAX_BODY_BYTES, MAX_REQUESTS, REQUEST_TIMEOUT_S

__all__ = ["NotFoundOverQuic"]

# Each of ours and the peer's three, and some of types that nobody knows (RFC 9114 sec. 6.2.3).
MAX_UNIDIRECTIONAL = 32
HEADERS = [
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"content-length", b"%d" % len(BODY)),
]
NOT_FOUND = proto.encode_response(404, HEADERS, BODY)
NOT_FOUND_TO_HEAD = proto.encode_response(404, HEADERS, b"")


class NotFoundOverQuic:
    """Answers every request with 404 and one line of text."""

    alpns = ("h3",)
    requires_identity = False

    async def handle(self, connection: Connection) -> None:
        """Answer requests until the client leaves, breaks the protocol or falls silent.

        Cancelled, the requests at hand stay unanswered.

        Raises:
            H3Error: It broke the protocol; the endpoint closes with the error's code.
        """
        async with open_background() as nursery:
            await _open_control(connection)
            serving = trio.CancelScope()
            nursery.start_soon(_cancel_when_draining, connection, serving)
            nursery.start_soon(_serve_unidirectional, connection, nursery)
            with serving:
                await _serve_requests(connection)
            connection.close(H3Code.NO_ERROR, "")


async def _open_control(connection: Connection) -> None:
    with trio.move_on_after(REQUEST_TIMEOUT_S):
        control = await connection.open_stream(unidirectional=True)
        await control.send_all(proto.OUR_CONTROL_STREAM)
        return
    raise H3Error(H3Code.GENERAL_PROTOCOL_ERROR, "no unidirectional stream may be opened")


async def _cancel_when_draining(connection: Connection, serving: trio.CancelScope) -> None:
    # Nothing here is worth waiting for: a 404 that is not sent will be asked for again.
    await connection.draining.wait()
    serving.cancel()


async def _serve_requests(connection: Connection) -> None:
    async with trio.open_nursery() as requests:
        for _ in range(MAX_REQUESTS):
            stream = await _next_request(connection, requests)
            if stream is None:
                return
            requests.start_soon(_answer, stream)


async def _next_request(connection: Connection, requests: trio.Nursery) -> Stream | None:
    """Wait for a request; None if none has come, and none was at work, for long enough."""
    while True:
        with trio.move_on_after(REQUEST_TIMEOUT_S):
            return await connection.accept_stream()
        if not requests.child_tasks:
            return None


async def _answer(stream: Stream) -> None:
    """Answer one request; what befalls its stream concerns nobody else."""
    async with stream:
        with trio.move_on_after(REQUEST_TIMEOUT_S) as reading:
            try:
                await _answer_in_time(stream)
            except StreamReset:
                return  # the client does not want it any more
            except (ConnectionEnded, trio.ClosedResourceError):
                return
            except H3Error as exc:
                if exc.close_code not in _STREAM_ERRORS:
                    raise
                stream.reset(exc.close_code)
        if reading.cancelled_caught:
            stream.reset(H3Code.REQUEST_CANCELLED)


_STREAM_ERRORS = frozenset({H3Code.REQUEST_INCOMPLETE, H3Code.MESSAGE_ERROR})


async def _answer_in_time(stream: Stream) -> None:
    request = _Request()
    while not request.method:
        if not await _read_more(stream, request):
            raise H3Error(H3Code.REQUEST_INCOMPLETE, "the request ended before its fields")
    await stream.send_all(NOT_FOUND_TO_HEAD if request.method == b"HEAD" else NOT_FOUND)
    await stream.send_eof()
    while request.body_bytes <= MAX_BODY_BYTES:
        if not await _read_more(stream, request):
            return
    stream.stop_sending(H3Code.NO_ERROR)  # the answer does not depend on the rest (sec. 4.1)


async def _read_more(stream: Stream, request: _Request) -> bool:
    """Read a piece of the request; False if it has come to its end."""
    data = bytes(await stream.receive_some())
    if data:
        request.receive(data)
    elif not request.frames.is_between_frames:
        raise H3Error(H3Code.FRAME_ERROR, "the stream ended amid a frame")
    return bool(data)


class _Request:
    """What has come of one request.

    Attributes:
        method: Empty until the fields have come.
        body_bytes: Announced so far.
    """

    def __init__(self) -> None:
        self.frames = FrameReader(proto.REQUEST)
        self.method = b""
        self.body_bytes = 0
        self._has_trailers = False

    def receive(self, data: bytes) -> None:
        for frame in self.frames.receive_untrusted(data):
            if self._has_trailers or (frame.type == FrameType.DATA and not self.method):
                raise H3Error(H3Code.FRAME_UNEXPECTED, "a frame out of order")
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        if frame.type == FrameType.DATA:
            self.body_bytes += frame.length
        elif self.method:
            self._has_trailers = True
        else:
            self.method = proto.method_untrusted(frame.payload)


async def _serve_unidirectional(connection: Connection, nursery: trio.Nursery) -> None:
    taken: set[int] = set()
    try:
        for _ in range(MAX_UNIDIRECTIONAL):
            nursery.start_soon(_read_unidirectional, await connection.accept_uni_stream(), taken)
    except (ConnectionEnded, trio.ClosedResourceError):
        return
    raise H3Error(H3Code.EXCESSIVE_LOAD, "too many unidirectional streams")


async def _read_unidirectional(stream: Stream, taken: set[int]) -> None:
    """Read one of the peer's streams for as long as it has to live."""
    try:
        kind, data = await _read_type(stream)
        if kind is None:
            return
        if kind == StreamType.PUSH or kind in taken:
            raise H3Error(H3Code.STREAM_CREATION_ERROR, f"a stream of type {kind:#x} too many")
        if kind not in _READERS:
            stream.stop_sending(H3Code.STREAM_CREATION_ERROR)
            return
        taken.add(kind)
        await _READERS[kind](stream, data)
    except StreamReset as exc:
        raise _closed_critical() from exc
    except (ConnectionEnded, trio.ClosedResourceError):
        return
    raise _closed_critical()


async def _read_type(stream: Stream) -> tuple[int | None, bytes]:
    """Read the type of a stream; None if it ended before. Cancelled, bytes are lost."""
    data = b""
    while (kind := pull_varint_untrusted(data, 0)) is None:
        try:
            more = bytes(await stream.receive_some())
        except StreamReset:
            more = b""
        if not more:
            return None, b""
        data += more
    return kind[0], data[kind[1] :]


async def _read_control(stream: Stream, data: bytes) -> None:
    frames = FrameReader(proto.CONTROL)
    has_settings = False
    while True:
        for frame in frames.receive_untrusted(data):
            if frame.type != FrameType.SETTINGS and not has_settings:
                raise H3Error(H3Code.MISSING_SETTINGS, "the first frame is not SETTINGS")
            if frame.type == FrameType.SETTINGS:
                if has_settings:
                    raise H3Error(H3Code.FRAME_UNEXPECTED, "SETTINGS came twice")
                proto.check_settings_untrusted(frame.payload)
                has_settings = True
        data = bytes(await stream.receive_some())
        if not data:
            return


async def _read_encoder(stream: Stream, data: bytes) -> None:
    while True:
        proto.check_qpack_encoder_untrusted(data)
        data = bytes(await stream.receive_some())
        if not data:
            return


async def _read_decoder(stream: Stream, data: bytes) -> None:
    while not data:
        data = bytes(await stream.receive_some())
        if not data:
            return
    proto.check_qpack_decoder_untrusted(data)
    while await stream.receive_some():
        pass  # integers of any length; nothing of them would change anything


_READERS: dict[int, Callable[[Stream, bytes], Awaitable[None]]] = {
    StreamType.CONTROL: _read_control,
    StreamType.QPACK_ENCODER: _read_encoder,
    StreamType.QPACK_DECODER: _read_decoder,
}


def _closed_critical() -> H3Error:
    return H3Error(H3Code.CLOSED_CRITICAL_STREAM, "a stream ended that must not")
