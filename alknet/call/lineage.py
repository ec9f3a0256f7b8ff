"""What a call that may survive its caller knows of those above it."""

from __future__ import annotations

from alknet.call.children import ChildError
from alknet.call.codes import CallError, ErrorCode

__all__ = ["Lineage", "has_ended_above"]


class Lineage:
    """Whether those above a call, who could end it, are still there."""

    __slots__ = ("_above", "_has_left")

    def __init__(self, above: Lineage | None = None) -> None:
        self._above = above
        self._has_left = False

    @property
    def is_broken(self) -> bool:
        """A call above has ended while this one runs."""
        return self._has_left or (self._above is not None and self._above.is_broken)

    def leave(self) -> None:
        """Note that who made the call has ended."""
        self._has_left = True


def has_ended_above(operation: str) -> ChildError:
    """Return the error of a call that is not started, for those above it have ended."""
    error = CallError(ErrorCode.ABORTED, "the calls above this one have ended")
    return ChildError(error, operation)
