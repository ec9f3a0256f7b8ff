from __future__ import annotations

import socket
from itertools import chain

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.core.datagram import MAX_BATCH, UdpSocket, format_address
from alknet.testing.contract import cancel_at_every_checkpoint


async def receive_batches(sock: UdpSocket, count: int) -> list[list[bytes]]:
    """What comes until there are *count*; a busy kernel may not bring all of it at once."""
    found: list[list[bytes]] = []
    with trio.fail_after(60):
        while sum(map(len, found)) < count:
            found.append([data for data, _ in await sock.receive()])
    return found


async def test_datagrams_go_both_ways_with_their_addresses() -> None:
    one, two = UdpSocket.bind("127.0.0.1", 0), UdpSocket.bind("127.0.0.1", 0)
    assert one.send(b"hello", two.local_address)
    assert await two.receive() == [(b"hello", one.local_address)]
    assert two.send(b"", one.local_address)
    assert await one.receive() == [(b"", two.local_address)]
    one.close()
    two.close()


async def test_a_dual_stack_socket_speaks_with_both_families_and_says_so_plainly() -> None:
    both = UdpSocket.bind("::", 0)
    port = both.local_address[1]
    for host in ("127.0.0.1", "::1"):
        single = UdpSocket.bind(host, 0)
        single.send(b"x", (host, port))
        ((_, source),) = await both.receive()
        assert source == (*single.local_address, host)
        assert both.send(b"y", source)
        assert await single.receive() == [(b"y", (host, port))]
        single.close()
    both.close()


async def both_families() -> tuple[UdpSocket, UdpSocket]:
    """Two sockets of one number, which another program may have in one of the families."""
    for _ in range(100):
        six = UdpSocket.bind("::1", 0)
        try:
            return six, UdpSocket.bind("127.0.0.1", six.local_address[1])
        except OSError:
            six.close()
    raise AssertionError("an IPv6 socket takes the IPv4 port too")


async def test_an_ipv6_socket_leaves_the_ipv4_port_alone() -> None:
    six, four = await both_families()
    assert six.local_address[1] == four.local_address[1]
    six.close()
    four.close()


async def test_a_batch_is_bounded_and_nothing_is_lost() -> None:
    one, two = UdpSocket.bind("127.0.0.1", 0), UdpSocket.bind("127.0.0.1", 0)
    for n in range(MAX_BATCH + 1):
        assert one.send(bytes([n]), two.local_address)
    batches = await receive_batches(two, MAX_BATCH + 1)
    assert max(map(len, batches)) <= MAX_BATCH
    assert list(chain(*batches)) == [bytes([n]) for n in range(MAX_BATCH + 1)]
    one.close()
    two.close()


async def test_what_the_network_refuses_is_lost_and_counted() -> None:
    sock = UdpSocket.bind("127.0.0.1", 0)
    assert sock.send(bytes(70_000), sock.local_address)
    assert sock.send(b"x", ("::1", 9))
    assert sock.errors == 2
    assert sock.send(b"still works", sock.local_address)
    assert await receive_batches(sock, 1) == [[b"still works"]]
    sock.close()


async def test_a_full_socket_says_so_and_becomes_writable() -> None:
    # A pair of Unix sockets stands in: loopback UDP drops at the receiver and is never full.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    full = _Connected(ours)
    while full.send(bytes(1_000), ("unused", 0)):
        pass
    async with trio.open_nursery() as nursery:
        nursery.start_soon(full.wait_writable)
        await wait_all_tasks_blocked()
        while nursery.child_tasks:
            theirs.recv(2_000)
            await trio.lowlevel.checkpoint()
    assert full.send(b"x", ("unused", 0))
    assert full.errors == 0
    full.close()
    theirs.close()


class _Wire:
    """A connected socket that takes an address and ignores it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.family = socket.AF_INET
        self.fileno = sock.fileno
        self.close = sock.close

    def sendto(self, data: bytes, address: object) -> int:
        return self._sock.send(data)


class _Connected(UdpSocket):
    def __init__(self, sock: socket.socket) -> None:
        super().__init__(_Wire(sock))  # type: ignore[arg-type]  # what UdpSocket uses of a socket


async def test_a_taken_address_is_an_error() -> None:
    sock = UdpSocket.bind("127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        UdpSocket.bind(*sock.local_address)
    sock.close()


async def test_closing_wakes_a_reader_and_ends_the_socket() -> None:
    sock = UdpSocket.bind("127.0.0.1", 0)
    address = sock.local_address

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await sock.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        sock.close()
        sock.close()
    with pytest.raises(trio.ClosedResourceError):
        sock.send(b"x", address)
    with pytest.raises(trio.ClosedResourceError):
        await sock.receive()
    with pytest.raises(trio.ClosedResourceError):
        await sock.wait_writable()


async def test_a_cancelled_receive_takes_nothing() -> None:
    sock = UdpSocket.bind("127.0.0.1", 0)
    sock.send(b"x", sock.local_address)
    received: list[bytes] = []

    async def receive() -> None:
        received.extend(data for data, _ in await sock.receive())

    await cancel_at_every_checkpoint(receive)
    assert received == [b"x"]
    sock.close()


def test_addresses_are_written_as_people_expect() -> None:
    assert format_address(("192.0.2.1", 53)) == "192.0.2.1:53"
    assert format_address(("2001:db8::1", 53)) == "[2001:db8::1]:53"
