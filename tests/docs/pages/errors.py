"""docs/reference/errors.md: from `alknet.call.codes` and `alknet.errors`."""

from __future__ import annotations

from alknet import errors
from alknet.call.codes import (
    CallError,
    ErrorCode,
    ExitStatus,
    call_error_from,
    code_info,
    exception_from,
)
from tests.docs.pages.markdown import GENERATED, first_line, table

__all__ = ["page"]

_MEANING = {
    ErrorCode.NOT_FOUND: "No such operation (or none that you may know of), no such thing.",
    ErrorCode.FORBIDDEN: "You may not: no identity, a missing scope or grant, a refused token.",
    ErrorCode.INVALID_INPUT: "The input does not fit; `details.path` says where.",
    ErrorCode.INVALID_OPERATION_TYPE: "A subscription was called, or a call was subscribed to.",
    ErrorCode.TIMEOUT: "It took longer than the deadline allows.",
    ErrorCode.UNAVAILABLE: "It cannot be done now; the connection was lost, or the node stops.",
    ErrorCode.CONFLICT: "The state of things is not what the caller assumed.",
    ErrorCode.RESOURCE_EXHAUSTED: "A limit is reached: too many calls, too much at once.",
    ErrorCode.ABORTED: "The caller, or the node for a reason that it gives, ended the call.",
    ErrorCode.INTERNAL: "The operation crashed; `details.correlation_id` is in the node's log.",
}
_STATUS = {
    ExitStatus.OK: "It worked.",
    ExitStatus.FAILED: "It did not; standard error says why.",
    ExitStatus.USAGE: "The command line makes no sense.",
    ExitStatus.DENIED: "The node does not let us.",
    ExitStatus.UNREACHABLE: "Nobody answered, or not with the right key.",
    ExitStatus.TIMED_OUT: "No answer in time.",
}


def page() -> str:
    """Return the page."""
    own = code_info("OWN")
    own_exit, own_http = int(own.exit_status), own.http_status
    return f"""{GENERATED}
# Errors

A call that fails ends with one `call.error`: a code, a message for people, whether a retry may
help, and sometimes details; of one that came by several nodes, [who has said
it](federation.md#routes). One table says what each code means elsewhere.

## Codes of the protocol

{_codes()}
Operations declare codes of their own (`ErrorSpec`): a command that meets one exits with {own_exit},
and an HTTP gateway answers {own_http} unless the operation says otherwise. A code that an operation
raises without declaring it reaches the caller as `INTERNAL`.

Exit statuses and codes are what the command line uses now; the HTTP statuses are reserved for the
gateway.

## Exit statuses of commands

{_statuses()}
A command that a signal ended exits with 128 and its number: 130 after Ctrl-C.

## Exceptions

In Python, a failed call raises `CallError` with the code. These are the families that alknet
raises elsewhere, and the code that a caller gets when an operation lets one out:

{_families()}
Errors of streams and connections are Trio's own (`trio.ClosedResourceError`: we closed it;
`trio.BrokenResourceError`: the other side or the network did; `trio.BusyResourceError`: two tasks
at once); `ConnectionEnded` and `StreamReset` add the wire's code to the second.
"""


def _codes() -> str:
    rows = []
    for code in ErrorCode:
        info = code_info(code)
        retry = "yes" if info.retryable else "no"
        rows.append(
            (
                f"`{code}`",
                _MEANING[code],
                retry,
                str(int(info.exit_status)),
                str(info.http_status),
            )
        )
    return table(("code", "meaning", "retry may help", "exit", "HTTP"), rows)


def _statuses() -> str:
    rows = [(str(int(status)), _STATUS[status]) for status in ExitStatus]
    return table(("exit", "meaning"), rows)


def _families() -> str:
    rows = []
    for name in errors.__all__:
        family = getattr(errors, name)
        error = call_error_from(family("…"))
        rows.append((f"`{name}`", first_line(family), _code_of(error, family)))
    return table(("error", "when", "as a code"), rows)


def _code_of(error: CallError | None, family: type[Exception]) -> str:
    if error is None:
        return "`INTERNAL`, with a correlation id"
    back = isinstance(exception_from(error), family)
    return f"`{error.code}`, and back" if back else f"`{error.code}`"
