"""Errors of a dial, which name every attempt: short for a cell of a table, whole below it."""

from __future__ import annotations

import re

from alknet.cli.table import printable

__all__ = ["error_lines", "short_error"]

# Of a table that is not cut at a terminal's width, too.
MOST_CHARS = 44

# As `alknet.core.endpoint.dial` says it.
_FAILED_DIAL = re.compile(r"(cannot reach [^;]*?): (?=(?:quic|tcp) )")
_NEXT_ATTEMPT = re.compile(r"; (?=(?:quic|tcp) \S+: )")
_ATTEMPT = re.compile(r"(quic|tcp) \S+: (.+)", re.DOTALL)


def short_error(error: str) -> str:
    """Return *error* for a table: of a failed dial what it met, each once, without addresses."""
    _, attempts = _split(error)
    met = [match[2] if (match := _ATTEMPT.fullmatch(one)) else one for one in attempts]
    short = ", ".join(dict.fromkeys(met)) or error
    return short if len(short) <= MOST_CHARS else f"{short[: MOST_CHARS - 1].rstrip()}…"


def error_lines(name: str, error: str) -> list[str]:
    """Return all of *error*, which is about *name*: a failed dial's attempts on lines of their own.

    Nothing in them drives a terminal.
    """
    first, attempts = _split(error)
    lines = [f"{name}: {first}"]
    for one in attempts:
        transport, _, rest = one.partition(" ")
        lines.append(f"  {transport:<4} {rest}")
    return list(map(printable, lines))


def _split(error: str) -> tuple[str, list[str]]:
    match = _FAILED_DIAL.match(error)
    if match is None:
        return error, []
    return match[1], _NEXT_ATTEMPT.split(error[match.end() :])
