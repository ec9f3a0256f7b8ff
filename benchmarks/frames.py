"""The floor's protocol, without I/O: length-prefixed JSON envelopes, or counted bytes.

It has no operations, access, deadlines or identities: what lies between it and alknet is what the
framework costs. A connection whose first byte is ``d`` or ``u`` carries bulk instead of frames:
that letter and a size of 8 bytes, then so many bytes down, or up and one byte back.
"""

from __future__ import annotations

import msgspec

DOWNLOAD, UPLOAD = b"d", b"u"
HEADER = 9
CHUNK = bytes(256 * 1024)
ANSWER: dict[str, object] = {"output": {"id": "x" * 52, "time": 0.0}}


class Envelope(msgspec.Struct):
    """As alknet's."""

    type: str
    id: str
    payload: dict[str, object]


_encoder, _decoder = msgspec.json.Encoder(), msgspec.json.Decoder(Envelope)


def pack(envelope: Envelope) -> bytes:
    frame = _encoder.encode(envelope)
    return len(frame).to_bytes(4, "big") + frame


def request(serial: int) -> Envelope:
    return Envelope("call.requested", f"d{serial}", {"operationId": "/node/ping"})


def take_frames(buffer: bytearray) -> list[Envelope]:
    """Take all whole frames from the front of *buffer*."""
    frames, at = [], 0
    while len(buffer) >= at + 4:
        end = at + 4 + int.from_bytes(buffer[at : at + 4], "big")
        if len(buffer) < end:
            break
        frames.append(_decoder.decode(buffer[at + 4 : end]))
        at = end
    del buffer[:at]
    return frames


def answers(buffer: bytearray) -> bytes:
    """Take all whole requests from *buffer* and return their answers, for one write."""
    return b"".join(
        pack(Envelope("call.responded", frame.id, ANSWER)) for frame in take_frames(buffer)
    )


def bulk_header(letter: bytes, size: int) -> bytes:
    return letter + size.to_bytes(8, "big")


def parse_bulk_header(header: bytes) -> tuple[bytes, int]:
    return header[:1], int.from_bytes(header[1:], "big")
