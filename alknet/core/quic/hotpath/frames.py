"""The frames of plain packets as bytes (RFC 9000 sec. 16 and 19)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aioquic.quic.packet_builder import QuicPacketBuilderStop
from aioquic.quic.rangeset import RangeSet

from alknet.core.quic.hotpath.records import Frames, Handlers
from alknet.core.varint import varint, varint_size

__all__ = [
    "LONGEST_TWO_BYTES",
    "SHORTEST_STREAM_FRAME",
    "FrameWriter",
    "ack_frame",
    "stream_head",
    "stream_overhead",
]

ACK = b"\x02"
# Type, stream id, length: an end without data on one of the first streams.
SHORTEST_STREAM_FRAME = 4
LONGEST_TWO_BYTES = 0x3FFF


def stream_overhead(stream_id: int, offset: int) -> int:
    """Return the bytes of a STREAM frame before its data, with a length of 2 bytes."""
    return 3 + varint_size(stream_id) + (varint_size(offset) if offset else 0)


def stream_head(kind: int, stream_id: int, offset: int, count: int) -> bytes:
    """Encode a STREAM frame up to its data; an *offset* of 0 is left out.

    The length takes 2 bytes as aioquic writes it, and 4 where it would overflow them.
    """
    if stream_id < 0x40 and 0x4000 <= offset < 0x4000_0000 and count <= LONGEST_TWO_BYTES:
        head = (kind << 8 | stream_id) << 32 | 0x8000_0000 | offset
        return (head << 16 | 0x4000 | count).to_bytes(8)
    parts = kind.to_bytes(1) + varint(stream_id)
    if offset:
        parts += varint(offset)
    if count <= LONGEST_TWO_BYTES:
        return parts + (count | 0x4000).to_bytes(2)
    return parts + (count | 0x8000_0000).to_bytes(4)


def ack_frame(received: RangeSet, delay: int) -> bytes:
    """Acknowledge all of *received*, 64 ranges at most; *delay* is scaled by the exponent."""
    newest = received[-1]
    start = newest.start
    parts = [
        ACK,
        varint(newest.stop - 1),
        varint(delay),
        varint(len(received) - 1),
        varint(newest.stop - 1 - start),
    ]
    for place in range(len(received) - 2, -1, -1):
        older = received[place]
        parts.append(varint(start - older.stop - 1))
        parts.append(varint(older.stop - older.start - 1))
        start = older.start
    return b"".join(parts)


class FrameWriter:
    """What aioquic's frame writers need of a packet builder, for a plain packet.

    Attributes:
        used: Bytes of frames so far.
    """

    __slots__ = ("_frames", "_handlers", "_room", "used")

    def __init__(self, frames: Frames, handlers: Handlers, room: int) -> None:
        self._frames = frames
        self._handlers = handlers
        self.used = 0
        self._room = room

    def start_frame(
        self,
        frame_type: int,
        capacity: int,
        handler: Callable[..., None] | None = None,
        handler_args: Sequence[Any] = (),
    ) -> FrameWriter:
        """Begin a frame, or raise QuicPacketBuilderStop if *capacity* bytes do not fit."""
        if self._room - self.used < capacity:
            raise QuicPacketBuilderStop
        if handler is not None:
            self._handlers.append((handler, handler_args))
        self.push_uint_var(frame_type)
        return self

    def push_uint_var(self, value: int) -> None:
        """Append a variable-length integer to the frame."""
        encoded = varint(value)
        self._frames.append(encoded)
        self.used += len(encoded)
