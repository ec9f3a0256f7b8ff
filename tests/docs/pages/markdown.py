"""Markdown from what the code says of itself: tables, docstrings, attributes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

__all__ = ["GENERATED", "attributes", "cell", "first_line", "prose", "table"]

GENERATED = "<!-- Made from the code by `make docs`; change the code, not this page. -->\n"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "".join(f"| {' | '.join(map(cell, line))} |\n" for line in lines)


def cell(text: str) -> str:
    """Return *text* so that it can stand in a table."""
    return " ".join(text.split()).replace("|", "\\|")


def first_line(thing: object) -> str:
    """Return the first line of a docstring, as prose."""
    return prose((inspect.getdoc(thing) or "").partition("\n")[0])


def prose(text: str) -> str:
    """Turn the marks of docstrings (````x````, `Name`) into those of Markdown."""
    return re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split()))


def attributes(cls: type) -> dict[str, str]:
    """Return what the ``Attributes:`` of a class's docstring say, by name."""
    document = inspect.getdoc(cls) or ""
    _, found, section = document.partition("Attributes:\n")
    if not found:
        return {}
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if match := re.match(r"    (\w+): (.*)", line):
            name = match[1]
            texts[name] = match[2]
        elif line.startswith("        ") and name:
            texts[name] += " " + line.strip()
        elif line.strip():
            break
    return {name: prose(text) for name, text in texts.items()}
