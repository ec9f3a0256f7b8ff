"""How an endpoint uses its socket: the way back, runs, and what a full buffer leaves waiting."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from alknet.core.datagram import NetworkPath, UdpSocket
from alknet.core.limits import Limits
from alknet.core.quic.endpoint import QuicAcceptor, QuicEndpoint
from alknet.core.quic.policy import client_policy, server_policy
from alknet.testing.network import FakeUdpSocket
from tests.core.quic.fakenet import FakeNet
from tests.core.quic.pairs import (
    ALPN,
    admit_all,
    new_credentials,
    quic_client,
    quic_server,
)

THERE = ("192.0.2.9", 9)


class Watched(UdpSocket):
    """Remembers who has written to it."""

    sources: set[NetworkPath]

    async def receive(self) -> Sequence[tuple[bytes, NetworkPath]]:
        batch = await super().receive()
        self.sources.update(path for _, path in batch)
        return batch


class Narrow(FakeUdpSocket):
    """Takes a few datagrams, then says that it is full until somebody has waited."""

    left = 3
    taken: list[bytes]

    def send(self, data: bytes, address: NetworkPath) -> bool:
        if not self.left or not super().send(data, address):
            return False
        self.left -= 1
        self.taken.append(data)
        return True

    async def wait_writable(self) -> None:
        await super().wait_writable()
        self.left = 3


def narrow(net: FakeNet) -> Narrow:
    sock = Narrow(net, ("192.0.2.1", 1))
    sock.taken = []
    return sock


@pytest.mark.parametrize("bound", ["0.0.0.0", "::"])
async def test_a_server_answers_from_the_address_that_was_dialled(bound: str) -> None:
    socket = Watched.bind("127.0.0.1", 0)
    assert isinstance(socket, Watched)
    socket.sources = set()
    with trio.fail_after(60):
        async with (
            quic_server(socket=UdpSocket.bind(bound, 0)) as server,
            quic_client(socket=socket) as client,
        ):
            address = ("127.0.0.2", server.address[1])
            policy = client_policy(server.trust, None)
            dialer = await client.connect(address, alpn=ALPN, policy=policy)
            acceptor = await server.accepted.receive()
            assert acceptor.local_address == f"127.0.0.2:{address[1]}"
            assert acceptor.remote_address == "{}:{}".format(*socket.local_address)
            stream = await dialer.open_stream()
            await stream.send_all(bytes(100_000))
            await stream.send_eof()
            theirs = await acceptor.accept_stream()
            assert len(await drained(theirs)) == 100_000
            await theirs.send_all(bytes(100_000))
            await theirs.send_eof()
            assert len(await drained(stream)) == 100_000
            # Whoever knows an earlier socket of that number may still write to it.
            assert {path for path in socket.sources if path[1] == address[1]} == {address}


async def test_answers_without_a_connection_leave_from_there_too() -> None:
    async with quic_server(socket=UdpSocket.bind("0.0.0.0", 0)) as server:
        stranger = UdpSocket.bind("127.0.0.1", 0)
        address = ("127.0.0.2", server.address[1])
        stranger.send(unknown_version(7), address)
        with trio.fail_after(60):
            ((answer, source),) = await stranger.receive()
        assert answer[1:5] == bytes(4)
        assert source == address
        stranger.close()


async def test_an_endpoint_that_accepts_leaves_the_way_of_its_dials_to_the_system() -> None:
    acceptor = QuicAcceptor(
        policy=server_policy(new_credentials()),
        alpns=lambda: [ALPN],
        on_connection=lambda _: None,
        admit=admit_all,
    )
    both = QuicEndpoint(UdpSocket.bind("0.0.0.0", 0), limits=Limits(), acceptor=acceptor)
    with trio.fail_after(60):
        async with quic_server() as server, trio.open_nursery() as nursery:
            await nursery.start(both.run)
            policy = client_policy(server.trust, None)
            dialer = await both.connect(server.address, alpn=ALPN, policy=policy)
            assert [path.addr for path in dialer.engine._network_paths] == [server.address]
            nursery.cancel_scope.cancel()


async def test_what_a_full_socket_leaves_goes_later_in_order(autojump_clock: MockClock) -> None:
    net = FakeNet()
    sock = narrow(net)
    endpoint = QuicEndpoint(sock, limits=Limits())
    batch = [(bytes([n]), THERE) for n in range(100)]
    async with trio.open_nursery() as nursery:
        await nursery.start(endpoint.run)
        endpoint._outbox.send_batch(batch[:10])
        endpoint._outbox.send(*batch[10])
        sock.left = 1  # what comes now must not overtake what waits
        endpoint._outbox.send_batch(batch[11:])
        assert sock.taken == [b"\0", b"\1", b"\2"]
        await trio.sleep(1)
        assert sock.taken == [data for data, _ in batch]
        assert not endpoint._outbox
        nursery.cancel_scope.cancel()


async def test_what_does_not_fit_behind_a_full_socket_is_lost_and_counted(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr("alknet.core.quic.outbox.MAX_UNSENT", 20)
    sock = narrow(FakeNet())
    endpoint = QuicEndpoint(sock, limits=Limits())
    batch = [(bytes([n]), THERE) for n in range(100)]
    endpoint._outbox.send_batch(batch[:10])
    endpoint._outbox.send_batch(batch[10:30])
    endpoint._outbox.send_batch(batch[30:])
    assert len(endpoint._outbox) == 20
    assert endpoint.counters["send_buffer_full"] == 100 - 3 - 20
    async with trio.open_nursery() as nursery:
        await nursery.start(endpoint.run)
        await trio.sleep(1)
        assert sock.taken == [data for data, _ in batch[:23]]
        nursery.cancel_scope.cancel()


def unknown_version(number: int) -> bytes:
    return b"\x80\x1a\x2a\x3a\x4a\x08" + bytes(8) + b"\x01" + bytes([number]) + bytes(1_200)


async def drained(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([chunk async for chunk in stream])
