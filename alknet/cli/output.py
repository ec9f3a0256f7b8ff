"""Standard output: JSON for programs; tables, fields and colour for people on a terminal."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import click

from alknet.cli.table import printable, render

__all__ = [
    "colour_on",
    "emit",
    "emit_raw",
    "fields",
    "note",
    "paint",
    "prepare_streams",
    "say",
    "table",
]


def prepare_streams() -> None:
    """Make the standard streams fit to be used, whatever the shell and the locale say.

    All are UTF-8, as JSON has to be. What is no text is escaped on its way out, and on its way in
    left for the one who reads it to refuse. A closed stream is the null device: else a file that
    is opened later would take its number, and get what was meant for it.
    """
    for name, mode, errors in _STREAMS:
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  for good
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)


_STREAMS = (
    ("stdin", "r", "surrogateescape"),
    ("stdout", "w", "backslashreplace"),
    ("stderr", "w", "backslashreplace"),
)


def emit(value: object) -> None:
    """Print *value* as one line of JSON, at once."""
    import msgspec

    emit_raw(msgspec.json.encode(value))


def emit_raw(line: bytes) -> None:
    """Print JSON that is encoded already, as one line, at once."""
    stdout = sys.stdout
    text = line.decode().translate(_BLANKS)
    stdout.write((_escaped(text) if stdout.isatty() else text) + "\n")
    stdout.flush()


# White space between the tokens of JSON; inside of strings it is escaped already.
_BLANKS = str.maketrans("\t\r\n", "   ")


def say_json(data: bytes) -> None:
    """Print JSON for people, indented."""
    import msgspec

    say("\n".join(map(_escaped, msgspec.json.format(data, indent=2).decode().split("\n"))))


def say(text: str = "") -> None:
    """Print a line for people."""
    click.echo(text)


def note(text: str) -> None:
    """Print a remark on standard error, where it does not mix with the result."""
    click.echo(text, err=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print a table, cut at the terminal's width; *empty* is said if it has no rows."""
    if not rows:
        note(empty)
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    head, *lines = render([h.upper() for h in headers], rows, width=width).splitlines()
    say("\n".join([paint(head, bold=True), *lines]))


def fields(values: Mapping[str, object]) -> None:
    """Print names and values, a line each, aligned."""
    longest = max(map(len, values), default=0)
    for name, value in values.items():
        say(f"{paint(name.ljust(longest), dim=True)}  {printable(str(value))}")


def paint(text: str, stream: IO[str] | None = None, **style: Any) -> str:
    """Give *text* a style of `click.style`, if *stream* (standard output) shows colour."""
    return click.style(text, **style) if colour_on(stream or sys.stdout) else text


def colour_on(stream: IO[str]) -> bool:
    """Whether *stream* is a terminal that shows colour, and its user wants it."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and stream.isatty()


def _escaped(json_text: str) -> str:
    """Escape what would drive a terminal and can stand in a string of JSON (C1, DEL, bidi)."""
    return "".join(char if char.isprintable() else _as_escape(char) for char in json_text)


def _as_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[n : n + 2].hex()}" for n in range(0, len(units), 2))
