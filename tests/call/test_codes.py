from __future__ import annotations

import pytest
import trio

from alknet.call.codes import (
    CODES,
    CallError,
    ErrorCode,
    ExitStatus,
    call_error_from,
    code_info,
    exception_from,
    exit_status,
)
from alknet.errors import Conflict, Denied, NotFound, Unavailable


def test_every_code_is_in_the_table() -> None:
    assert set(CODES) == set(ErrorCode)
    assert {code for code, info in CODES.items() if info.retryable} == {
        "TIMEOUT",
        "UNAVAILABLE",
        "RESOURCE_EXHAUSTED",
    }
    assert len({info.http_status for info in CODES.values()}) == len(CODES)


@pytest.mark.parametrize(
    ("exc", "code", "status"),
    [
        (Denied("no scope fs:read"), "FORBIDDEN", ExitStatus.DENIED),
        (Unavailable("store is stale"), "UNAVAILABLE", ExitStatus.UNREACHABLE),
        (NotFound("no such file"), "NOT_FOUND", ExitStatus.FAILED),
        (Conflict("name taken"), "CONFLICT", ExitStatus.FAILED),
        (trio.TooSlowError(), "TIMEOUT", ExitStatus.TIMED_OUT),
    ],
)
def test_exceptions_become_codes_and_back(exc: Exception, code: str, status: ExitStatus) -> None:
    error = call_error_from(exc)
    assert error is not None
    assert error.code == code
    assert error.message == (str(exc) or "timeout")
    assert exit_status(exc) == exit_status(error) == status
    assert type(exception_from(error)) is type(exc)


def test_what_nobody_meant_to_raise_has_no_code() -> None:
    assert call_error_from(RuntimeError("secret")) is None
    assert exit_status(RuntimeError("secret")) == ExitStatus.FAILED
    assert exit_status(None) == ExitStatus.OK


def test_a_call_error_passes_as_it_is() -> None:
    error = CallError("NO_SUCH_FISH", "swam away", details={"kind": "cod"})
    assert call_error_from(error) is error
    assert exception_from(error) is error
    assert not error.retryable
    assert code_info("NO_SUCH_FISH").http_status == 422
    assert error.correlation_id is None
    assert str(error) == "NO_SUCH_FISH: swam away"


def test_a_broken_link_is_unavailable() -> None:
    error = call_error_from(trio.BrokenResourceError("gone"))
    assert error is not None
    assert error.code == "UNAVAILABLE"


def test_the_retry_hint_survives_the_wire() -> None:
    error = call_error_from(Unavailable("busy", retry_after_s=1.5))
    assert error is not None
    assert error.details == {"retry_after_ms": 1500}
    back = exception_from(error)
    assert isinstance(back, Unavailable)
    assert back.retry_after_s == 1.5
    odd = exception_from(CallError("UNAVAILABLE", "busy", details={"retry_after_ms": "soon"}))
    assert isinstance(odd, Unavailable)
    assert odd.retry_after_s is None


def test_a_refused_token_is_remembered_but_not_in_the_details() -> None:
    error = call_error_from(Denied("token refused", is_failed_authentication=True))
    assert error is not None
    assert error.is_failed_authentication
    assert error.details is None
