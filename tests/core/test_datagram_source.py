"""On a machine with several addresses, an answer leaves from the one that was asked."""

from __future__ import annotations

import socket
import sys

import pytest

from alknet.core.ancillary import arrival_host, source_message
from alknet.core.datagram import MAX_TRANSLATED, UdpSocket, format_address


@pytest.mark.parametrize("bound", ["0.0.0.0", "::"])
@pytest.mark.parametrize("size", [1, 60_000])
async def test_an_answer_leaves_from_where_the_question_came_to(bound: str, size: int) -> None:
    server, client = UdpSocket.bind(bound, 0), UdpSocket.bind("127.0.0.1", 0)
    port = server.local_address[1]
    for host in ("127.0.0.2", "127.0.0.1", "127.1.2.3"):
        client.send(b"question", (host, port))
        ((_, path),) = await server.receive()
        assert path == (*client.local_address, host)
        assert server.send(bytes(size), path)
        assert await client.receive() == [(bytes(size), (host, port))]
    assert server.errors == 0
    server.close()
    client.close()


async def test_a_run_of_answers_leaves_from_there_too() -> None:
    server, client = UdpSocket.bind("0.0.0.0", 0), UdpSocket.bind("127.0.0.1", 0)
    client.send(b"question", ("127.0.0.2", server.local_address[1]))
    ((_, path),) = await server.receive()
    assert server.send_batch([(b"abc", path), (b"de", path)]) == 2
    source = ("127.0.0.2", server.local_address[1])
    assert await client.receive() == [(b"abc", source), (b"de", source)]
    server.close()
    client.close()


async def test_ipv6_answers_leave_from_where_the_question_came_to() -> None:
    server, client = UdpSocket.bind("::", 0), UdpSocket.bind("::1", 0)
    client.send(b"question", ("::1", server.local_address[1]))
    ((_, path),) = await server.receive()
    assert path == (*client.local_address, "::1")
    server.send(b"answer", path)
    assert await client.receive() == [(b"answer", ("::1", server.local_address[1]))]
    server.close()
    client.close()


async def test_a_socket_of_one_address_does_not_repeat_it() -> None:
    server, client = UdpSocket.bind("127.0.0.2", 0), UdpSocket.bind("127.0.0.1", 0)
    client.send(b"x", server.local_address)
    assert await server.receive() == [(b"x", client.local_address)]
    server.close()
    client.close()


async def test_an_address_that_is_no_longer_ours_loses_the_answer_and_nothing_else() -> None:
    server, client = UdpSocket.bind("0.0.0.0", 0), UdpSocket.bind("127.0.0.1", 0)
    assert server.send(b"lost", (*client.local_address, "192.0.2.1"))
    gone = (*client.local_address, "192.0.2.1")
    assert server.send_batch([(b"lost", gone), (b"lost", gone)]) == 2
    assert server.errors == 3
    assert server.is_segmenting  # it was not what the kernel refused
    assert server.send(b"found", (*client.local_address, "127.0.0.2"))
    assert [data for data, _ in await client.receive()] == [b"found"]
    server.close()
    client.close()


async def test_translations_of_addresses_stay_few() -> None:
    sock = UdpSocket.bind("0.0.0.0", 0)
    for port in range(1, 2 * MAX_TRANSLATED):
        sock._target(("192.0.2.1", port, "127.0.0.1"))
        sock._path(("192.0.2.1", port), b"")
    assert len(sock._targets) <= MAX_TRANSLATED
    assert len(sock._paths) <= MAX_TRANSLATED
    assert sock._path(("192.0.2.1", 9), b"") == ("192.0.2.1", 9)
    sock.close()


def test_arrival_addresses_are_written_as_peers_are() -> None:
    zone = (3).to_bytes(4, sys.byteorder)
    cases = {
        "192.0.2.7": zone + socket.inet_aton("192.0.2.7") + socket.inet_aton("192.0.2.255"),
        "198.51.100.1": socket.inet_pton(socket.AF_INET6, "::ffff:198.51.100.1") + zone,
        "2001:db8::1": socket.inet_pton(socket.AF_INET6, "2001:db8::1") + zone,
        "fe80::1%3": socket.inet_pton(socket.AF_INET6, "fe80::1") + zone,
    }
    for text, value in cases.items():
        assert arrival_host(value) == text


@pytest.mark.parametrize("host", ["2001:db8::1", "fe80::1%3", "192.0.2.7"])
def test_a_source_is_read_back_as_it_was_written(host: str) -> None:
    assert arrival_host(source_message(host, is_ipv6=True)[2]) == host
    if ":" not in host:
        assert arrival_host(source_message(host, is_ipv6=False)[2]) == host


def test_a_path_is_shown_as_the_peer_alone() -> None:
    assert format_address(("192.0.2.1", 53, "192.0.2.2")) == "192.0.2.1:53"
