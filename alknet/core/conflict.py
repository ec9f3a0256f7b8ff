"""Two tasks on one side of a stream: a bug that must not go unnoticed, on any transport."""

from __future__ import annotations

from types import TracebackType

import trio

__all__ = ["ConflictDetector"]


class ConflictDetector:
    """A context manager that only one task may be in; the next gets `trio.BusyResourceError`."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._is_held = False

    def __enter__(self) -> None:
        if self._is_held:
            raise trio.BusyResourceError(self._message)
        self._is_held = True

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._is_held = False
