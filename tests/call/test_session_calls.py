"""Queries and mutations over many streams and over one."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.session import CallSession, open_session
from alknet.core.contracts import CARRIER_TCP, CloseCode
from alknet.core.limits import Limits
from alknet.core.tcp.connection import StreamConnection
from alknet.errors import LocalError, Malformed
from tests.call.sessions import CARRIERS, Operations, connections, is_idle, session_pair

both = pytest.mark.parametrize("carrier", CARRIERS)


@both
async def test_a_call_returns_the_output(carrier: str) -> None:
    async with session_pair(carrier, Operations()) as (client, server):
        assert bytes(await client.call("/echo/unary", {"message": "hi"})) == b'{"message":"hi"}'
        assert bytes(await client.call("echo/unary")) == b"{}"
        assert bytes(await client.call("echo/unary", msgspec.Raw(b"[1]"))) == b"[1]"
        assert await is_idle(client, server)


@both
async def test_both_sides_call(carrier: str) -> None:
    async with session_pair(carrier, Operations(), back=Operations()) as (client, server):
        assert bytes(await client.call("echo/unary", 1)) == b"1"
        assert bytes(await server.call("echo/unary", 2)) == b"2"


@both
async def test_a_handler_can_call_back(carrier: str) -> None:
    async def ask_back(given: msgspec.Raw) -> object:
        return await server.call("echo/unary", given)

    operations = Operations()
    operations.queries["ask/back"] = ask_back
    async with session_pair(carrier, operations, back=Operations()) as (client, server):
        assert bytes(await client.call("ask/back", "x")) == b'"x"'


@both
async def test_a_thousand_calls_run_at_once_on_one_stream(carrier: str) -> None:
    operations = Operations()
    everyone = trio.Event()
    outputs: list[Any] = []

    async def meet(given: msgspec.Raw) -> object:
        if operations.running == 1000:
            everyone.set()
        await everyone.wait()
        return given

    async def one(client: CallSession, n: int) -> None:
        outputs.append(await client.call_as(int, "test/meet", n))

    operations.queries["test/meet"] = meet
    async with session_pair(carrier, operations) as (client, server):
        async with trio.open_nursery() as nursery:
            for n in range(1000):
                nursery.start_soon(one, client, n)
        assert sorted(outputs) == list(range(1000))
        assert len(server.lanes.streams) == 1
        assert await is_idle(client, server)


def _counting(counts: dict[str, int], what: str, pump: Any) -> Any:
    async def hook() -> None:
        counts[what] += 1
        await pump()

    return hook


async def test_what_is_written_in_one_tick_leaves_at_once() -> None:
    left, right = trio.testing.memory_stream_pair()
    sent = {"requests": 0, "answers": 0}
    for end, what in ((left, "requests"), (right, "answers")):
        end.send_stream.send_all_hook = _counting(sent, what, end.send_stream.send_all_hook)
    dialer, acceptor = (
        StreamConnection(
            end,
            alpn="alknet/call",
            carrier=CARRIER_TCP,
            is_dialer=is_dialer,
            peer_key=None,
            remote_address="memory",
        )
        for end, is_dialer in ((left, True), (right, False))
    )
    async with trio.open_nursery() as nursery:
        client = CallSession(dialer, None, limits=Limits())
        server = CallSession(acceptor, Operations(), limits=Limits())
        await nursery.start(client.run)
        await nursery.start(server.run)
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as calls:
            for n in range(200):
                calls.start_soon(client.call, "echo/unary", n)
        assert sent == {"requests": 1, "answers": 1}
        nursery.cancel_scope.cancel()


async def test_calls_that_wake_in_one_tick_leave_together_again() -> None:
    """On a carrier of many streams too: finding the shared stream must not queue them up."""
    sent = 0
    async with session_pair("memory", Operations()) as (client, _):
        await client.call("echo/unary", 0)
        (lane,) = client.lanes.streams
        send_all = lane.stream.send_all

        async def counted(data: bytes | bytearray | memoryview) -> None:
            nonlocal sent
            sent += 1
            await send_all(data)

        lane.stream.send_all = counted  # type: ignore[method-assign]

        async def three_calls() -> None:
            for n in range(3):
                await client.call("echo/unary", n)

        async with trio.open_nursery() as calls:
            for _ in range(100):
                calls.start_soon(three_calls)
    assert sent <= 6


async def test_a_large_request_takes_a_stream_of_its_own_and_gives_it_back() -> None:
    text = "x" * 100_000
    async with session_pair("memory", Operations()) as (client, server):
        assert await client.call_as(str, "echo/unary", text) == text
        assert await client.call_as(int, "echo/unary", 1, large_output=True) == 1
        await trio.testing.wait_all_tasks_blocked()
        assert not client.lanes.streams
        assert not server.lanes.streams
        assert await client.call_as(int, "echo/unary", 1) == 1
        assert len(client.lanes.streams) == 1


async def test_a_large_request_and_answer_pass_over_one_stream() -> None:
    text = "x" * 3_000_000
    async with session_pair("unix", Operations()) as (client, server):
        assert await client.call_as(str, "echo/unary", text) == text
        assert await is_idle(client, server)


@both
async def test_errors_of_the_callee_arrive_as_they_are(carrier: str) -> None:
    async def refuse(_given: msgspec.Raw) -> object:
        raise CallError("NO_SUCH_FISH", "it swam away", retryable=True, details={"kind": "cod"})

    operations = Operations()
    operations.queries["fish/get"] = refuse
    async with session_pair(carrier, operations) as (client, _server):
        with pytest.raises(CallError) as caught:
            await client.call("fish/get")
    error = caught.value
    assert (error.code, error.message, error.retryable) == ("NO_SUCH_FISH", "it swam away", True)
    assert error.details == {"kind": "cod"}


@both
async def test_a_crash_says_nothing_but_a_correlation_id(
    carrier: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def crash(_given: msgspec.Raw) -> object:
        raise RuntimeError("the password is swordfish")

    operations = Operations()
    operations.queries["test/crash"] = crash
    async with session_pair(carrier, operations) as (client, _server):
        with pytest.raises(CallError) as caught:
            await client.call("test/crash")
        assert await client.call_as(int, "echo/unary", 1) == 1
    assert caught.value.code == "INTERNAL"
    assert "swordfish" not in str(caught.value)
    (record,) = (r for r in caplog.records if r.message == "call.crashed")
    assert vars(record)["correlation_id"] == caught.value.correlation_id


@both
async def test_operations_that_are_not_there_or_of_another_kind(carrier: str) -> None:
    operations = Operations()
    async with session_pair(carrier, operations) as (client, server):
        for session, name, code in (
            (client, "no/such", "NOT_FOUND"),
            (client, "bad name", "NOT_FOUND"),
            (client, "echo/total", "INVALID_OPERATION_TYPE"),
            (server, "echo/unary", "NOT_FOUND"),  # the client serves nothing
        ):
            with pytest.raises(CallError) as caught:
                await session.call(name)
            assert caught.value.code == code


@both
async def test_an_output_of_another_shape_is_malformed(carrier: str) -> None:
    async with session_pair(carrier, Operations()) as (client, _server):
        with pytest.raises(Malformed, match="echo/unary"):
            await client.call_as(int, "echo/unary", "text")


@both
async def test_an_answer_over_the_frame_limit_fails_that_call_alone(carrier: str) -> None:
    async def big(_given: msgspec.Raw) -> object:
        return "x" * 3000

    async def big_error(_given: msgspec.Raw) -> object:
        raise CallError("FULL", "x" * 3000)

    operations = Operations()
    operations.queries["test/big"] = big
    operations.queries["test/big_error"] = big_error
    limits = Limits(frame_bytes=2048, frame_bytes_unproven=2048)
    async with session_pair(carrier, operations, limits=limits) as (client, _server):
        for name in ("test/big", "test/big_error"):
            with pytest.raises(CallError) as caught:
                await client.call(name)
            assert caught.value.code == "RESOURCE_EXHAUSTED"
            assert not caught.value.retryable
        with pytest.raises(CallError, match="frame limit"):
            await client.call("echo/unary", "x" * 3000)
        assert await client.call_as(int, "echo/unary", 1) == 1


@both
async def test_options_reach_the_dispatcher(carrier: str) -> None:
    operations = Operations()
    async with session_pair(carrier, operations) as (client, _server):
        await client.call(
            "echo/unary",
            timeout_s=5,
            forwarded_for=client.connection.identity,
            traceparent="00-1-2-01",
            idempotency_key="k",
            peer=("w1",),
            path=("n1",),
        )
    (request,) = operations.requests
    assert request.timeout_ms is not None
    assert 4000 < request.timeout_ms <= 5000
    assert request.forwarded_for is not None
    assert request.forwarded_for.id == "anonymous"
    assert (request.traceparent, request.idempotency_key) == ("00-1-2-01", "k")
    assert (request.peer, request.path) == (("w1",), ("n1",))


async def test_ids_say_who_asks() -> None:
    there, here = Operations(), Operations()
    async with session_pair("unix", there, back=here) as (client, server):
        for n in range(2):
            await client.call("echo/unary", n)
            await server.call("echo/unary", n)
    assert [request.id for request in there.requests] == ["d1", "d2"]
    assert [request.id for request in here.requests] == ["a1", "a2"]


@both
async def test_calls_over_the_limit_are_refused_and_the_rest_run(carrier: str) -> None:
    operations = Operations()
    limits = Limits(calls_per_connection=3)
    async with session_pair(carrier, operations, limits=limits) as (client, _server):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(client.call, "echo/slow")
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(CallError) as caught:
                await client.call("echo/unary")
            assert caught.value.code == "RESOURCE_EXHAUSTED"
            assert operations.running == 3
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert await client.call_as(int, "echo/unary", 1) == 1


@both
async def test_open_session_closes_the_connection_and_lets_errors_through(carrier: str) -> None:
    async with connections(carrier) as (dialer, acceptor), trio.open_nursery() as nursery:
        server = CallSession(acceptor, Operations(), limits=Limits())
        await nursery.start(server.run)

        client: CallSession | None = None
        with pytest.raises(CallError, match="NOT_FOUND"):  # noqa: PT012  what leaves the block
            async with open_session(dialer) as client:
                assert await client.call_as(int, "echo/unary", 1) == 1
                await client.call("no/such")
        assert client is not None
        assert dialer.close_reason is not None
        reason = server.close_reason or await acceptor.wait_closed()
        assert (reason.code, reason.by_peer) == (CloseCode.OK, True)
        with pytest.raises(CallError, match="UNAVAILABLE"):
            await client.call("echo/unary")
        with pytest.raises(LocalError):
            await client.run()


@both
async def test_what_a_peer_would_drop_the_stream_for_is_not_sent(carrier: str) -> None:
    deep = msgspec.Raw(b"[" * 63 + b"]" * 63)

    async def dig(_given: msgspec.Raw) -> object:
        return deep

    async def dig_on(_given: msgspec.Raw) -> AsyncGenerator[object]:
        yield 1
        yield deep

    async def blurt(_given: msgspec.Raw) -> object:
        raise CallError("ODD", "\ud800", details={"what": object()})

    operations = Operations()
    operations.queries.update({"test/dig": dig, "test/blurt": blurt})
    operations.subscriptions["test/dig_on"] = dig_on
    async with session_pair(carrier, operations) as (client, _server):
        with pytest.raises(CallError, match="INTERNAL: an answer nests deeper"):
            await client.call("test/dig")
        with pytest.raises(CallError, match="INTERNAL: the operation failed"):
            await client.call("test/blurt")
        with pytest.raises(CallError, match="INVALID_INPUT"):
            await client.call("echo/unary", deep)
        async with client.subscribe("test/dig_on") as items:
            assert bytes(await anext(items)) == b"1"
            with pytest.raises(CallError, match="INTERNAL"):
                await anext(items)
        assert await client.call_as(int, "echo/unary", 1, timeout_s=math.inf) == 1
        assert await client.call_as(int, "echo/unary", 1, timeout_s=1e300) == 1
        assert await is_idle(client)
