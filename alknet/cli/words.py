"""The 24 words, and shares of them, from a file, a pipe or the keyboard.

They pass through Python's ``str``, which cannot be wiped: for processes that end soon.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from alknet.cli.output import note

if TYPE_CHECKING:
    from alknet.vault.locked import LockedBuffer

__all__ = ["ask_words", "entropy_from_files", "read_words"]

STDIN = Path("-")
# How often a person may mistype the words before we stop asking.
TRIES = 3


def read_words(file: Path | None) -> str:
    """Return the words in *file*, or on standard input for ``-`` or None; a terminal is asked.

    Raises:
        LocalError: They are not valid.
    """
    from alknet.vault.words import check_words

    if file is not None and file != STDIN:
        return check_words(_text(file))
    if not sys.stdin.isatty():
        return check_words(sys.stdin.read())
    return ask_words()


def ask_words() -> str:
    """Ask on the terminal, without echo, and again after a mistake; raises like `read_words`."""
    from alknet.errors import LocalError
    from alknet.vault.words import check_words

    note("Type or paste the words, on one line or several; an empty line ends them.")
    note("Nothing is shown while you type. Ctrl-C leaves everything as it is.")
    for tries_left in range(TRIES - 1, -1, -1):
        try:
            return check_words(_ask_lines())
        except LocalError as exc:
            if not tries_left:
                raise
            note(f"{exc}. Once more:")
    raise AssertionError("unreachable")


def entropy_from_files(words: Path | None, shares: Path | None) -> LockedBuffer:
    """Return the entropy of the words in one file, or of the shares in the other.

    Raises:
        LocalError: They are wrong, or too few.
    """
    from alknet.vault.recovery import combine_shares, entropy_from_words, shares_in

    if shares is not None:
        return combine_shares(shares_in(_text(shares)))
    return entropy_from_words(read_words(words))


def _text(file: Path) -> str:
    if file == STDIN:
        return sys.stdin.read()
    # What is no text holds none of the words, whatever it decodes to.
    return file.read_text(encoding="utf-8", errors="replace")


def _ask_lines() -> str:
    import getpass

    words: list[str] = []
    while len(words) < 24:
        line = getpass.getpass("words: " if not words else f"words ({len(words)} so far): ")
        if not line.strip():
            break
        words += line.split()
    return " ".join(words)
