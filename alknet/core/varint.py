"""Variable-length integers of QUIC and HTTP/3 (RFC 9000 sec. 16): 62 bits in 1, 2, 4 or 8 bytes."""

from __future__ import annotations

__all__ = ["pull_varint_untrusted", "varint", "varint_size"]


def varint(value: int) -> bytes:
    """Encode an integer below 2^62."""
    if value < 0x40:
        return value.to_bytes(1)
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2)
    if value < 0x4000_0000:
        return (value | 0x8000_0000).to_bytes(4)
    return (value | 0xC000_0000_0000_0000).to_bytes(8)


def varint_size(value: int) -> int:
    """Return how many bytes `varint` makes of it."""
    if value < 0x40:
        return 1
    if value < 0x4000:
        return 2
    return 4 if value < 0x4000_0000 else 8


def pull_varint_untrusted(data: bytes | bytearray, at: int) -> tuple[int, int] | None:
    """Return the integer at *at* and where it ends; None if it is not there whole."""
    if at >= len(data):
        return None
    size = 1 << (data[at] >> 6)
    if at + size > len(data):
        return None
    value = int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1)
    return value, at + size
