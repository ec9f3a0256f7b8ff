"""Errors say whether the request has left: what did not leave cannot have run."""

from __future__ import annotations

import pytest
import trio

from alknet.call.codes import CallError
from alknet.core.contracts import CloseCode
from alknet.core.limits import Limits
from tests.call.sessions import CARRIERS, Operations, session_pair

both = pytest.mark.parametrize("carrier", CARRIERS)


@both
async def test_a_call_on_a_session_that_is_over_was_not_sent(carrier: str) -> None:
    async with session_pair(carrier, Operations()) as (client, _server):
        client.end(CloseCode.OK)
        with pytest.raises(CallError, match="UNAVAILABLE") as caught:
            await client.call("echo/unary")
        assert caught.value.is_unsent


@both
async def test_a_subscription_on_a_session_that_is_over_was_not_sent(carrier: str) -> None:
    async with session_pair(carrier, Operations()) as (client, _server):
        client.end(CloseCode.OK)
        with pytest.raises(CallError, match="UNAVAILABLE") as caught:
            async with client.subscribe("echo/stream"):
                pass
        assert caught.value.is_unsent


async def test_a_request_that_found_no_stream_in_time_was_not_sent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    operations = Operations()
    limits = Limits(streams_per_connection=1)
    async with session_pair("memory", operations, limits=limits) as (client, _server):
        async with client.subscribe("echo/endless"):
            with pytest.raises(CallError, match="TIMEOUT") as caught:
                await client.call("echo/unary", timeout_s=1, large_output=True)
        assert caught.value.is_unsent
        assert [request.operation for request in operations.requests] == ["echo/endless"]


async def test_an_input_that_is_too_long_was_not_sent() -> None:
    limits = Limits(frame_bytes=2048)
    async with session_pair("memory", Operations(), limits=limits) as (client, _server):
        with pytest.raises(CallError, match="INVALID_INPUT") as caught:
            await client.call("echo/unary", "x" * 3000)
        assert (caught.value.is_unsent, caught.value.retryable) == (True, False)


@both
async def test_a_call_that_is_cut_off_may_have_run(carrier: str) -> None:
    operations = Operations()
    async with session_pair(carrier, operations) as (client, server):
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(CallError, match="UNAVAILABLE") as caught:
                    await client.call("echo/slow")
                assert not caught.value.is_unsent

            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            server.end(CloseCode.INTERNAL)
    assert operations.started == 1
