"""What a caller learns of the errors between the operation that it called and those below."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.context import Context
from alknet.call.operations import (
    ErrorSpec,
    Operation,
    OperationError,
    operation,
    public,
    scopes,
)
from alknet.errors import NotFound, Unavailable
from alknet.testing.operations import call_operation, collect_items

OWN = [ErrorSpec("SOLD_OUT", "Nothing left.")]
PASSED_ON = {ErrorCode.UNAVAILABLE, ErrorCode.RESOURCE_EXHAUSTED, ErrorCode.TIMEOUT}
CODES = ["SOLD_OUT", *ErrorCode]


@operation("t/fails", access=public(), errors=OWN, internal=True)
async def fails(code: str) -> None:
    raise OperationError(code, f"the child says {code}", details={"retry_after_ms": 70, "x": 1})


@operation("t/items", access=public(), errors=OWN, internal=True)
async def items(code: str) -> AsyncIterator[int]:
    yield 1
    await fails(code)


@operation("t/secret", access=scopes("no-one"), internal=True)
async def secret() -> None: ...


@operation("t/parent", access=public(), errors=OWN, calls=["t/fails", "t/secret", "t/items"])
async def parent(ctx: Context, code: str) -> None:
    await ctx.call("t/fails", code)


@operation("t/follows", access=public(), errors=OWN, calls=["t/items"])
async def follows(ctx: Context, code: str) -> AsyncIterator[int]:
    async with ctx.subscribe("t/items", code) as got:
        async for item in got:
            yield msgspec.json.decode(item, type=int)


BESIDE: list[Operation[..., Any]] = [fails, items, secret]


@pytest.mark.parametrize("code", CODES)
async def test_only_what_is_true_for_whoever_asks_passes_on(
    code: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(CallError) as caught:
        await call_operation(parent, code, beside=BESIDE)
    error = caught.value
    if code in PASSED_ON:
        assert (error.code, error.message) == (code, f"the child says {code}")
        assert error.retryable
        assert error.details == {"retry_after_ms": 70}
        assert not caplog.records
        return
    assert (error.code, error.message, error.retryable) == (
        "INTERNAL",
        "the operation failed",
        False,
    )
    assert list(error.details or ()) == ["correlation_id"]
    record = caplog.records[-1]
    assert record.__dict__["operation"] == "t/parent"
    assert record.__dict__["child"] == "t/fails"
    assert record.__dict__["correlation_id"] == error.correlation_id
    if record.__dict__["code"] == "INTERNAL":  # the child crashed: its traceback is found too
        crash = caplog.records[0]
        assert crash.__dict__["correlation_id"] == record.__dict__["child_correlation_id"]
    else:
        assert record.__dict__["code"] == code


@pytest.mark.parametrize("code", ["SOLD_OUT", "UNAVAILABLE"])
async def test_errors_of_a_childs_items_are_judged_alike(code: str) -> None:
    with pytest.raises(CallError) as caught:
        await collect_items(follows, code, beside=BESIDE)
    assert caught.value.code == (code if code in PASSED_ON else "INTERNAL")


@pytest.mark.parametrize(
    ("name", "given", "code"),
    [
        ("t/secret", None, "FORBIDDEN"),
        ("t/none", None, "NOT_FOUND"),
        ("t/none-that-is-called", None, "NOT_FOUND"),
        ("t/fails", 1, "INVALID_INPUT"),
        ("t/items", "SOLD_OUT", "INVALID_OPERATION_TYPE"),
    ],
)
async def test_a_refused_request_to_a_child_does_not_look_like_the_callers(
    name: str, given: object, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    @operation("t/asks", access=public(), calls=[entry.spec.name for entry in BESIDE])
    async def asks(ctx: Context) -> None:
        await ctx.call(name, given)

    with pytest.raises(CallError, match="INTERNAL"):
        await call_operation(asks, beside=BESIDE)
    assert caplog.records[-1].__dict__["child"] == name
    assert caplog.records[-1].__dict__["code"] == code


async def test_a_handler_passes_on_what_it_raises_itself() -> None:
    @operation("t/maps", access=public(), errors=OWN, calls=["t/fails"])
    async def maps(ctx: Context, code: str) -> None:
        try:
            await ctx.call("t/fails", code)
        except CallError as exc:
            if exc.code == "NOT_FOUND":
                raise NotFound("no such thing") from exc
            raise OperationError(exc.code, "as the child says") from exc

    for code in ("NOT_FOUND", "SOLD_OUT"):
        with pytest.raises(CallError) as caught:
            await call_operation(maps, code, beside=BESIDE)
        assert caught.value.code == code


async def test_the_same_error_raised_again_is_not_the_handlers_own() -> None:
    @operation("t/again", access=public(), errors=OWN, calls=["t/fails"])
    async def again(ctx: Context, code: str) -> None:
        try:
            await ctx.call("t/fails", code)
        finally:
            await trio.lowlevel.checkpoint()

    with pytest.raises(CallError, match="INTERNAL"):
        await call_operation(again, "SOLD_OUT", beside=BESIDE)


async def test_circumstances_pass_through_every_level_with_their_delay() -> None:
    @operation("t/bottom", access=public(), internal=True)
    async def bottom() -> None:
        raise Unavailable("the disk is full", retry_after_s=2)

    @operation("t/middle", access=public(), calls=["t/bottom"])
    async def middle(ctx: Context) -> None:
        await ctx.call("t/bottom")

    @operation("t/top", access=public(), calls=["t/middle"])
    async def top(ctx: Context) -> None:
        await ctx.batch([("t/middle", None)] * 2)

    with pytest.raises(CallError) as caught:
        await call_operation(top, beside=[middle, bottom])
    assert (caught.value.code, caught.value.retryable) == ("UNAVAILABLE", True)
    assert caught.value.details == {"retry_after_ms": 2000}
