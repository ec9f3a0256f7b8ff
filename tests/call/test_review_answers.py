"""Answers that are half right, and requests that are almost too long."""

from __future__ import annotations

import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.proto import Failed, Requested
from alknet.core.limits import Limits
from tests.call.sessions import CARRIERS, Operations, RawPeer, raw_peer, session_pair

both = pytest.mark.parametrize("carrier", CARRIERS)


@both
async def test_a_callees_abort_with_a_bad_reason_still_ends_the_call(carrier: str) -> None:
    async with raw_peer(carrier, Operations()) as (peer, us), trio.open_nursery() as nursery:

        async def call() -> None:
            with trio.fail_after(30), pytest.raises(CallError, match="INTERNAL"):
                await us.call("a/b")

        nursery.start_soon(call)
        callee = peer
        if carrier == "memory":
            callee = RawPeer(peer.connection, await peer.connection.accept_stream())
        request = await callee.receive()
        assert isinstance(request, Requested)
        await callee.send(f'{{"type":"call.aborted","id":"{request.id}","payload":{{"reason":5}}}}')


async def test_a_stranger_whose_request_is_almost_too_long_loses_that_one_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    operations = Operations()
    async with (
        session_pair("memory", operations, identity=None) as (client, _server),
        trio.open_nursery() as nursery,
    ):
        done = []

        async def call_slowly() -> None:
            with pytest.raises(CallError, match="TIMEOUT"):
                await client.call("echo/slow", timeout_s=0.1)
            done.append(1)

        nursery.start_soon(call_slowly)
        await trio.testing.wait_all_tasks_blocked()
        # With the envelope around it, it is over a stranger's limit of 64 KiB.
        with pytest.raises(CallError, match="INTERNAL"):
            await client.call("echo/unary", "x" * 65_500)
        await trio.testing.wait_all_tasks_blocked()
        assert operations.running == 1
        nursery.cancel_scope.deadline = trio.current_time() + 2
    assert done


async def test_the_token_of_a_request_that_is_refused_proves_nothing() -> None:
    async with raw_peer("unix", Operations(), identity=None) as (peer, server):
        await peer.request("c1", "echo/unary", '"auth_token":"alk_no"')
        event = await peer.receive()
        assert isinstance(event, Failed)
        assert event.code == "FORBIDDEN"
        assert server.frame_limit == Limits().frame_bytes_unproven
