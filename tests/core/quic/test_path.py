"""Time, loss and moving addresses: what a connection outlives, and what ends it."""

from __future__ import annotations

import random  # noqa: TID251  seeded

import pytest
import trio
from aioquic.tls import Epoch
from trio.testing import MockClock

from alknet.core.contracts import ConnectionEnded
from alknet.core.limits import Limits
from alknet.core.quic.connection import QuicConnection
from alknet.core.quic.policy import client_policy
from tests.core.quic.fakenet import FakeNet
from tests.core.quic.pairs import ALPN, new_credentials, quic_client, quic_server
from tests.core.quic.worlds import exchange, read_exactly, world

# time


async def test_idle_connection_is_kept_alive(autojump_clock: MockClock) -> None:
    async with world() as here:
        dialer, acceptor = await here.connect()
        await trio.sleep(300)
        await exchange(dialer, acceptor, b"after five minutes")


async def test_peer_with_less_patience_is_pinged_in_time(autojump_clock: MockClock) -> None:
    net = FakeNet()
    impatient = Limits(idle_timeout_s=3, keep_alive_s=100)
    async with (
        quic_server(limits=impatient, socket=net.host("192.0.2.9")) as server,
        quic_client(socket=net.host()) as client,
    ):
        policy = client_policy(server.trust, None)
        dialer = await client.connect(server.address, alpn=ALPN, policy=policy)
        await trio.sleep(60)
        assert dialer.close_reason is None


async def test_open_stream_is_kept_alive_by_the_acceptor(autojump_clock: MockClock) -> None:
    net = FakeNet()
    silent = Limits(keep_alive_s=1000)
    async with (
        quic_server(socket=net.host("192.0.2.9")) as server,
        quic_client(limits=silent, socket=net.host()) as client,
    ):
        policy = client_policy(server.trust, None)
        dialer = await client.connect(server.address, alpn=ALPN, policy=policy)
        acceptor = await server.accepted.receive()
        stream = await dialer.open_stream()
        await stream.send_all(b"x")
        await acceptor.accept_stream()
        await trio.sleep(200)
        assert dialer.close_reason is None
        await stream.aclose()


@pytest.mark.parametrize("case", ["silence", "partition"])
async def test_dead_connection_ends_with_a_clear_reason(
    case: str, autojump_clock: MockClock
) -> None:
    async with world(limits=Limits(keep_alive_s=1000 if case == "silence" else 10)) as here:
        dialer, acceptor = await here.connect()
        if case == "partition":
            here.net.filter = lambda *_: False
        began = trio.current_time()
        for connection in (dialer, acceptor):
            with pytest.raises(ConnectionEnded) as ended:
                await connection.accept_stream()
            assert ended.value.close.is_transport
            assert not ended.value.close.by_peer
            assert ended.value.close.reason == "idle timeout: nothing heard from the peer for 30 s"
        assert 29 < trio.current_time() - began < 41
        assert here.is_empty()


async def test_timers_leave_nothing_behind_on_a_long_lived_connection(
    autojump_clock: MockClock,
) -> None:
    async with world() as here:
        dialer, acceptor = await here.connect()
        deepest = 0
        for _ in range(300):
            dialer.send_datagram(b"tick")
            await acceptor.receive_datagram()
            await trio.sleep(0.03)
            deepest = max(deepest, len(here.server.endpoint._timers), len(here.client._timers))
        assert deepest < 10


@pytest.mark.slow
async def test_a_thousand_connections_leave_nothing(autojump_clock: MockClock) -> None:
    async with world(limits=Limits(handshake_timeout_s=60)) as here:
        policy = client_policy(here.server.trust, here.key)

        async def visit() -> None:
            for _ in range(50):
                dialer = await here.client.connect(here.server.address, alpn=ALPN, policy=policy)
                dialer.close()

        async def serve() -> None:
            async for connection in here.server.accepted:
                nursery.start_soon(connection.wait_closed)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            async with trio.open_nursery() as visitors:
                for _ in range(20):
                    visitors.start_soon(visit)
            nursery.cancel_scope.cancel()
        await trio.sleep(5)
        assert here.is_empty()
        for endpoint in (here.server.endpoint, here.client):
            assert len(endpoint._timers) <= 200
            assert all(timer.owner is None for _, _, timer in endpoint._timers._heap)
            await trio.sleep(60)
            assert len(endpoint._timers) == 0


# the path


