"""Runs of datagrams in one system call arrive as if each had been sent alone."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from socket import SOL_SOCKET

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from alknet.core.ancillary import MAX_RUN_BYTES, MAX_SEGMENTS, run_end, segment_message, split
from alknet.core.datagram import MAX_BATCH, DatagramSocket, NetworkPath, UdpSocket

# asm-generic/socket.h; the first of its numbers is the memory that the receive queue takes.
SO_MEMINFO = 55
PEER, OTHER = ("192.0.2.1", 1), ("192.0.2.2", 2)
SIZES = st.sampled_from([0, 1, 2, 99, 100, 1_200, 1_452])
# (receiver, size, how many in a row)
PATTERNS = st.lists(st.tuples(st.integers(0, 2), SIZES, st.integers(1, 15)), max_size=6)

Batch = list[tuple[bytes, NetworkPath]]


class Scripted:
    """What `UdpSocket` uses of a socket, and what a kernel may say to it.

    Attributes:
        sent: The datagrams that it took, in order, however they came.
        calls: How many sends it took or refused.
        room: Datagrams that it takes before its buffer is full.
    """

    family = socket.AF_INET

    def __init__(
        self, *, refusal: int = 0, at_most: int = 1_500, room: int = 10_000, is_once: bool = False
    ) -> None:
        self.sent: list[bytes] = []
        self.calls = 0
        self.room = room
        self._refusal = refusal
        self._at_most = at_most
        self._is_once = is_once

    def fileno(self) -> int:
        return 1

    def sendto(self, data: bytes, address: object) -> int:
        return self._take([data])

    def sendmsg(
        self, parts: Sequence[bytes], ancillary: list[object], flags: int, address: object
    ) -> int:
        assert ancillary == [segment_message(len(parts[0]))]
        if self._refusal:
            self.calls += 1
            refusal = self._refusal
            self._refusal = 0 if self._is_once else refusal
            raise OSError(refusal, os.strerror(refusal))
        return self._take(parts)

    def _take(self, parts: Sequence[bytes]) -> int:
        self.calls += 1
        if len(parts) > self.room:
            raise BlockingIOError(errno.EAGAIN, "full")
        if len(parts[0]) > self._at_most:
            raise OSError(errno.EMSGSIZE, "too long")
        self.room -= len(parts)
        self.sent += parts
        return sum(map(len, parts))


def over(scripted: Scripted) -> UdpSocket:
    return UdpSocket(scripted, is_segmenting=True)  # type: ignore[arg-type]  # all that it uses


def numbered(count: int, size: int = 100) -> Batch:
    return [(n.to_bytes(2, "big") * (size // 2), PEER) for n in range(count)]


@settings(max_examples=40, deadline=None)
@given(PATTERNS)
async def test_runs_arrive_as_datagrams_that_were_sent_singly(
    pattern: list[tuple[int, int, int]],
) -> None:
    with trio.fail_after(60):
        together = await sent_and_received(pattern, is_segmenting=True)
        singly = await sent_and_received(pattern, is_segmenting=False)
    assert together == singly == expected(pattern)


async def sent_and_received(
    pattern: list[tuple[int, int, int]], *, is_segmenting: bool
) -> list[list[bytes]]:
    sender = UdpSocket.bind("127.0.0.1", 0)
    assert sender.is_segmenting
    sender.is_segmenting = is_segmenting
    receivers = [UdpSocket.bind(f"127.0.0.{1 + n}", 0) for n in range(3)]
    batch: Batch = [(data, receivers[n].local_address) for n, data in datagrams(pattern)]
    assert sender.send_batch(batch) == len(batch)
    assert (sender.errors, sender.segmentation_failures) == (0, 0)
    found = []
    for sock, wanted in zip(receivers, expected(pattern), strict=True):
        arrived: list[bytes] = []
        while len(arrived) < len(wanted):
            for data, source in await sock.receive():
                assert source == sender.local_address
                arrived.append(data)
        found.append(arrived)
    for sock in (sender, *receivers):
        sock.close()
    return found


def datagrams(pattern: list[tuple[int, int, int]]) -> list[tuple[int, bytes]]:
    rows = [(n, size) for n, size, count in pattern for _ in range(count)]
    return [(n, bytes([at]) * size) for at, (n, size) in enumerate(rows)]


def expected(pattern: list[tuple[int, int, int]]) -> list[list[bytes]]:
    return [[data for to, data in datagrams(pattern) if to == n] for n in range(3)]


async def until_queued(sock: UdpSocket, beside: bytes) -> bytes:
    """Wait until the kernel has more for *sock* than *beside*: it may have other things to do."""
    with trio.fail_after(60):
        while (queued := sock._sock.getsockopt(SOL_SOCKET, SO_MEMINFO, 4)) == beside:
            await trio.sleep(0.001)
    return queued


async def test_joined_datagrams_do_not_wait_for_another_receive() -> None:
    one, two = UdpSocket.bind("127.0.0.1", 0), UdpSocket.bind("127.0.0.1", 0)
    queued = bytes(4)
    for _ in range(2):
        batch: Batch = [(bytes(100), two.local_address)] * (MAX_BATCH - 1)
        assert one.send_batch(batch) == MAX_BATCH - 1
        queued = await until_queued(two, beside=queued)
    assert len(await two.receive()) == 2 * (MAX_BATCH - 1)
    one.close()
    two.close()


@given(st.lists(st.tuples(SIZES.map(bytes), st.sampled_from([PEER, OTHER])), min_size=1))
def test_a_run_is_what_one_send_takes(batch: Batch) -> None:
    at = 0
    while at < len(batch):
        end = run_end(batch, at)
        run = [data for data, _ in batch[at:end]]
        assert 1 <= len(run) <= MAX_SEGMENTS
        assert len({address for _, address in batch[at:end]}) == 1
        if len(run) > 1:
            assert sum(map(len, run)) <= MAX_RUN_BYTES
            assert split(b"".join(run), len(run[0])) == run
        at = end


def test_runs_are_as_long_as_they_may_be() -> None:
    assert run_end(numbered(100, 2), 0) == MAX_SEGMENTS
    assert run_end(numbered(100, 10_000), 3) == 3 + 6
    assert run_end(numbered(2, 65_002), 0) == 1
    assert run_end([*numbered(3, 100), *numbered(3, 50)], 0) == 4
    assert run_end([*numbered(3, 50), *numbered(3, 100)], 0) == 3
    assert run_end([*numbered(3), (b"", PEER)], 0) == 3
    assert run_end([(b"", PEER), (b"", PEER)], 0) == 1


@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP])
def test_a_kernel_that_refuses_runs_gets_single_datagrams_from_then_on(code: int) -> None:
    scripted = Scripted(refusal=code)
    sock = over(scripted)
    batch = numbered(10)
    assert sock.send_batch(batch) == 10
    assert (sock.segmentation_failures, sock.errors, sock.is_segmenting) == (1, 0, False)
    assert sock.send_batch(batch) == 10
    assert scripted.sent == 2 * [data for data, _ in batch]
    assert scripted.calls == 1 + 2 * 10


def test_datagrams_that_are_refused_singly_too_say_nothing_against_runs() -> None:
    scripted = Scripted(refusal=errno.EINVAL, at_most=99)
    sock = over(scripted)
    assert sock.send_batch(numbered(10)) == 10
    assert (sock.errors, sock.segmentation_failures, sock.is_segmenting) == (10, 1, True)
    assert scripted.sent == []


def test_an_answer_by_icmp_to_an_earlier_datagram_says_nothing_against_runs() -> None:
    scripted = Scripted(refusal=errno.ECONNREFUSED, is_once=True)
    sock = over(scripted)
    assert sock.send_batch(numbered(10)) == 10
    assert sock.is_segmenting
    assert sock.send_batch(numbered(10)) == 10
    assert scripted.calls == 1 + 10 + 1
    assert len(scripted.sent) == 20


@pytest.mark.parametrize("code", [0, errno.EIO])
@pytest.mark.parametrize("room", [0, 1, 10, 64, 65, 99])
def test_a_full_buffer_takes_the_head_and_keeps_the_order(code: int, room: int) -> None:
    scripted = Scripted(refusal=code, room=room)
    sock = over(scripted)
    batch = [*numbered(70), (b"x", OTHER), *numbered(30, 50)]
    first = sock.send_batch(batch)
    assert first <= room
    scripted.room = 10_000
    assert sock.send_batch(batch[first:]) == len(batch) - first
    assert scripted.sent == [data for data, _ in batch]
    assert sock.errors == 0
    assert sock.is_segmenting == (code == 0)
    assert bool(sock.segmentation_failures) == bool(code)


def test_a_socket_without_runs_of_its_own_sends_one_by_one() -> None:
    class Plain(DatagramSocket):
        def __init__(self) -> None:
            self.sent: Batch = []

        def send(self, data: bytes, address: NetworkPath) -> bool:
            if len(self.sent) == 3:
                return False
            self.sent.append((data, address))
            return True

    plain = Plain()  # type: ignore[abstract]  # nothing else is asked of it
    batch = numbered(5)
    assert plain.send_batch(batch[:2]) == 2
    assert plain.send_batch(batch[2:]) == 1
    assert plain.sent == batch[:3]


async def test_closed_sockets_take_no_batch() -> None:
    sock = UdpSocket.bind("127.0.0.1", 0)
    sock.close()
    with pytest.raises(trio.ClosedResourceError):
        sock.send_batch(numbered(3))
    with pytest.raises(trio.ClosedResourceError):
        sock.send_batch(numbered(1))
