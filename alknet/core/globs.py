"""Patterns over names made of segments: ``math/*``, ``hub/w*``, ``docker/**``."""

from __future__ import annotations

import re

from alknet.errors import LocalError

__all__ = ["Glob"]

MAX_LENGTH = 512
"""Longer than any name that there can be."""


class Glob:
    """A pattern: ``*`` stands for any characters but ``/``, and ``/**`` at its end for all below.

    Attributes:
        text: As it was written; what makes two of them equal.
    """

    __slots__ = ("_match", "text")

    def __init__(self, text: str) -> None:
        """Read a pattern.

        Raises:
            LocalError: It is none.
        """
        self.text = text
        body, rest = text, ""
        if text == "**":
            body, rest = "*", "(?:/.+)?"
        elif text.endswith("/**"):
            body, rest = text[:-3], "/.+"
        if len(text) > MAX_LENGTH or "**" in body or not _PATTERN.fullmatch(body):
            raise LocalError(
                f"pattern {text[:80]!r} is not segments between slashes, in which '*' stands for "
                "any characters, with '/**' at the end for all below"
            )
        # No name has an empty segment, so a whole one may be matched by something empty.
        parts = map(re.escape, body.split("*"))
        self._match = re.compile("[^/]*".join(parts) + rest).fullmatch

    def __repr__(self) -> str:
        return f"Glob({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Glob) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def matches(self, name: str) -> bool:
        """Whether *name* is one of those that the pattern means."""
        return self._match(name) is not None


_PATTERN = re.compile(r"[A-Za-z0-9_.*-]+(?:/[A-Za-z0-9_.*-]+)*")
