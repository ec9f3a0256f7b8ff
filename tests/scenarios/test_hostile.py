"""Peers that send garbage, or nothing, or too much of everything."""

from __future__ import annotations

import logging
import random  # noqa: TID251  seeded
import ssl
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest
import trio
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from alknet.call.codes import CallError
from alknet.client import connect, open_session
from alknet.core.endpoint.dial import DialError
from alknet.core.limits import Limits
from alknet.core.tcp.listener import connect_tcp
from alknet.node import Node
from alknet.testing.nodes import open_node
from tests.scenarios.rig import TRANSPORTS, bystander, eventually, make_friend, refusal_at_the_door

SHORT = Limits(handshake_timeout_s=0.3)


@asynccontextmanager
async def impatient_node(transport: str) -> AsyncGenerator[Node]:
    """A node that gives handshakes little time, once the bystander is in: it had all it needs."""
    async with open_node() as node, bystander(node, transport):
        assert node.apply(msgspec.structs.replace(node.config, limits=SHORT)) == []
        yield node


@asynccontextmanager
async def udp_socket(node: Node) -> AsyncGenerator[trio.socket.SocketType]:
    address = node.ticket.addresses[0]
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        await sock.connect((address.host, address.port))
        yield sock


def garbage(seed: int) -> list[bytes]:
    chance = random.Random(seed)
    first = (b"\xc0\x00\x00\x00\x01", b"\xc3\xff\xff\xff\xff", b"\x40", b"\x80", b"")
    return [
        chance.choice(first) + chance.randbytes(chance.choice((0, 1, 20, 1200, 1500, 9000)))
        for _ in range(300)
    ]


async def test_garbage_on_udp_is_counted_and_forgotten() -> None:
    async with open_node() as node, bystander(node, "quic"):
        async with udp_socket(node) as sock:
            for data in garbage(1):
                await sock.send(data)

        def counted() -> dict[str, int]:
            found: dict[str, int] = node.status()["datagrams_without_connection"][0]
            return found

        await eventually(lambda: sum(counted().values()) >= 100)
        assert "engine_error" not in counted()
        assert node.endpoint.handshakes == 0


async def test_an_initial_with_bits_flipped_anywhere_harms_nobody() -> None:
    async with impatient_node("quic") as node:
        async with udp_socket(node) as sock:
            for seed in range(40):
                initial = bytearray(_initial())
                chance = random.Random(seed)
                for _ in range(1 + seed % 4):
                    initial[chance.randrange(len(initial))] ^= 1 << chance.randrange(8)
                await sock.send(initial)
        await eventually(lambda: node.endpoint.handshakes == 0)
        assert "engine_error" not in node.status()["datagrams_without_connection"][0]


def _initial() -> bytes:
    configuration = QuicConfiguration(alpn_protocols=["alknet/call"], verify_mode=ssl.CERT_NONE)
    client = QuicConnection(configuration=configuration)
    client.connect(("127.0.0.1", 1), 0.0)
    return client.datagrams_to_send(0.0)[0][0]


@pytest.mark.slow
async def test_a_quic_client_that_falls_silent_is_forgotten() -> None:
    async with impatient_node("quic") as node:
        async with udp_socket(node) as sock:
            for _ in range(20):
                await sock.send(_initial())
            with trio.fail_after(30):
                while not node.endpoint.handshakes:  # all may be over before a look at them
                    await sock.send(_initial())
                    await trio.sleep(0.005)
            await eventually(lambda: node.endpoint.handshakes == 0, within_s=3)


@pytest.mark.slow
@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"], ids=len)
async def test_a_tcp_client_that_falls_silent_is_cut_off(
    said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "alknet")
    async with impatient_node("tcp") as node:
        address = node.ticket.addresses[0]
        async with AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(
                    await connect_tcp(address.host, address.port, Limits())
                )
                for _ in range(10)
            ]
            for stream in streams:
                if said:
                    await stream.send_all(said)
            with trio.fail_after(30):
                for stream in streams:
                    await _read_to_the_end(stream)
        assert node.endpoint.handshakes == 0
    failed = [vars(r)["error"] for r in caplog.records if r.message == "handshake.failed"]
    assert failed
    assert set(failed) == {"timed out"}


@pytest.mark.slow
async def test_a_client_hello_byte_by_byte_does_not_buy_time() -> None:
    """The whole handshake has a deadline, not each read."""
    async with impatient_node("tcp") as node:
        address = node.ticket.addresses[0]
        stream = await connect_tcp(address.host, address.port, Limits())
        began = trio.current_time()
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
        with pytest.raises(trio.BrokenResourceError):
            await _send_slowly(stream, hello)
        assert trio.current_time() - began < 8
        await stream.aclose()


