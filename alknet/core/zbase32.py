"""z-base-32: the text form of keys, made for people who read, type and speak it.

Bits are taken most significant first, five to a character; the last character is filled with
zero bits. There is no padding character, so the text is as short as it can be.

Source: https://philzimmermann.com/docs/human-oriented-base-32-encoding.txt
"""

from __future__ import annotations

from alknet.errors import LocalError

__all__ = ["ALPHABET", "decode", "encode"]

ALPHABET = "ybndrfg8ejkmcpqxot1uwisza345h769"


def encode(data: bytes) -> str:
    """Return the z-base-32 text of *data*: ``ceil(8 * len(data) / 5)`` lower-case characters."""
    bits = len(data) * 8
    length = -(-bits // 5)
    number = int.from_bytes(data, "big") << (length * 5 - bits)
    return "".join(ALPHABET[(number >> shift) & 31] for shift in range(length * 5 - 5, -1, -5))


def decode(text: str) -> bytes:
    """Return the bytes that *text* stands for; upper case is read as lower case.

    Raises:
        LocalError: A character is not of the alphabet, the length fits no whole number of bytes,
            or the unused last bits are not zero (so that each value has one text only).
    """
    number = 0
    for position, char in enumerate(text):
        value = _VALUES.get(char)
        if value is None:
            raise LocalError(f"character {char!r} at position {position + 1} is not z-base-32")
        number = number << 5 | value
    size, spare = divmod(len(text) * 5, 8)
    if spare >= 5:
        raise LocalError(f"{len(text)} characters are no whole number of bytes in z-base-32")
    if number & ((1 << spare) - 1):
        raise LocalError("the last character of the z-base-32 text is wrong: unused bits are set")
    return (number >> spare).to_bytes(size, "big")


_VALUES = {char: value for value, lower in enumerate(ALPHABET) for char in {lower, lower.upper()}}
