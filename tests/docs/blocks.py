"""Fenced code blocks of Markdown files, and what the words after the language mean.

The conventions of the documentation:

* ``python``: run. All such blocks of a file run in order in one module, after its commands.
* ``python file=NAME``: written to NAME in the directory in which the file's commands run.
* ``console``: ``$ `` begins a command (``> `` goes on with it), all else is what it prints, where
  ``...`` stands for anything. A command without output shown may print what it likes. It must
  exit with 0.
* ``sh``: commands alone.
* ``toml``: a ``node.toml``, which must have no mistake. ``json`` must parse.
* ``text``: not checked: pictures, output, what needs root or a machine of its own.

A command that ends in ``&`` runs until the end of the file, and the next waits for what the block
shows of its output. The ports 4433 to 4439 stand for free ones. Each file has a home of its own.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LANGUAGES", "ROOT", "Block", "Command", "blocks", "commands", "documents"]

ROOT = Path(__file__).parents[2]
LANGUAGES = frozenset({"python", "console", "sh", "toml", "json", "text"})


@dataclass(frozen=True)
class Block:
    """One block; *line* is that of its first line of code."""

    path: Path
    line: int
    language: str
    options: dict[str, str]
    code: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command and the output that the block shows, None if it shows none."""

    line: int
    text: str
    expected: str | None = None

    @property
    def is_background(self) -> bool:
        return self.text.endswith("&") and not self.text.endswith("&&")


def documents() -> list[Path]:
    """Return all pages whose blocks are checked."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path) -> list[Block]:
    """Return the blocks of one page."""
    found = []
    lines = path.read_text(encoding="utf-8").splitlines()
    numbers = iter(range(len(lines)))
    for start in numbers:
        opening = _FENCE.fullmatch(lines[start])
        if opening is None:
            continue
        end = next(n for n in numbers if lines[n].strip() == opening["fence"])
        language, *words = opening["info"].split() or [""]
        options = dict(word.partition("=")[::2] for word in words)
        code = textwrap.dedent("\n".join(lines[start + 1 : end]))
        found.append(Block(path, start + 2, language, options, code + "\n"))
    return found


def commands(block: Block) -> list[Command]:
    """Return the commands of a ``console`` or ``sh`` block."""
    return list(_session(block) if block.language == "console" else _script(block))


def _session(block: Block) -> Iterator[Command]:
    lines = block.code.splitlines()
    assert lines[0].startswith("$ "), f"{block}: the first line of a console block is a command"
    at = 0
    while at < len(lines):
        start, text = at, lines[at][2:]
        at += 1
        while at < len(lines) and (lines[at].startswith("> ") or text.endswith("\\")):
            text += "\n" + lines[at].removeprefix("> ")
            at += 1
        output = at
        while at < len(lines) and not lines[at].startswith("$ "):
            at += 1
        shown = "\n".join(lines[output:at]) if at > output else None
        yield Command(block.line + start, text, shown)


def _script(block: Block) -> Iterator[Command]:
    lines = block.code.splitlines()
    at = 0
    while at < len(lines):
        start, text = at, lines[at]
        at += 1
        while text.endswith("\\"):
            text += "\n" + lines[at]
            at += 1
        if text.strip() and not text.startswith("#"):
            yield Command(block.line + start, text)


_FENCE = re.compile(r" *(?P<fence>`{3,})(?P<info>[^`]*)")