async def _send_slowly(stream: trio.SocketStream, data: bytes) -> None:
    for byte in data:
        await stream.send_all(bytes([byte]))
        await trio.sleep(0.02)


@pytest.mark.parametrize("seed", range(3))
async def test_garbage_on_tcp_is_refused_at_once(seed: int) -> None:
    async with open_node() as node, bystander(node, "tcp"):
        address = node.ticket.addresses[0]
        for data in (b"GET / HTTP/1.1\r\n\r\n", random.Random(seed).randbytes(5000)):
            async with await connect_tcp(address.host, address.port, Limits()) as stream:
                with trio.fail_after(30):
                    await stream.send_all(data)
                    await _read_to_the_end(stream)
        await eventually(lambda: node.endpoint.handshakes == 0)


async def _read_to_the_end(stream: trio.SocketStream) -> None:
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        pass


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_protocol_that_nobody_serves_is_said_plainly(transport: str) -> None:
    async with open_node() as node, bystander(node, transport):
        with pytest.raises(DialError, match="no_application_protocol"):
            async with connect(node.ticket, alpn="nosuch/1", transports=[transport]):
                pass


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_strangers_of_one_address_are_counted_and_friends_are_not(transport: str) -> None:
    friend = make_friend("friend", "echo")
    limits = Limits(connections_per_address=3)
    async with (
        open_node(limits=limits, peers=[friend.peer]) as node,
        bystander(node, transport),
        AsyncExitStack() as stack,
    ):
        sessions = [
            await stack.enter_async_context(open_session(node.ticket, transports=[transport]))
            for _ in range(3)
        ]
        for session in sessions:
            await session.call("node/ping")
        refusal = await refusal_at_the_door(node, transport)
        assert "too many connections from this address" in refusal
        async with open_session(node.ticket, key=friend.key, transports=[transport]) as known:
            await known.call("echo/unary", {"message": 1})
        await sessions[0].call("node/ping")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_peer_may_have_so_many_connections(transport: str) -> None:
    friend = make_friend("friend", "echo")
    limits = Limits(connections_per_identity=2)
    async with (
        open_node(limits=limits, peers=[friend.peer]) as node,
        bystander(node, transport),
        open_session(node.ticket, key=friend.key, transports=[transport]) as one,
        open_session(node.ticket, key=friend.key, transports=[transport]) as two,
    ):
        await one.call("node/ping")
        await two.call("node/ping")
        refusal = await refusal_at_the_door(node, transport, friend.key)
        assert "this identity has too many connections" in refusal
        await one.call("echo/unary", {"message": 1})


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_handshakes_of_one_address_are_counted(transport: str) -> None:
    """Silent handshakes hold their places; the one too many is refused, not kept waiting."""
    limits = Limits(connections_per_address=3, handshake_timeout_s=30)
    async with (
        open_node(limits=limits) as node,
        bystander(node, transport),
        udp_socket(node) as sock,
    ):
        for _ in range(3):
            await sock.send(_initial())
        await eventually(lambda: node.endpoint.handshakes == 3)
        with trio.fail_after(20), pytest.raises(DialError):
            async with open_session(node.ticket, transports=[transport]):
                pass


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_calls_in_flight_are_counted(transport: str) -> None:
    friend = make_friend("friend", "echo")
    limits = Limits(calls_per_connection=4)
    slow = {"message": 1, "delay_ms": 60_000}
    async with (
        open_node(limits=limits, peers=[friend.peer]) as node,
        bystander(node, transport),
        open_session(node.ticket, key=friend.key, transports=[transport]) as session,
        trio.open_nursery() as nursery,
    ):
        for _ in range(4):
            nursery.start_soon(session.call, "echo/unary", slow)
        await eventually(lambda: node.status()["calls"] >= 4)
        with pytest.raises(CallError, match="RESOURCE_EXHAUSTED"):
            await session.call("echo/unary", {"message": 2}, timeout_s=30)
        nursery.cancel_scope.cancel()


async def test_a_peer_that_reads_nothing_stops_only_itself() -> None:
    """100 MiB asked for and not read: what the node holds for it stays bounded."""
    friend = make_friend("friend", "echo")
    async with (
        open_node(peers=[friend.peer]) as node,
        bystander(node, "tcp"),
        open_session(node.ticket, key=friend.key, transports=["tcp"]) as session,
        session.subscribe("echo/stream", {"count": 2**31 - 1}) as items,
    ):
        async for _ in items:
            break
        await trio.sleep(0.05)
        (calls,) = [s for s in node._calls.sessions if s.connection.identity.id == "peer:friend"]
        assert calls.budget.used < 1024 * 1024
