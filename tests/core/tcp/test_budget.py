"""What TLS connections over TCP buffer is in the node's budget, and less when that is short."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio

from alknet.client import connect
from alknet.core.budget import MemoryBudget
from alknet.core.contracts import CloseReason, Connection, Stream
from alknet.core.limits import Limits
from alknet.core.tcp.connection import StreamConnection
from alknet.core.tcp.handshake import dial_tls
from alknet.core.tcp.tls import FLOOR_BYTES, READ_BYTES, RECORD_BYTES, RECORDS_PER_WRITE
from alknet.core.tls.trust import PinnedKey
from alknet.testing.nodes import open_node
from tests.core.tcp.rig import ALPN, CLIENT, SERVER, shake_hands, tcp_server

KIB = 1024
MIB = 1024 * KIB
# A record of TLS 1.3 has a header, a tag and the inner type beside its content.
SEALED_RECORD_BYTES = RECORD_BYTES + 256


@asynccontextmanager
async def connected(
    budget: MemoryBudget,
) -> AsyncGenerator[tuple[Stream, Stream, StreamConnection]]:
    """Connect over memory streams; the acceptor's connection is charged to *budget*."""
    client, server = (await shake_hands()).connections
    server.charge_to(budget)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.wait_closed)
        nursery.start_soon(server.wait_closed)
        near, far = await client.open_stream(), await server.accept_stream()
        await far.send_all(b"hello")  # takes along what the handshake has left to say
        await read(near, 5)
        yield near, far, server
        nursery.cancel_scope.cancel()


async def read(stream: Stream, count: int, at_once: int | None = None) -> None:
    while count > 0:
        count -= len(await stream.receive_some(min(at_once or count, count)))


async def test_what_nobody_has_read_is_charged_and_given_back() -> None:
    budget = MemoryBudget(MIB)
    async with connected(budget) as (near, far, _):
        await near.send_all(bytes(200 * KIB))
        await trio.testing.wait_all_tasks_blocked()
        # One piece ahead of the reader, of which the last record has not all come.
        assert 0 < budget.used <= 2 * FLOOR_BYTES
        await read(far, 200 * KIB)
        assert budget.used == 0


async def test_what_is_not_decrypted_yet_is_charged_too() -> None:
    budget = MemoryBudget(MIB)
    async with connected(budget) as (near, far, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, far, FLOOR_BYTES + 10)
            await trio.testing.wait_all_tasks_blocked()
            await near.send_all(bytes(60 * KIB))
        rest = 60 * KIB - FLOOR_BYTES - 10
        assert rest <= budget.used <= rest + 4 * 256
        await read(far, rest, at_once=1_000)
        assert budget.used <= 4 * 256  # of headers and tags, until somebody looks again


async def test_what_is_dropped_and_what_has_ended_is_charged_no_more() -> None:
    budget = MemoryBudget(MIB)
    async with connected(budget) as (near, far, _):
        await near.send_all(bytes(30 * KIB))
        await trio.testing.wait_all_tasks_blocked()
        assert budget.used > 0
        far.stop_sending(0)
        assert budget.used == 0
    async with connected(budget) as (near, far, connection):
        await near.send_all(bytes(30 * KIB))
        await trio.testing.wait_all_tasks_blocked()
        assert budget.used > 0
        connection.close()
        await connection.wait_closed()
        assert budget.used == 0
        connection.charge_to(budget)
        assert budget.used == 0


async def test_what_the_socket_does_not_take_is_charged() -> None:
    budget = MemoryBudget(MIB)
    blocked = trio.Event()

    async def send(connection: StreamConnection) -> None:
        connection.charge_to(budget)
        stream = await connection.accept_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, bytes(8 * MIB))
            await trio.testing.wait_all_tasks_blocked()
            blocked.set()

    async with tcp_server(handle=send) as server:
        transport = await server.connect()
        connection = await dial_tls(
            transport, alpn=ALPN, credentials=CLIENT, trust=PinnedKey(SERVER.node_id)
        )
        stream = await connection.open_stream()
        await blocked.wait()
        assert 0 < budget.used <= RECORDS_PER_WRITE * SEALED_RECORD_BYTES
        budget.total = budget.used  # from now on there is no memory
        most = 0
        for _ in range(8 * MIB // READ_BYTES):
            await read(stream, READ_BYTES, at_once=READ_BYTES)
            most = budget.used
        assert most <= SEALED_RECORD_BYTES
        await connection.aclose()


async def test_without_memory_all_get_on_with_a_record_each() -> None:
    budget = MemoryBudget(MIB)
    async with connected(budget) as (near, far, _):
        budget.used = budget.total
        await near.send_all(bytes(200 * KIB))
        await trio.testing.wait_all_tasks_blocked()
        assert 0 < budget.used - budget.total <= 2 * FLOOR_BYTES
        await read(far, 200 * KIB)
        await far.send_all(bytes(200 * KIB))
        await read(near, 200 * KIB)
        assert budget.used == budget.total


class Deaf:
    """Accepts streams, and reads nothing."""

    alpns = ("deaf",)
    requires_identity = False

    async def handle(self, connection: Connection) -> None:
        await connection.accept_stream()
        await trio.sleep_forever()

    def farewell(self, reason: CloseReason) -> bytes:
        return b""


@pytest.mark.slow
async def test_a_node_charges_tcp_and_quic_to_one_budget() -> None:
    limits = Limits(buffered_bytes_total=256 * KIB)
    async with open_node(handlers=[Deaf()], limits=limits) as node:
        budget = node.endpoint.budget
        async with trio.open_nursery() as nursery:

            async def send(transport: str) -> None:
                async with connect(node.ticket, alpn="deaf", transports=[transport]) as connection:
                    stream = await connection.open_stream()
                    await stream.send_all(bytes(4 * MIB))
                    await trio.sleep_forever()

            nursery.start_soon(send, "quic")
            with trio.fail_after(60):
                while budget.used < 100 * KIB:
                    await trio.sleep(0.005)
            for _ in range(20):
                nursery.start_soon(send, "tcp")
            with trio.fail_after(60):
                while budget.used < 256 * KIB:
                    await trio.sleep(0.005)
            with trio.fail_after(60):
                while len(node.endpoint.connections()) < 21:
                    await trio.sleep(0.005)
            # Two TCP connections find room, and the others keep to the floor: all of them with
            # 64 KiB each were 1.4 MiB.
            assert budget.used <= 256 * KIB + 19 * 2 * SEALED_RECORD_BYTES
            nursery.cancel_scope.cancel()
        node.endpoint.hurry()
    assert budget.used == 0
