"""Length-prefixed frames: cutting a byte stream into them and making them."""

from __future__ import annotations

import struct

from alknet.errors import Malformed

__all__ = ["HEADER_BYTES", "FrameDecoder", "encode_frame"]

HEADER_BYTES = 4
"""The length of a frame, u32 big-endian, not counting itself."""


class FrameDecoder:
    """Cuts a byte stream into frames, however it was split on the way.

    It holds at most the chunk given last plus one frame of *limit* bytes, as long as
    `next_frame` is called until it returns None before more is given.

    Attributes:
        limit: The longest frame accepted, in bytes without the header. May be changed between
            frames; each frame is judged by the limit at the time it is asked for.
    """

    __slots__ = ("_buffer", "_start", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # A chunk as it came while frames end with chunks; a bytearray once one was cut in two.
        self._buffer: bytes | bytearray = b""
        self._start = 0

    @property
    def buffered_bytes(self) -> int:
        """Bytes received that no frame has been made of yet; not 0 means: amid a frame."""
        return len(self._buffer) - self._start

    def receive_data_untrusted(self, data: bytes | bytearray) -> None:
        """Take the next bytes of the stream.

        Raises:
            Malformed: The frame at hand is empty or longer than `limit`. Nothing was taken.
        """
        self._check_length()
        rest = len(self._buffer) - self._start
        if not rest:
            self._buffer = bytes(data)
        elif isinstance(self._buffer, bytes):
            self._buffer = bytearray(self._buffer[self._start :]) + data
        else:
            del self._buffer[: self._start]
            self._buffer += data
        self._start = 0

    def next_frame(self) -> bytes | None:
        """Return the next whole frame without its header, or None until more data comes.

        Raises:
            Malformed: It is empty or longer than `limit`. The stream cannot be read on.
        """
        length = self._check_length()
        if length is None:
            return None
        begin = self._start + HEADER_BYTES
        end = begin + length
        if end > len(self._buffer):
            return None
        if isinstance(self._buffer, bytes):
            frame = self._buffer[begin:end]
        else:
            with memoryview(self._buffer) as view:
                frame = bytes(view[begin:end])
        self._start = end
        if end == len(self._buffer):
            self._buffer, self._start = b"", 0
        return frame

    def _check_length(self) -> int | None:
        if len(self._buffer) - self._start < HEADER_BYTES:
            return None
        length: int = _read_header(self._buffer, self._start)[0]
        if length == 0:
            raise Malformed("a frame of no bytes")
        if length > self.limit:
            raise Malformed(f"a frame of {length} bytes is over the limit of {self.limit}")
        return length


def encode_frame(body: bytes) -> bytes:
    """Return *body* with its length in front. *body* has 1 … 2^32-1 bytes."""
    return len(body).to_bytes(HEADER_BYTES, "big") + body


_read_header = struct.Struct(">I").unpack_from
