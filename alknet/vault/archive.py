"""A few named files as one tar archive (POSIX.1-1988, "ustar"), sans-IO.

The same files give the same bytes: names are sorted, all else that tar could say of a file is
constant. What is read must be of that form: plain files, each name one that is expected, once.
Whoever knows an age recipient can encrypt to it, so an archive that decrypts is still a stranger's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from alknet.errors import Malformed

__all__ = ["decode_archive_untrusted", "encode_archive"]

BLOCK = 512
# tar(1) pads to 20 blocks and warns of nothing less than two zero blocks.
RECORD = 20 * BLOCK
# The checksum is computed with blanks in its place.
CHECKSUM_AT, CHECKSUM_BYTES = 148, 8
NAME_BYTES = 100
SIZE_AT, SIZE_BYTES = 124, 12
TYPE_AT = 156
MAGIC_AT, MAGIC = 257, b"ustar\x0000"


def encode_archive(files: Mapping[str, bytes]) -> bytes:
    """Return *files* as a tar archive of mode 0600; names are ASCII and shorter than 100 bytes."""
    parts = []
    for name in sorted(files):
        data = files[name]
        parts += [_header(name, len(data)), data, bytes(-len(data) % BLOCK)]
    archive = b"".join(parts) + bytes(2 * BLOCK)
    return archive + bytes(-len(archive) % RECORD)


def decode_archive_untrusted(data: bytes, known: Collection[str]) -> dict[str, bytes]:
    """Return the files of an archive that `encode_archive` made.

    Args:
        known: The names that there may be.

    Raises:
        Malformed: It is something else, is cut short, or has a file of another name.
    """
    files: dict[str, bytes] = {}
    at = 0
    while any(header := data[at : at + BLOCK]):
        name, size = _parse_header(header)
        if name not in known or name in files:
            raise Malformed(f"the archive has an unexpected file {name[:80]!r}")
        start, at = at + BLOCK, at + BLOCK + size + -size % BLOCK
        if at > len(data):
            raise Malformed("the archive is cut short")
        files[name] = data[start : start + size]
    if len(data) - at < 2 * BLOCK:
        raise Malformed("the archive is cut short")
    return files


def _header(name: str, size: int) -> bytes:
    header = bytearray(BLOCK)
    encoded = name.encode("ascii")
    assert 0 < len(encoded) < NAME_BYTES
    header[: len(encoded)] = encoded
    header[100:108] = b"0000600\0"
    header[108:124] = b"0000000\0" * 2  # user and group
    header[SIZE_AT : SIZE_AT + SIZE_BYTES] = b"%011o\0" % size
    header[136:148] = b"%011o\0" % 0  # the date
    header[TYPE_AT] = ord("0")
    header[MAGIC_AT : MAGIC_AT + len(MAGIC)] = MAGIC
    header[CHECKSUM_AT : CHECKSUM_AT + CHECKSUM_BYTES] = b"%06o\0 " % _checksum(header)
    return bytes(header)


def _parse_header(header: bytes) -> tuple[str, int]:
    if len(header) < BLOCK or header[MAGIC_AT : MAGIC_AT + len(MAGIC)] != MAGIC:
        raise Malformed("not a tar archive")
    if _octal(header[CHECKSUM_AT : CHECKSUM_AT + CHECKSUM_BYTES]) != _checksum(header):
        raise Malformed("the archive is damaged: a checksum is wrong")
    if header[TYPE_AT] != ord("0"):
        raise Malformed("the archive has something else than files")
    name = header[:NAME_BYTES].partition(b"\0")[0]
    return name.decode("latin-1"), _octal(header[SIZE_AT : SIZE_AT + SIZE_BYTES])


def _checksum(header: bytes | bytearray) -> int:
    covered = sum(header) - sum(header[CHECKSUM_AT : CHECKSUM_AT + CHECKSUM_BYTES])
    return covered + CHECKSUM_BYTES * ord(" ")


def _octal(field: bytes) -> int:
    digits = field.rstrip(b" \0")
    if not digits or any(digit not in b"01234567" for digit in digits):
        raise Malformed("the archive is damaged: a number is none")
    return int(digits, 8)
