"""What can go wrong with a call: the codes, what each means elsewhere, and their exceptions.

`CODES` is the one table that maps a code to whether a retry may help, to the exit status of a
command and to an HTTP status. Operations may declare codes of their own; those are known here only
as "failed, do not retry".
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import trio

from alknet.errors import AlknetError, Conflict, Denied, NotFound, Unavailable

__all__ = [
    "CODES",
    "CallError",
    "CodeInfo",
    "ErrorCode",
    "ExitStatus",
    "call_error_from",
    "code_message",
    "code_info",
    "exception_from",
    "exit_status",
]


class ErrorCode(enum.StrEnum):
    """The codes of the protocol itself, as they stand in ``call.error``."""

    NOT_FOUND = "NOT_FOUND"
    FORBIDDEN = "FORBIDDEN"
    INVALID_INPUT = "INVALID_INPUT"
    INVALID_OPERATION_TYPE = "INVALID_OPERATION_TYPE"
    TIMEOUT = "TIMEOUT"
    UNAVAILABLE = "UNAVAILABLE"
    CONFLICT = "CONFLICT"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    ABORTED = "ABORTED"
    INTERNAL = "INTERNAL"


class ExitStatus(enum.IntEnum):
    """What a command returns to the shell."""

    OK = 0
    FAILED = 1
    USAGE = 2
    DENIED = 3
    UNREACHABLE = 4
    TIMED_OUT = 5


class CodeInfo(msgspec.Struct, frozen=True):
    """What a code means outside the call protocol.

    Attributes:
        retryable: The same request may succeed later; the default of `CallError.retryable`.
        exit_status: Of a command that met it.
        http_status: Of the HTTP gateway.
    """

    retryable: bool
    exit_status: ExitStatus
    http_status: int


class CallError(AlknetError):
    """A call failed with a code; everything in it is safe to send to the caller.

    Attributes:
        code: An `ErrorCode`, or one that the operation declares.
        message: One sentence for people.
        retryable: The same request may succeed later.
        details: For programs: ``path`` (JSON Pointer into the input), ``retry_after_ms``,
            ``correlation_id``, or what the operation declares.
        is_failed_authentication: A token was refused; counts against the connection and address.
            Never sent.
        is_unsent: The request did not leave this side, so nothing of it has run. Never sent.
        is_refused: The callee says that it refused the request before any handler saw it.
        by: Who has said it: names of peers, the first as the node knows it that the call was made
            to (or made at, by its `PeerEnvironment`), each other as the one before does; empty for
            that node itself. None if no peer has said it: it arose here.
        is_passed_on: This node passes the error on to who asked it, and tells `by` with it.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool | None = None,
        details: Mapping[str, Any] | None = None,
        is_failed_authentication: bool = False,
    ) -> None:
        super().__init__(str(code), message)
        self.code = str(code)
        self.message = message
        self.retryable = code_info(code).retryable if retryable is None else retryable
        self.details: dict[str, Any] | None = dict(details) if details else None
        self.is_failed_authentication = is_failed_authentication
        self.is_unsent = False
        self.is_refused = False
        self.by: tuple[str, ...] | None = None
        self.is_passed_on = False

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def copied(self) -> CallError:
        """Return the same for another call: who catches it may add to it, and to its traceback."""
        copy = CallError(
            self.code,
            self.message,
            retryable=self.retryable,
            details=self.details,
            is_failed_authentication=self.is_failed_authentication,
        )
        copy.is_unsent, copy.is_refused = self.is_unsent, self.is_refused
        copy.by, copy.is_passed_on = self.by, self.is_passed_on
        return copy

    @property
    def has_not_started(self) -> bool:
        """It is certain that nothing of the call has run, so that it may be tried elsewhere."""
        return self.is_unsent or self.is_refused

    @property
    def retry_after_s(self) -> float | None:
        """How long to wait before a retry, if whoever failed has said so."""
        value = (self.details or {}).get("retry_after_ms")
        return value / 1000 if isinstance(value, int | float) and value >= 0 else None

    @property
    def correlation_id(self) -> str | None:
        """The id under which the callee logged a crash, if it sent one."""
        value = (self.details or {}).get("correlation_id")
        return value if isinstance(value, str) else None


