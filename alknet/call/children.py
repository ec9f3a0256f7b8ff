"""The error of a call that one operation made to another: between the two, and no further."""

from __future__ import annotations

from alknet.call.codes import CallError, ErrorCode

__all__ = ["ChildError"]


class ChildError(CallError):
    """A call of one operation by another failed; as the child's caller, the parent gets this.

    Attributes:
        operation: The child.
    """

    def __init__(self, error: CallError, operation: str) -> None:
        super().__init__(
            error.code, error.message, retryable=error.retryable, details=error.details
        )
        self.operation = operation

    def passed_on(self) -> CallError | None:
        """Return what the parent's caller gets if the parent does not handle this.

        None for what was wrong with the parent's request, which its caller did not make: it would
        take NOT_FOUND or FORBIDDEN for an answer to its own.
        """
        if self.code not in _CIRCUMSTANCES:
            return None
        retry_after = (self.details or {}).get("retry_after_ms")
        details = None if retry_after is None else {"retry_after_ms": retry_after}
        return CallError(self.code, self.message, retryable=self.retryable, details=details)


# What is true for whoever asks, and may be over soon.
_CIRCUMSTANCES = frozenset({ErrorCode.UNAVAILABLE, ErrorCode.RESOURCE_EXHAUSTED, ErrorCode.TIMEOUT})
