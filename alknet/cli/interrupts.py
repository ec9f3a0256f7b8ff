"""What a signal does to a command; apart from the rest, for it must load fast."""

from __future__ import annotations

__all__ = ["INTERRUPTED", "Interrupted"]

INTERRUPTED = 130
"""What a shell reports of a program that SIGINT ended: 128 + 2."""


class Interrupted(BaseException):
    """A signal ended the command; *status* is 128 and its number."""

    def __init__(self, status: int = INTERRUPTED) -> None:
        super().__init__(status)
        self.status = status
