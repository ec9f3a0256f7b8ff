"""Tables for people: aligned columns, cut at the width of the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

__all__ = ["printable", "render"]

GAP = "  "
# A column is not made narrower than this before the others give way too.
MIN_COLUMN = 6


def render(
    headers: Sequence[str], rows: Sequence[Sequence[object]], *, width: int | None = None
) -> str:
    """Lay out *rows* below *headers*, without a newline at the end.

    Args:
        width: Cells at most a line; the widest columns are cut, ``…`` shows where. None for no
            limit. What a column cannot give way for is not cut.
    """
    cells = [list(headers), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(_cells, column)) for column in zip(*cells, strict=True)]
    if width is not None:
        widths = _fitted(widths, width - len(GAP) * (len(widths) - 1))
    return "\n".join(_line(row, widths) for row in cells)


def printable(text: str) -> str:
    """Escape what would drive a terminal: what is shown may be a peer's choice."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _fitted(widths: Sequence[int], room: int) -> list[int]:
    """Take from the widest until all fit."""
    fitted = list(widths)
    while sum(fitted) > room:
        widest = max(range(len(fitted)), key=fitted.__getitem__)
        if fitted[widest] <= MIN_COLUMN:
            break
        fitted[widest] -= 1
    return fitted


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = (_padded(text, width) for text, width in zip(row, widths, strict=True))
    return GAP.join(padded).rstrip()


def _padded(text: str, width: int) -> str:
    if _cells(text) > width:
        while _cells(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _cells(text))


def _cells(text: str) -> int:
    """How many cells of a terminal *text* takes."""
    if text.isascii():
        return len(text)
    return sum(map(_char_cells, text))


def _char_cells(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
