"""Slow and silent clients of a whole node: the tasks and places they take, and for how long."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio

from alknet.core.limits import Limits
from alknet.core.tcp.listener import connect_tcp
from alknet.testing.nodes import open_node
from tests.scenarios.rig import bystander, eventually, make_friend, raw_caller, tasks_at_rest

PLACES = 8
# A handshake over TCP: the connection's own task, and one for its deadline or its writer.
TASKS_PER_HANDSHAKE = 3


@pytest.mark.slow
async def test_silent_tls_clients_get_so_many_places_and_tasks() -> None:
    # Longer than a busy machine takes to let all clients come.
    limits = Limits(handshake_timeout_s=4.0, connections_per_address=PLACES)
    async with open_node(limits=limits) as node, bystander(node, "quic"):
        address = node.ticket.addresses[0]
        tasks = await tasks_at_rest()
        async with AsyncExitStack() as stack:
            for _ in range(4 * PLACES):
                stream = await connect_tcp(address.host, address.port, Limits())
                await stack.enter_async_context(stream)
                await stream.send_all(b"\x16\x03\x01")
            await eventually(lambda: node.endpoint.handshakes == PLACES)
            living = trio.lowlevel.current_statistics().tasks_living
            assert living - tasks <= TASKS_PER_HANDSHAKE * PLACES
            await eventually(lambda: node.endpoint.handshakes == 0, within_s=20)
        # The watch of rights waits in a task more when it has seen the bystander come.
        await eventually(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks + 1)


async def test_calls_whose_answers_nobody_takes_are_no_more_than_are_allowed() -> None:
    """Over QUIC, asked for without reading: places of calls, not tasks without end."""
    friend = make_friend("friend", "echo")
    limits = Limits(calls_per_connection=16)
    async with open_node(limits=limits, peers=[friend.peer]) as node, bystander(node, "tcp"):
        async with raw_caller(node, "quic", key=friend.key) as caller:
            tasks = await tasks_at_rest()
            for number in range(200):
                slow = {"message": number, "delay_ms": 60_000}
                await caller.request("echo/unary", slow, call_id=f"n{number}")
            await eventually(lambda: node.status()["calls"] >= 16)
            living = trio.lowlevel.current_statistics().tasks_living
            assert node.status()["calls"] <= 16 + 1  # the bystander's
            assert living - tasks <= 16 + 8
            errors = [await caller.next() for _ in range(200 - 16)]
            assert {e["payload"]["code"] for e in errors} == {"RESOURCE_EXHAUSTED"}
        await eventually(lambda: node.status()["calls"] <= 1)
