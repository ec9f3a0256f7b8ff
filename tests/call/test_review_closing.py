"""The message that closes, where the carrier has no close codes: always, and last."""

from __future__ import annotations

import msgspec
import trio

from alknet.call.handler import CallHandler
from alknet.call.proto import ConnectionClose
from alknet.core.contracts import CloseCode
from alknet.core.limits import Limits
from tests.call.sessions import Operations, raw_peer


async def test_who_reads_too_slowly_still_hears_why_the_connection_closes() -> None:
    async def big(_given: msgspec.Raw) -> object:
        return "x" * 500_000

    operations = Operations()
    operations.queries["test/big"] = big
    limits = Limits(buffered_bytes_per_connection=2 * 1024 * 1024)
    async with raw_peer("unix", operations, limits=limits) as (peer, server):
        for n in range(8):
            await peer.request(f"c{n}", "test/big")
        while server.close_reason is None:
            await trio.testing.wait_all_tasks_blocked()
            await trio.lowlevel.checkpoint()
        last = None
        with trio.fail_after(30):
            while (event := await peer.receive()) is not None:
                last = event
        assert isinstance(last, ConnectionClose)
        assert last.code == CloseCode.LIMIT


async def test_nothing_follows_the_message_that_closes() -> None:
    operations = Operations()
    async with raw_peer("unix", operations) as (peer, server):
        await peer.request("s1", "echo/endless")
        await trio.testing.wait_all_tasks_blocked()  # it has filled what there is
        server.end(CloseCode.PROTOCOL, "bye")
        events = []
        with trio.fail_after(30):
            while (event := await peer.receive()) is not None:
                events.append(event)
        assert events[-1] == ConnectionClose(CloseCode.PROTOCOL, "bye")


async def test_a_busy_connection_that_is_closed_from_outside_is_told_why() -> None:
    """As the endpoint does for a revoked peer: it closes the connection, not the session."""
    operations = Operations()
    async with raw_peer("unix", operations) as (peer, server):
        server.connection.farewell = CallHandler(operations, Limits()).farewell
        await peer.request("s1", "echo/endless")
        await trio.testing.wait_all_tasks_blocked()  # amid sending, for nobody reads
        server.connection.close(CloseCode.REVOKED, "gone")
        await trio.testing.wait_all_tasks_blocked()
        events = []
        with trio.fail_after(30):
            while (event := await peer.receive()) is not None:
                events.append(event)
        assert events[-1] == ConnectionClose(CloseCode.REVOKED, "gone")
