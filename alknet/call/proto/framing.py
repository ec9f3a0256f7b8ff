"""Length-prefixed frames: cutting a byte stream into them and making them."""

from __future__ import annotations

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
        self._buffer = bytearray()
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
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

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
        with memoryview(self._buffer) as view:
            frame = bytes(view[begin:end])
        self._start = end
        return frame

    def _check_length(self) -> int | None:
        header = self._buffer[self._start : self._start + HEADER_BYTES]
        if len(header) < HEADER_BYTES:
            return None
        length = int.from_bytes(header, "big")
        if length == 0:
            raise Malformed("a frame of no bytes")
        if length > self.limit:
            raise Malformed(f"a frame of {length} bytes is over the limit of {self.limit}")
        return length


def encode_frame(body: bytes) -> bytes:
    """Return *body* with its length in front. *body* has 1 … 2^32-1 bytes."""
    return len(body).to_bytes(HEADER_BYTES, "big") + body
