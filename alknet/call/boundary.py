"""The boundary between a handler and the protocol: what it raises leaves as a `CallError`.

A declared error is sent as it is. Everything else is a crash: the caller gets INTERNAL and a
correlation id, the log gets the traceback under the same id, once. The error of a call that the
handler made is the handler's own affair (`alknet.call.children`).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import trio

from alknet.call.children import ChildError
from alknet.call.codes import CallError, ErrorCode, call_error_from
from alknet.call.context import Context
from alknet.call.operations import Operation
from alknet.call.schema import Mismatch
from alknet.call.spec import OperationError

__all__ = ["HandlerBoundary"]

log = logging.getLogger(__name__)


class HandlerBoundary:
    """Judges what the handler of one call raises."""

    __slots__ = ("_context", "_operation")

    def __init__(self, operation: Operation[..., Any], context: Context) -> None:
        self._operation = operation
        self._context = context

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Raise a CallError for whatever is raised inside; cancellation passes.

        Raises:
            CallError: Safe to send.
        """
        try:
            yield
        except BaseException as exc:  # boundary: a crash ends its call, no more
            if (error := self.judge(exc)) is None:
                raise
            raise error from None

    def judge(self, exc: BaseException) -> BaseException | None:
        """Return what to raise instead of *exc*, or None to let it pass."""
        if isinstance(exc, BaseExceptionGroup):
            return self._judge_group(exc)
        return self._judge(exc) if isinstance(exc, Exception) else None

    def log_fields(self) -> dict[str, object]:
        """Return what each log record about the call says."""
        return self._context.info.log_fields()

    def _judge_group(self, group: BaseExceptionGroup[BaseException]) -> BaseException:
        """Judge what a handler's nursery raised."""
        cancelled, rest = group.split(trio.Cancelled)
        if not isinstance(rest, ExceptionGroup):  # cancelled only, KeyboardInterrupt, SystemExit
            return group
        error = self._judge(_only_leaf(rest))
        # A cancelled call has no reader for its error; a crash stands in the log by now.
        return error if cancelled is None else cancelled

    def _judge(self, exc: Exception) -> CallError:
        if isinstance(exc, ChildError):
            return exc.passed_on() or self._crash(exc)
        error = self._declared(exc) if isinstance(exc, OperationError) else call_error_from(exc)
        if error is None or not self._may_raise(error.code):
            return self._crash(exc)
        return error

    def _may_raise(self, code: str) -> bool:
        if code in ErrorCode.__members__:
            return code not in _OF_THE_MACHINERY
        return any(spec.code == code for spec in self._operation.spec.errors)

    def _declared(self, exc: OperationError) -> CallError | None:
        """Return what to send for *exc*, or None if its details are not what was declared."""
        shape = self._operation.details.get(exc.code)
        try:
            if shape is not None:
                details = msgspec.json.decode(shape.encode(exc.details), type=dict[str, Any])
            else:
                details = msgspec.convert(msgspec.to_builtins(exc.details), dict[str, Any] | None)
        except (Mismatch, msgspec.ValidationError, TypeError) as wrong:
            exc.add_note(f"its details are not what {exc.code} declares: {wrong}")
            return None
        return CallError(exc.code, exc.message, retryable=exc.retryable, details=details)

    def _crash(self, exc: Exception) -> CallError:
        correlation_id = secrets.token_hex(8)
        fields = {**self.log_fields(), "correlation_id": correlation_id}
        if isinstance(exc, OperationError | CallError):
            fields["code"] = exc.code
        if isinstance(exc, ChildError):
            fields["child"] = exc.operation
            fields["child_correlation_id"] = exc.correlation_id
        log.error("call.crashed", extra=fields, exc_info=exc)
        return CallError(
            ErrorCode.INTERNAL,
            "the operation failed",
            details={"correlation_id": correlation_id},
        )


def _only_leaf(group: ExceptionGroup[Exception]) -> Exception:
    """Return the one error in *group*, or the group itself if there are several."""
    exc: Exception = group
    while isinstance(exc, ExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return group if isinstance(exc, ExceptionGroup) else exc


# What the protocol says about calls; from a handler it can only be another call's, let through.
_OF_THE_MACHINERY = frozenset(
    {ErrorCode.INTERNAL, ErrorCode.ABORTED, ErrorCode.INVALID_OPERATION_TYPE}
)