async def test_client_behind_a_nat_that_forgets_goes_on(autojump_clock: MockClock) -> None:
    net = FakeNet()
    socket = net.host()
    async with (
        quic_server(socket=net.host("192.0.2.9")) as server,
        quic_client(socket=socket) as client,
    ):
        policy = client_policy(server.trust, new_credentials())
        dialer = await client.connect(server.address, alpn=ALPN, policy=policy)
        acceptor = await server.accepted.receive()
        before = acceptor.remote_address
        stream = await dialer.open_stream()
        await stream.send_all(b"before ")
        theirs = await acceptor.accept_stream()
        for turn in range(3):
            net.rebind(socket, ("192.0.2.1", 1000 + turn))
            await stream.send_all(b"after")
            await trio.sleep(1)
            await theirs.send_all(bytes([turn]) * 5000)
            assert await read_exactly(stream, 5000) == bytes([turn]) * 5000
        assert await read_exactly(theirs, 22) == b"before " + b"after" * 3
        assert acceptor.remote_address == "192.0.2.1:1002" != before


async def test_key_updates_on_both_sides_in_mid_transfer(autojump_clock: MockClock) -> None:
    net = FakeNet(seed=3, reorder=0.1)
    async with world(net=net) as here:
        dialer, acceptor = await here.connect()

        async def update(connection: QuicConnection) -> None:
            for _ in range(5):
                await trio.sleep(0.15)
                while not connection.engine.update_keys():
                    await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(update, dialer)
            nursery.start_soon(update, acceptor)
            nursery.start_soon(exchange, dialer, acceptor, bytes(range(256)) * 2000)
            nursery.start_soon(exchange, acceptor, dialer, bytes(range(256)) * 2000)
        assert dialer.close_reason is None


async def test_keys_are_updated_long_before_they_wear_out(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr("alknet.core.quic.connection.PACKETS_PER_KEY", 50)
    async with world() as here:
        dialer, acceptor = await here.connect()
        phases = set()
        for _ in range(10):
            await exchange(dialer, acceptor, bytes(20_000))
            phases.add(dialer.engine._cryptos[Epoch.ONE_RTT].key_phase)
        assert phases == {0, 1}


@pytest.mark.parametrize("seed", range(4))
async def test_streams_arrive_once_and_whole_over_a_bad_network(
    seed: int, autojump_clock: MockClock
) -> None:
    net = FakeNet(seed, reorder=0.1)
    rng = random.Random(seed)
    async with world(net=net) as here:
        dialer, acceptor = await here.connect()
        net.loss, net.duplicate = 0.05, 0.02
        contents = {
            bytes([i]): rng.randbytes(rng.choice((0, 1, 900, 5_000, 60_000))) for i in range(20)
        }
        arrived: dict[bytes, bytes] = {}

        async def send(connection: QuicConnection, name: bytes) -> None:
            async with await connection.open_stream() as stream:
                await stream.send_all(name + contents[name])

        async def receive(connection: QuicConnection) -> None:
            async with await connection.accept_stream() as stream:
                data = bytearray()
                while part := await stream.receive_some():
                    data += part
                assert bytes(data[:1]) not in arrived
                arrived[bytes(data[:1])] = bytes(data[1:])

        async with trio.open_nursery() as nursery:
            for number, name in enumerate(contents):
                ends = (dialer, acceptor) if number % 2 else (acceptor, dialer)
                nursery.start_soon(send, ends[0], name)
                nursery.start_soon(receive, ends[1])
        assert arrived == contents
        net.loss = net.duplicate = 0.0
        await trio.sleep(5)
        for connection in (dialer, acceptor):
            assert not connection._streams
            assert not connection.engine._streams


async def test_handshakes_survive_loss(autojump_clock: MockClock) -> None:
    net = FakeNet(seed=11)
    net.loss, net.duplicate = 0.2, 0.1
    async with world(net=net, limits=Limits(handshake_timeout_s=20)) as here:
        for _ in range(10):
            dialer, acceptor = await here.connect()
            assert acceptor.peer_key == here.key.node_id
            assert dialer.peer_key == here.server.credentials.node_id


async def test_full_socket_buffer_delays_but_loses_nothing(autojump_clock: MockClock) -> None:
    net = FakeNet()
    socket = net.host()
    async with (
        quic_server(socket=net.host("192.0.2.9")) as server,
        quic_client(socket=socket) as client,
    ):
        policy = client_policy(server.trust, None)
        dialer = await client.connect(server.address, alpn=ALPN, policy=policy)
        acceptor = await server.accepted.receive()
        await trio.sleep(1)
        with socket.full():
            for number in range(5):
                dialer.send_datagram(bytes([number]))
                await trio.sleep(0.05)
            assert client._outbox
        got = [await acceptor.receive_datagram() for _ in range(5)]
        assert got == [bytes([number]) for number in range(5)]
        assert not client._outbox
