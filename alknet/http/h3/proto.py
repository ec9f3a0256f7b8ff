"""HTTP/3 frames, streams and field sections, as far as a server needs that answers one way.

Theory of operation. A connection has one control stream each way, whose first frame is SETTINGS.
Requests come on bidirectional streams: HEADERS, then DATA, then perhaps HEADERS (trailers), and
frames of unknown types anywhere, to be skipped. What a frame may stand where is one table
(`FrameReader`'s *allowed*). Fields are compressed by QPACK (RFC 9204); our SETTINGS are silent
about its dynamic table, so there is none, and an encoder that says anything about one is wrong.

Deliberately not here: push (a client cannot, we do not), GOAWAY, extended CONNECT, priorities.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

import pylsqpack

from alknet.core.varint import pull_varint_untrusted, varint
from alknet.errors import Malformed

__all__ = [
    "CONTROL",
    "MAX_FRAME_BYTES",
    "OUR_CONTROL_STREAM",
    "QPACK_DECODER",
    "QPACK_ENCODER",
    "REQUEST",
    "Frame",
    "FrameReader",
    "FrameType",
    "H3Code",
    "H3Error",
    "StreamType",
    "check_qpack_decoder_untrusted",
    "check_qpack_encoder_untrusted",
    "check_settings_untrusted",
    "encode_response",
    "method_untrusted",
]

# HEADERS and SETTINGS of an honest client: browsers send a few KiB at most.
MAX_FRAME_BYTES = 16 * 1024


class H3Code(enum.IntEnum):
    """Error codes of RFC 9114 sec. 8.1 and RFC 9204 sec. 6."""

    NO_ERROR = 0x100
    GENERAL_PROTOCOL_ERROR = 0x101
    STREAM_CREATION_ERROR = 0x103
    CLOSED_CRITICAL_STREAM = 0x104
    FRAME_UNEXPECTED = 0x105
    FRAME_ERROR = 0x106
    EXCESSIVE_LOAD = 0x107
    SETTINGS_ERROR = 0x109
    MISSING_SETTINGS = 0x10A
    REQUEST_CANCELLED = 0x10C
    REQUEST_INCOMPLETE = 0x10D
    MESSAGE_ERROR = 0x10E
    QPACK_DECOMPRESSION_FAILED = 0x200
    QPACK_ENCODER_STREAM_ERROR = 0x201
    QPACK_DECODER_STREAM_ERROR = 0x202


class H3Error(Malformed):
    """The peer broke HTTP/3; the connection closes with `close_code`."""

    def __init__(self, code: H3Code, what: str) -> None:
        super().__init__(what)
        self.close_code = int(code)


class StreamType(enum.IntEnum):
    """Of unidirectional streams (RFC 9114 sec. 6.2, RFC 9204 sec. 4.2)."""

    CONTROL = 0x00
    PUSH = 0x01
    QPACK_ENCODER = 0x02
    QPACK_DECODER = 0x03


class FrameType(enum.IntEnum):
    """RFC 9114 sec. 7.2; those of HTTP/2 that must not occur have no name."""

    DATA = 0x00
    HEADERS = 0x01
    CANCEL_PUSH = 0x03
    SETTINGS = 0x04
    PUSH_PROMISE = 0x05
    GOAWAY = 0x07
    MAX_PUSH_ID = 0x0D


KNOWN_TYPES = frozenset(FrameType) | {0x02, 0x06, 0x08, 0x09}
REQUEST = frozenset({FrameType.DATA, FrameType.HEADERS})
CONTROL = frozenset(
    {FrameType.SETTINGS, FrameType.CANCEL_PUSH, FrameType.GOAWAY, FrameType.MAX_PUSH_ID}
)
QPACK_ENCODER, QPACK_DECODER = StreamType.QPACK_ENCODER, StreamType.QPACK_DECODER
# SETTINGS_MAX_FIELD_SECTION_SIZE (0x06), so that clients know before they try.
OUR_SETTINGS = b"\x06\x80" + MAX_FRAME_BYTES.to_bytes(3, "big")
OUR_CONTROL_STREAM = (
    bytes([StreamType.CONTROL, FrameType.SETTINGS, len(OUR_SETTINGS)]) + OUR_SETTINGS
)
# Settings of HTTP/2 that HTTP/3 forbids (RFC 9114 sec. 7.2.4.1).
FORBIDDEN_SETTINGS = frozenset({0x02, 0x03, 0x04, 0x05})


class Frame(NamedTuple):
    """One frame; the payload of DATA is counted and dropped, so *payload* is empty for it."""

    type: int
    payload: bytes
    length: int


class FrameReader:
    """Cuts the bytes of one stream into frames, and keeps none but whole HEADERS and the like."""

    def __init__(self, allowed: frozenset[FrameType]) -> None:
        """Take frames of *allowed* and of unknown types; others are errors."""
        self._allowed = allowed
        self._buffer = bytearray()
        self._skip = 0

    @property
    def is_between_frames(self) -> bool:
        """The stream may end here."""
        return not self._buffer and not self._skip

    def receive_untrusted(self, data: bytes) -> list[Frame]:
        """Take more of the stream; return the known frames that it completes (DATA: begins).

        Raises:
            H3Error: A frame that must not be here, or is too long.
        """
        self._buffer += data
        frames: list[Frame] = []
        while True:
            skipped = min(self._skip, len(self._buffer))
            del self._buffer[:skipped]
            self._skip -= skipped
            frame = None if self._skip else self._next_untrusted()
            if frame is None:
                return frames
            if frame.type in KNOWN_TYPES:
                frames.append(frame)

    def _next_untrusted(self) -> Frame | None:
        header = self._header_untrusted()
        if header is None:
            return None
        kind, length, start = header
        if kind in KNOWN_TYPES and kind not in self._allowed:
            raise H3Error(H3Code.FRAME_UNEXPECTED, f"a frame of type {kind:#x} must not be here")
        if kind == FrameType.DATA or kind not in KNOWN_TYPES:
            del self._buffer[:start]
            self._skip = length
            return Frame(kind, b"", length)
        if length > MAX_FRAME_BYTES:
            raise H3Error(H3Code.EXCESSIVE_LOAD, f"a frame of {length} bytes is too long")
        if len(self._buffer) < start + length:
            return None
        payload = bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        return Frame(kind, payload, length)

    def _header_untrusted(self) -> tuple[int, int, int] | None:
        kind = pull_varint_untrusted(self._buffer, 0)
        length = None if kind is None else pull_varint_untrusted(self._buffer, kind[1])
        return None if kind is None or length is None else (kind[0], *length)


def check_settings_untrusted(payload: bytes) -> None:
    """Check a SETTINGS frame; none of the settings changes what we do.

    Raises:
        H3Error: It is cut short, says something twice, or speaks HTTP/2.
    """
    seen: set[int] = set()
    at = 0
    while at < len(payload):
        name = pull_varint_untrusted(payload, at)
        value = None if name is None else pull_varint_untrusted(payload, name[1])
        if name is None or value is None:
            raise H3Error(H3Code.FRAME_ERROR, "SETTINGS is cut short")
        if name[0] in seen or name[0] in FORBIDDEN_SETTINGS:
            raise H3Error(H3Code.SETTINGS_ERROR, f"setting {name[0]:#x} must not be here")
        seen.add(name[0])
        at = value[1]


def check_qpack_encoder_untrusted(data: bytes) -> None:
    """Check bytes of the peer's encoder stream: it can but set a capacity of 0 (RFC 9204 4.3.1).

    Raises:
        H3Error: It uses the table that we do not have.
    """
    if data.strip(b"\x20"):
        raise H3Error(H3Code.QPACK_ENCODER_STREAM_ERROR, "there is no dynamic table")


def check_qpack_decoder_untrusted(data: bytes) -> None:
    """Check bytes of the peer's decoder stream: it can but cancel streams (RFC 9204 4.4.2).

    Integers of several bytes go on with bytes that mean something else at the start, so what
    comes behind the first one is not looked at.

    Raises:
        H3Error: It acknowledges a table that we do not use.
    """
    if data and data[0] >> 6 != 0b01:
        raise H3Error(H3Code.QPACK_DECODER_STREAM_ERROR, "nothing was sent to be acknowledged")


def method_untrusted(block: bytes) -> bytes:
    """Decode a request's field section and return its method.

    Raises:
        H3Error: QPACK_DECOMPRESSION_FAILED for the compression, MESSAGE_ERROR for the request.
    """
    decoder = pylsqpack.Decoder(0, 0)
    try:
        _, fields = decoder.feed_header(0, block)
    except (pylsqpack.DecompressionFailed, pylsqpack.StreamBlocked) as exc:
        raise H3Error(H3Code.QPACK_DECOMPRESSION_FAILED, "fields that do not decompress") from exc
    pseudo = _pseudo_fields(fields)
    method = pseudo.get(b":method", b"")
    wanted = {b":authority"} if method == b"CONNECT" else {b":scheme", b":path"}
    if not method or not all(pseudo.get(name) for name in wanted):
        raise _not_a_request()
    return method


def encode_response(status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bytes:
    """Return the frames of a whole response; the field section uses the static table alone."""
    fields = [(b":status", b"%d" % status), *headers]
    _, block = pylsqpack.Encoder().encode(0, fields)
    frames = _frame(FrameType.HEADERS, block)
    return frames + _frame(FrameType.DATA, body) if body else frames


def _pseudo_fields(fields: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the pseudo-header fields, which come first and once each (RFC 9114 sec. 4.3)."""
    pseudo: dict[bytes, bytes] = {}
    is_past = False
    for name, value in fields:
        if name != name.lower() or not name:
            raise _not_a_request()
        if not name.startswith(b":"):
            is_past = True
        elif is_past or name in pseudo or name not in _REQUEST_FIELDS:
            raise _not_a_request()
        else:
            pseudo[name] = value
    return pseudo


_REQUEST_FIELDS = frozenset({b":method", b":scheme", b":authority", b":path", b":protocol"})


def _not_a_request() -> H3Error:
    return H3Error(H3Code.MESSAGE_ERROR, "not the fields of a request")


def _frame(kind: FrameType, payload: bytes) -> bytes:
    return bytes([kind]) + varint(len(payload)) + payload
