"""Scans over a peer's JSON that come before or beside parsing: depth, integers, envelope keys.

All are linear in the bytes, whatever the bytes are. Each has a fast path that needs nothing but
`bytes.count` or `bytes.translate`, for frames of the usual kind.
"""

from __future__ import annotations

import re
from itertools import accumulate

import msgspec

from alknet.errors import Malformed

__all__ = [
    "MAX_DEPTH",
    "MAX_SAFE_INTEGER",
    "check_depth_untrusted",
    "check_text_untrusted",
    "check_unique_keys_untrusted",
    "has_unsafe_integer",
    "is_too_deep",
]

MAX_DEPTH = 64
"""Levels of objects and arrays, the envelope included; people write ten, attackers 100,000."""

MAX_SAFE_INTEGER = 2**53 - 1
"""The largest integer that every JSON implementation holds exactly (RFC 8259 sec. 6)."""


def check_text_untrusted(data: bytes) -> None:
    """Raise `Malformed` unless *data* is UTF-8, strings included."""
    if data.isascii():
        return
    try:
        data.decode()
    except UnicodeDecodeError as exc:
        raise Malformed(f"not UTF-8 at byte {exc.start}") from None


def check_depth_untrusted(data: bytes) -> None:
    """Raise `Malformed` if *data* nests deeper than `MAX_DEPTH`."""
    if data.count(b"{") + data.count(b"[") <= MAX_DEPTH:
        return
    brackets = _STRING.sub(b"", data).translate(None, _NOT_BRACKETS)
    depth = 0
    for at in range(0, len(brackets), _CHUNK):
        steps = map(_STEP.__getitem__, brackets[at : at + _CHUNK])
        levels = list(accumulate(steps, initial=depth))
        if max(levels) > MAX_DEPTH:
            raise Malformed(f"nested deeper than {MAX_DEPTH} levels")
        depth = levels[-1]


def is_too_deep(data: bytes) -> bool:
    """Return whether a peer would refuse *data* of ours as nested too deep."""
    try:
        check_depth_untrusted(data)
    except Malformed:
        return True
    return False


def has_unsafe_integer(data: bytes) -> bool:
    """Return whether *data*, sound JSON, holds an integer beyond ±`MAX_SAFE_INTEGER`."""
    # Ten times as fast as to look for a run of digits by a regular expression.
    if _MANY_DIGITS not in data.translate(_DIGITS_TO_0):
        return False
    bare = _STRING.sub(b'""', data)
    return any(
        len(match[1]) > _SAFE_DIGITS or int(match[1]) > MAX_SAFE_INTEGER
        for match in _LONG_INTEGER.finditer(bare)
    )


def check_unique_keys_untrusted(data: bytes, payload: bytes) -> None:
    """Raise `Malformed` if a key occurs twice at the top of the object *data*.

    *data* is sound JSON, and *payload* the bytes of its (last) ``payload``, an object: no object
    is a proper prefix of another, so where *payload* stands, it can be stepped over unread.
    """
    seen: set[str] = set()
    at = data.index(b"{") + 1
    while (match := _KEY.match(data, at)) is not None:
        key = msgspec.json.decode(match[1], type=str)
        if key in seen:
            raise Malformed(f"duplicate key in the envelope: {key[:32]!r}")
        seen.add(key)
        at = match.end()
        is_payload = key == "payload" and data.startswith(payload, at)
        at = at + len(payload) if is_payload else _end_of_value(data, at)


def _end_of_value(data: bytes, at: int) -> int:
    depth = 0
    for match in _TOKEN.finditer(data, at):
        depth += _STEP[match[0][0]]
        if depth == 0:
            return match.end()
    return len(data)


# A whole string with its quotes; `*+` never goes back, so hostile input costs one pass.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_KEY = re.compile(rb'[ \t\r\n,]*+("[^"\\]*+(?:\\.[^"\\]*+)*+")[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_TOKEN = re.compile(
    rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]|[^"{}\[\],: \t\r\n]++',
    re.DOTALL,
)
_SAFE_DIGITS = 16
_MANY_DIGITS = b"0" * _SAFE_DIGITS
_DIGITS_TO_0 = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_INTEGER = re.compile(rb"(?<![0-9.eE+-])-?([0-9]{16,}+)(?![0-9.eE])")

_CHUNK = 64 * 1024
_NOT_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_STEP = [(byte in b"{[") - (byte in b"}]") for byte in range(256)]
