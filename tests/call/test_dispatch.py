"""Running what was admitted: outputs, errors, crashes, cancellation, deadlines."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import trio

from alknet.call.admitted import Admitted
from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.dispatch import OperationDispatcher
from alknet.call.operations import ErrorSpec, Operation, OperationError, operation, public
from alknet.call.proto.events import Requested
from alknet.call.registry import Registry
from alknet.core.contracts import Connection
from alknet.core.identity import Identity, NodeId
from alknet.core.limits import Limits
from alknet.errors import Conflict, Denied, LocalError, Malformed, NotFound, Unavailable
from alknet.testing.memory import memory_connection_pair
from alknet.testing.operations import (
    FixedIdentities,
    FixedOwnership,
    admit_request,
    call_operation,
    collect_items,
    key,
)

SECRET = "hunter2"


class Stock(msgspec.Struct):
    left: int


class Report(msgspec.Struct):
    total: int


@pytest.fixture
async def connection() -> AsyncIterator[Connection]:
    async with memory_connection_pair(dialer_key=NodeId(b"k" * 32)) as (_, acceptor):
        yield acceptor


def admit(connection: Connection, op: Operation[..., Any], **request: Any) -> Admitted:
    fields: dict[str, Any] = {"id": "d1", "operation": op.spec.name, **request}
    return admit_request(Registry([op]), connection, Requested(**fields))


async def error_of(op: Operation[..., Any], value: object = None) -> CallError:
    with pytest.raises(CallError) as caught:
        await call_operation(op, value)
    return caught.value


def failing(
    make: Callable[[], BaseException], errors: list[ErrorSpec] | None = None
) -> Operation[..., Any]:
    @operation("x/fail", access=public(), errors=errors or ())
    async def fail() -> int:
        raise make()

    return fail


@pytest.mark.parametrize(
    ("make", "code", "message", "retryable", "details"),
    [
        (lambda: NotFound("no box"), "NOT_FOUND", "no box", False, None),
        (lambda: Conflict("taken"), "CONFLICT", "taken", False, None),
        (lambda: Denied("not you"), "FORBIDDEN", "not you", False, None),
        (
            lambda: Unavailable("busy", retry_after_s=2),
            "UNAVAILABLE",
            "busy",
            True,
            {"retry_after_ms": 2000},
        ),
        (trio.TooSlowError, "TIMEOUT", "timeout", True, None),
        (
            lambda: OperationError("INVALID_INPUT", "bad", details={"path": "/a"}),
            "INVALID_INPUT",
            "bad",
            False,
            {"path": "/a"},
        ),
        (
            lambda: OperationError("RESOURCE_EXHAUSTED", "full", retryable=False),
            "RESOURCE_EXHAUSTED",
            "full",
            False,
            None,
        ),
        (
            lambda: OperationError("EMPTY", "none left", retryable=True, details=Stock(0)),
            "EMPTY",
            "none left",
            True,
            {"left": 0},
        ),
        (
            lambda: OperationError("EMPTY", "none left", details={"left": 0}),
            "EMPTY",
            "none left",
            False,
            {"left": 0},
        ),
        (lambda: OperationError("PLAIN", "no"), "PLAIN", "no", False, None),
        (lambda: CallError("PLAIN", "from below"), "PLAIN", "from below", False, None),
        (
            lambda: ExceptionGroup("n", [ExceptionGroup("m", [NotFound("deep")])]),
            "NOT_FOUND",
            "deep",
            False,
            None,
        ),
    ],
)
async def test_declared_errors_reach_the_caller(
    make: Callable[[], BaseException],
    code: str,
    message: str,
    retryable: bool,
    details: dict[str, Any] | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    exc = await error_of(failing(make, [ErrorSpec("EMPTY", "", Stock), ErrorSpec("PLAIN")]))
    assert (exc.code, exc.message, exc.retryable, exc.details) == (
        code,
        message,
        retryable,
        details,
    )
    assert caplog.records == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: ValueError(SECRET),
        lambda: KeyError(SECRET),
        lambda: RecursionError(SECRET),
        lambda: LocalError(SECRET),
        lambda: Malformed(SECRET),
        lambda: OperationError("UNDECLARED", SECRET),
        lambda: OperationError("INTERNAL", SECRET),
        lambda: OperationError("ABORTED", SECRET),
        lambda: OperationError("EMPTY", SECRET, details={"left": "text"}),
        lambda: OperationError("EMPTY", SECRET),
        lambda: OperationError("NOT_FOUND", SECRET, details=[1]),
        lambda: CallError("UNDECLARED", SECRET),
        lambda: CallError("INTERNAL", SECRET, details={"correlation_id": "theirs"}),
        lambda: StopAsyncIteration(SECRET),
        lambda: ExceptionGroup("two", [NotFound(SECRET), ValueError(SECRET)]),
    ],
)
async def test_crashes_are_internal_and_logged_once(
    make: Callable[[], BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    exc = await error_of(failing(make, [ErrorSpec("EMPTY", "", Stock)]))
    assert (exc.code, exc.message, exc.retryable) == ("INTERNAL", "the operation failed", False)
    assert exc.details is not None
    assert list(exc.details) == ["correlation_id"]
    assert SECRET not in repr(exc.args)
    assert exc.__cause__ is None
    [record] = caplog.records
    assert record.message == "call.crashed"
    assert record.levelno == logging.ERROR
    assert record.__dict__["correlation_id"] == exc.correlation_id
    assert record.__dict__["operation"] == "x/fail"
    assert record.exc_info is not None


async def test_log_names_the_undeclared_code(caplog: pytest.LogCaptureFixture) -> None:
    await error_of(failing(lambda: OperationError("UNDECLARED", "no")))
    assert caplog.records[0].__dict__["code"] == "UNDECLARED"


async def test_a_crash_leaves_the_next_call_alone() -> None:
    @operation("x/odd", access=public())
    async def odd(number: int) -> int:
        if number % 2 == 0:
            raise ZeroDivisionError
        return number

    assert (await error_of(odd, 2)).code == "INTERNAL"
    assert await call_operation(odd, 3) == 3


@pytest.mark.parametrize("output", ["text", None, {"total": "text"}, {}, 2**53, Stock(1)])
async def test_undeclared_outputs_are_internal(
    output: object, caplog: pytest.LogCaptureFixture
) -> None:
    @operation("x/report", access=public())
    async def report() -> Report:
        return output  # type: ignore[return-value]  # the fault under test

    assert (await error_of(report)).code == "INTERNAL"
    assert len(caplog.records) == 1


async def test_integers_that_json_cannot_hold_are_internal(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @operation("x/power", access=public())
    async def power(exponent: int) -> int:
        return int(2**exponent)

    assert await call_operation(power, 52) == 2**52
    assert (await error_of(power, 53)).code == "INTERNAL"


async def test_invalid_input_names_the_path(connection: Connection) -> None:
    @operation("x/sum", access=public())
    async def total(reports: dict[str, list[Report]]) -> int:
        return 0

    with pytest.raises(CallError) as caught:
        admit(connection, total, input=msgspec.Raw(b'{"a":[{"total":"hunter2"}]}'))
    exc = caught.value
    assert exc.code == "INVALID_INPUT"
    assert SECRET not in repr(exc.args)

    @operation("x/first", access=public())
    async def first(reports: list[Report]) -> int:
        return 0

    with pytest.raises(CallError) as caught:
        admit(connection, first, input=msgspec.Raw(b'[{"total":1},{"total":"hunter2"}]'))
    exc = caught.value
    assert exc.details == {"path": "/1/total"}
    assert exc.message == "invalid input at /1/total: expected `int`, got `str`"


@pytest.mark.parametrize("name", ["", "/", "x", "//x/y", "x/y/", "x/y\n", "é/x", "x/" * 200])
async def test_bad_names_are_not_found(connection: Connection, name: str) -> None:
    with pytest.raises(CallError) as caught:
        admit_request(Registry(), connection, Requested(id="d1", operation=name))
    assert caught.value.code == "NOT_FOUND"
    assert len(caught.value.message) < 150


async def test_routes_to_other_peers_are_not_run_here(connection: Connection) -> None:
    @operation("x/y", access=public())
    async def here() -> int:
        return 1

    with pytest.raises(CallError, match="NOT_FOUND"):
        admit(connection, here, peer=("w1",))
    assert await admit(connection, here, peer=()).run() == b"1"


async def test_context_says_what_the_call_is(connection: Connection) -> None:
    seen: list[Context] = []

    @operation("x/look", access=public())
    async def look(ctx: Context) -> float:
        seen.append(ctx)
        deadlines.append(ctx.deadline)
        return ctx.remaining_s

    deadlines: list[float] = []
    origin = Identity("peer:user")
    call = admit_request(
        Registry([look]),
        connection,
        Requested(
            id="d9",
            operation="x/look",
            auth_token="t",
            forwarded_for=origin,
            traceparent="00-a-b-01",
            idempotency_key="once",
        ),
        identities=FixedIdentities({"t": key("k", "s")}),
    )
    with trio.fail_after(30):
        await call.run()
        expected = trio.current_effective_deadline()
    [ctx] = seen
    assert (ctx.request_id, ctx.operation, ctx.identity) == ("d9", "x/look", key("k", "s"))
    assert (ctx.forwarded_for, ctx.traceparent, ctx.idempotency_key) == (
        origin,
        "00-a-b-01",
        "once",
    )
    assert deadlines == [expected]
    assert ctx.remote.peer_key == NodeId(b"k" * 32)
    assert ctx.remote.carrier == "memory"
    assert ctx.remote.address == connection.remote_address
    # The token is nowhere a handler could see it.
    assert all("auth_token" not in dir(thing) for thing in (ctx, ctx.info, ctx.remote))


async def test_context_log_carries_the_call(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    @operation("x/log", access=public())
    async def write(ctx: Context) -> None:
        ctx.log.info("box.opened", extra={"box": "b1"})

    caplog.set_level(logging.INFO)
    await admit(connection, write).run()
    [record] = [r for r in caplog.records if r.name == "alknet.operation"]
    fields = record.__dict__
    assert (fields["box"], fields["operation"], fields["request_id"], fields["identity"]) == (
        "b1",
        "x/log",
        "d1",
        "anonymous",
    )


async def test_visible_keeps_the_order_and_records_the_question(connection: Connection) -> None:
    @operation("x/list", access=public())
    async def show(ctx: Context) -> list[str]:
        assert ctx.asked_visible == frozenset()
        return ctx.visible("box", iter(["c", "a", "b"]))

    call = admit_request(
        Registry([show]),
        connection,
        Requested(id="d1", operation="x/list"),
        ownership=FixedOwnership({("anonymous", "box", "c"), ("anonymous", "box", "b")}),
    )
    assert await call.run() == b'["c","b"]'
    assert call.context.asked_visible == {"box"}


@pytest.mark.parametrize(
    ("declared", "is_subscription", "expected"),
    [
        (None, False, 30.0),
        (5.0, False, 5.0),
        (60.0, False, 60.0),
        (99_999.0, False, 3_600.0),
        (None, True, None),
        (5.0, True, 5.0),
        (99_999.0, True, 3_600.0),
    ],
)
async def test_timeouts(
    connection: Connection, declared: float | None, is_subscription: bool, expected: float | None
) -> None:
    @operation("x/query", access=public(), max_duration_s=declared)
    async def query() -> int:
        return 1

    @operation("x/items", access=public(), max_duration_s=declared)
    async def items() -> AsyncIterator[int]:
        yield 1

    assert admit(connection, items if is_subscription else query).timeout_s == expected


async def test_limits_can_change_between_calls(connection: Connection) -> None:
    @operation("x/query", access=public())
    async def query() -> int:
        return 1

    dispatcher = OperationDispatcher(
        Registry([query]),
        identities=FixedIdentities(),
        ownership=FixedOwnership(),
        limits=Limits(),
    )
    assert dispatcher.registry.is_frozen
    dispatcher.limits = Limits(call_timeout_s=600, call_timeout_max_s=60)
    request = Requested(id="d1", operation="x/query")
    assert dispatcher.admit(request, connection=connection, session=None).timeout_s == 60


async def test_admitted_says_what_it_is(connection: Connection) -> None:
    @operation("x/change", access=public(), mutation=True, large_output=True)
    async def change() -> int:
        return 1

    call = admit(connection, change)
    assert (call.op_type, call.large_output, call.used_token) == ("mutation", True, False)
    assert call.identity is connection.identity


async def test_cancelling_run_cancels_the_handler(connection: Connection) -> None:
    ended = trio.Event()

    @operation("x/sleep", access=public())
    async def sleep() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    with trio.CancelScope() as scope:
        scope.cancel()
        await admit(connection, sleep).run()
    assert scope.cancelled_caught
    assert ended.is_set()


async def test_cancelled_with_a_crash_beside_it_stays_cancelled(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    @operation("x/nursery", access=public())
    async def run_two() -> None:
        async def crash_when_cancelled() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ZeroDivisionError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(crash_when_cancelled)
            nursery.start_soon(trio.sleep_forever)

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            call = admit(connection, run_two)
            nursery.start_soon(call.run)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert [record.message for record in caplog.records] == ["call.crashed"]


async def test_keyboard_interrupt_passes(connection: Connection) -> None:
    for make in (KeyboardInterrupt, lambda: BaseExceptionGroup("g", [KeyboardInterrupt()])):
        call = admit(connection, failing(make))
        with pytest.raises((KeyboardInterrupt, BaseExceptionGroup)) as caught:
            await call.run()
        assert not isinstance(caught.value, Exception)


class Closing:
    """A subscription that notes how it ends."""

    def __init__(self) -> None:
        self.closed = False

    @operation("x/closing", access=public())
    async def items(self) -> AsyncIterator[int]:
        try:
            for n in range(100):
                yield n
                await trio.lowlevel.checkpoint()
        finally:
            self.closed = True


async def test_leaving_a_stream_early_closes_the_generator(connection: Connection) -> None:
    source = Closing()
    async with admit(connection, source.items).stream() as items:
        assert [await anext(items), await anext(items)] == [b"0", b"1"]
        assert not source.closed
    assert source.closed


async def test_cancelling_a_stream_closes_the_generator(connection: Connection) -> None:
    source = Closing()
    with trio.CancelScope() as scope:
        async with admit(connection, source.items).stream() as items:
            async for item in items:
                if item == b"3":
                    scope.cancel()
    assert scope.cancelled_caught
    assert source.closed


async def test_a_stream_never_entered_leaves_nothing(connection: Connection) -> None:
    admit(connection, Closing().items).stream()


async def test_stream_ends_after_its_last_item(connection: Connection) -> None:
    assert await collect_items(Closing().items) == list(range(100))


async def test_generators_with_a_nursery_can_be_left(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    @operation("x/nursery", access=public())
    async def numbers() -> AsyncIterator[int]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            for n in range(10):
                yield n

    assert await collect_items(numbers, limit=2) == [0, 1]
    with trio.CancelScope() as scope:
        async with admit(connection, numbers).stream() as items:
            await anext(items)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert caplog.records == []


async def test_items_are_checked_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    @operation("x/mixed", access=public())
    async def mixed() -> AsyncIterator[int]:
        yield 1
        yield "two"  # type: ignore[misc]  # the fault under test
        yield 3

    with pytest.raises(CallError, match="INTERNAL"):
        await collect_items(mixed)
    assert await collect_items(mixed, limit=1) == [1]
    assert [record.message for record in caplog.records] == ["call.crashed"]


async def test_errors_amid_a_stream(caplog: pytest.LogCaptureFixture) -> None:
    @operation("x/broken", access=public(), errors=[ErrorSpec("DRY")])
    async def broken(how: str) -> AsyncIterator[int]:
        yield 1
        if how == "declared":
            raise OperationError("DRY", "the well is dry")
        raise ZeroDivisionError

    with pytest.raises(CallError, match="DRY: the well is dry"):
        await collect_items(broken, "declared")
    assert caplog.records == []
    with pytest.raises(CallError, match="INTERNAL"):
        await collect_items(broken, "crash")


async def test_a_crash_while_closing_is_logged_alone(caplog: pytest.LogCaptureFixture) -> None:
    @operation("x/crash", access=public())
    async def crash() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise ZeroDivisionError

    assert await collect_items(crash, limit=1) == [1]
    assert [record.message for record in caplog.records] == ["call.crashed", "call.close_failed"]


async def test_the_output_of_nothing_is_null() -> None:
    @operation("x/nothing", access=public())
    async def nothing() -> None: ...

    assert await call_operation(nothing) is None
