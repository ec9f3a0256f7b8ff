"""What can be wrong with ``node.toml``, said so that a person finds and mends it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from alknet.errors import LocalError

__all__ = ["ConfigError", "ConfigProblem", "KeyPath", "key_text"]

KeyPath = tuple[str | int, ...]
"""Where something stands: ``("peers", 0, "scopes", 1)``. Numbers count from 0."""


class ConfigProblem(msgspec.Struct, frozen=True):
    """One thing that is wrong.

    Attributes:
        file: The path of the file.
        line: Counts from 1.
        key: ``limits.idle_timeout_s``, ``peers[0].scopes[1]``; empty for the file as a whole.
        message: What was found and what is expected.
        hint: What may have been meant; empty if nobody knows.
    """

    file: str
    line: int
    key: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.file}:{self.line}: {key}{self.message}{hint}"


class ConfigError(LocalError):
    """The configuration cannot be used. The message has a line for each problem.

    Attributes:
        problems: All that was found, in the order of the file.
    """

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def key_text(path: KeyPath) -> str:
    """Return a key path as people write it, ``peers[0].scopes``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")
