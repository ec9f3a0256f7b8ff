"""What a caller is told of an exception: its code, or nothing but where the log has it."""

from __future__ import annotations

import logging
import secrets

from alknet.call.codes import CallError, ErrorCode, call_error_from

__all__ = ["error_of"]

log = logging.getLogger(__name__)


def error_of(exc: Exception, operation: str) -> CallError:
    """Return the error to send for *exc*, raised by *operation*.

    A crash is logged with its traceback; its caller gets INTERNAL and a correlation id.
    """
    error = call_error_from(exc)
    if error is not None:
        return error
    correlation_id = secrets.token_hex(8)
    fields = {"operation": operation, "correlation_id": correlation_id}
    log.error("call.crashed", extra=fields, exc_info=exc)
    details = {"correlation_id": correlation_id}
    return CallError(ErrorCode.INTERNAL, "the operation failed", details=details)
