"""On which line a key of a TOML text stands; `tomllib` tells only values."""

from __future__ import annotations

import re
from collections.abc import Mapping

from alknet.core.config_errors import KeyPath

__all__ = ["key_lines", "line_of"]


def key_lines(text: str) -> Mapping[KeyPath, int]:
    """Return the line, from 1, of each table header and key of valid TOML.

    What stands inside arrays and inline tables has no entry: `line_of` gives the line of the key
    whose value they are.
    """
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    position, line = 0, 1
    while position < len(text):
        if match := _HEADER.match(text, position):
            table = _table(_parts(match["keys"]), len(match["open"]) == 2, counts)
            lines.setdefault(table, line)
        elif match := _KEY.match(text, position):
            path = table + _parts(match["keys"])
            for size in range(len(table) + 1, len(path) + 1):  # dotted keys make tables
                lines.setdefault(path[:size], line)
        # Whatever the text, each round takes at least one character.
        end = max(_end_of_statement(text, match.end() if match else position), position + 1)
        line += text.count("\n", position, end)
        position = end
    return lines


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int:
    """Return the line of *path*, or of the nearest thing around it that has one."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _table(keys: KeyPath, is_array: bool, counts: dict[KeyPath, int]) -> KeyPath:
    # A header names the last element of each array of tables on its way.
    path: KeyPath = ()
    for key in keys[:-1]:
        path += (key,)
        if path in counts:
            path += (counts[path] - 1,)
    path += keys[-1:]
    if is_array:
        counts[path] = counts.get(path, 0) + 1
        path += (counts[path] - 1,)
    return path


def _end_of_statement(text: str, position: int) -> int:
    depth = 0
    while match := _PIECE.match(text, position):
        position = match.end()
        piece = match[0]
        if piece == "\n" and depth == 0:
            break
        depth += (piece in "[{") - (piece in "]}")
    return position


def _parts(keys: str) -> KeyPath:
    return tuple(part.strip("\"'") for part in re.findall(_PART, keys))


_PART = r"""[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*'"""
_KEYS = rf"(?P<keys>(?:{_PART})(?:[ \t]*\.[ \t]*(?:{_PART}))*)"
_HEADER = re.compile(rf"[ \t]*(?P<open>\[\[?)[ \t]*{_KEYS}[ \t]*\]{{1,2}}")
_KEY = re.compile(rf"[ \t]*{_KEYS}[ \t]*=")
_PIECE = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|\n|[\[\]{}]"
    r"""|[^\n"'\#\[\]{}]+""",
    re.DOTALL,
)