def code_info(code: str) -> CodeInfo:
    """Return what *code* means; a code that is not of the protocol is a plain failure."""
    return CODES.get(code, _DECLARED)


def call_error_from(exc: BaseException) -> CallError | None:
    """Return the error to send for *exc*, or None if it is a crash, whose text must not leave."""
    if isinstance(exc, CallError):
        return exc
    if isinstance(exc, Denied):
        return CallError(
            ErrorCode.FORBIDDEN,
            exc.reason,
            is_failed_authentication=exc.is_failed_authentication,
        )
    if isinstance(exc, Unavailable):
        details = None
        if exc.retry_after_s is not None:
            details = {"retry_after_ms": round(exc.retry_after_s * 1000)}
        return CallError(ErrorCode.UNAVAILABLE, str(exc), details=details)
    for kind, code in _FROM_EXCEPTION:
        if isinstance(exc, kind):
            return CallError(code, str(exc) or code_message(code))
    return None


def exception_from(error: CallError) -> Exception:
    """Return the error of the families in `alknet.errors` that *error* stands for.

    It undoes `call_error_from`; a code without a family comes back as *error* itself.
    """
    if error.code == ErrorCode.UNAVAILABLE:
        return Unavailable(error.message, retry_after_s=error.retry_after_s)
    make = _TO_EXCEPTION.get(error.code)
    return error if make is None else make(error.message)


def exit_status(exc: BaseException | None) -> ExitStatus:
    """Return the exit status of a command that ended with *exc* (None: it succeeded)."""
    if exc is None:
        return ExitStatus.OK
    error = call_error_from(exc)
    return ExitStatus.FAILED if error is None else code_info(error.code).exit_status


def code_message(code: str) -> str:
    """Return words for *code*, for errors that came without any."""
    return code.replace("_", " ").lower()


_FAILED = ExitStatus.FAILED

CODES: Mapping[str, CodeInfo] = {
    ErrorCode.NOT_FOUND: CodeInfo(False, _FAILED, 404),
    ErrorCode.FORBIDDEN: CodeInfo(False, ExitStatus.DENIED, 403),
    ErrorCode.INVALID_INPUT: CodeInfo(False, _FAILED, 400),
    ErrorCode.INVALID_OPERATION_TYPE: CodeInfo(False, _FAILED, 405),
    ErrorCode.TIMEOUT: CodeInfo(True, ExitStatus.TIMED_OUT, 504),
    ErrorCode.UNAVAILABLE: CodeInfo(True, ExitStatus.UNREACHABLE, 503),
    ErrorCode.CONFLICT: CodeInfo(False, _FAILED, 409),
    ErrorCode.RESOURCE_EXHAUSTED: CodeInfo(True, _FAILED, 429),
    # 499 is nginx's "client closed request": nobody waits for the answer any more.
    ErrorCode.ABORTED: CodeInfo(False, _FAILED, 499),
    ErrorCode.INTERNAL: CodeInfo(False, _FAILED, 500),
}

# An operation's own code: the operation worked and says no.
_DECLARED = CodeInfo(False, _FAILED, 422)

_FROM_EXCEPTION: tuple[tuple[type[BaseException], ErrorCode], ...] = (
    (NotFound, ErrorCode.NOT_FOUND),
    (Conflict, ErrorCode.CONFLICT),
    (trio.TooSlowError, ErrorCode.TIMEOUT),
    (TimeoutError, ErrorCode.TIMEOUT),
    (trio.BrokenResourceError, ErrorCode.UNAVAILABLE),
)

_TO_EXCEPTION: Mapping[str, Callable[[str], Exception]] = {
    ErrorCode.FORBIDDEN: Denied,
    ErrorCode.NOT_FOUND: NotFound,
    ErrorCode.CONFLICT: Conflict,
    ErrorCode.TIMEOUT: trio.TooSlowError,
}
