"""What connections say about their transports."""

from __future__ import annotations

import socket

import pytest
import trio

from alknet.core.contracts import Connection
from alknet.core.transport import TransportStatus, tcp_status
from alknet.testing.memory import memory_connection_pair
from alknet.testing.nodes import open_node
from tests.core.quic.fakenet import FakeNet
from tests.core.quic.worlds import exchange, world
from tests.scenarios.rig import bystander

SIZE = 100_000


async def test_quic_counts_what_went_over_the_path(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as net:
        dialer, acceptor = await net.connect()
        await exchange(dialer, acceptor, bytes(SIZE))
        sender, receiver = dialer.transport_status(), acceptor.transport_status()
        assert sender.sent_bytes is not None
        assert SIZE < sender.sent_bytes < 1.2 * SIZE
        assert receiver.received_bytes is not None
        assert SIZE < receiver.received_bytes < 1.2 * SIZE
        assert sender.packets_sent is not None
        assert sender.packets_sent >= SIZE / 1500
        assert receiver.packets_received is not None
        assert receiver.packets_received >= SIZE / 65_536
        assert sender.congestion_window_bytes is not None
        assert sender.congestion_window_bytes >= 12_000
        assert sender.mtu_bytes is not None
        assert sender.mtu_bytes >= 1_200
        assert sender.packets_lost == 0
        assert sender.rtt_s is not None
        assert sender.rtt_min_s is not None
        assert 0 <= sender.rtt_min_s <= sender.rtt_s


async def test_quic_counts_streams_and_bytes_in_flight() -> None:
    async with world() as net:
        dialer, acceptor = await net.connect()
        async with await dialer.open_stream() as stream:
            await stream.send_all(bytes(5_000))
            await trio.testing.wait_all_tasks_blocked()
            arrived = await acceptor.accept_stream()
            assert dialer.transport_status().streams == 1
            assert acceptor.transport_status().streams == 1
            await arrived.aclose()


async def test_quic_counts_lost_packets(autojump_clock: trio.testing.MockClock) -> None:
    net = FakeNet()
    async with world(net=net) as pair:
        dialer, acceptor = await pair.connect()
        passed = 0

        def every_tenth_is_lost(data: bytes, *_: object) -> bool:
            nonlocal passed
            passed += len(data) > 1_000
            return len(data) <= 1_000 or passed % 10 != 0

        net.filter = every_tenth_is_lost
        await exchange(dialer, acceptor, bytes(5 * SIZE))
        status = dialer.transport_status()
        assert status.packets_lost is not None
        assert status.packets_sent is not None
        assert 5 <= status.packets_lost < status.packets_sent / 2


async def test_tcp_says_what_the_kernel_knows() -> None:
    async with open_node() as node, bystander(node, "tcp"):
        (one,) = node.endpoint.connections()
        status = one.transport
        for value in (status.rtt_s, status.congestion_window_bytes, status.mtu_bytes):
            assert value is not None
            assert value > 0
        assert status.sent_bytes is not None
        assert status.sent_bytes > 100
        assert status.received_bytes is not None
        assert status.received_bytes > 100
        assert status.packets_lost is not None
        assert status.streams == 1


def test_a_socket_that_is_no_tcp_tells_nothing() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert tcp_status(left.getsockopt) == TransportStatus(streams=1)


async def test_other_carriers_know_nothing() -> None:
    async with memory_connection_pair() as (dialer, _):
        plain: Connection = dialer
        assert plain.transport_status() == TransportStatus()


@pytest.mark.parametrize("transport", ["quic", "tcp"])
async def test_running_calls_are_counted_by_connection(transport: str) -> None:
    async with open_node() as node, bystander(node, transport) as session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call, "echo/unary", {"message": 1, "delay_ms": 60_000})
            while max(one["calls"] or 0 for one in node.status()["connections"]) < 1:
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
