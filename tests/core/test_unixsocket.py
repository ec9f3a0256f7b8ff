"""Unix sockets beside other threads, other processes and more clients than are waited for."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from alknet.core.endpoint.unixsocket import _bind_private, connect, listening, peer_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.sock"


def client() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


async def test_a_client_waits_while_more_than_the_queue_holds_are_there(
    path: Path, autojump_clock: MockClock
) -> None:
    got: list[tuple[int, int]] = []

    async def come() -> None:
        with await connect(path) as sock:
            got.append(peer_of(sock))

    with socket.socket(socket.AF_UNIX) as server, client() as first, client() as second:
        server.bind(str(path))
        server.listen(0)
        first.connect(str(path))
        with pytest.raises(BlockingIOError):
            second.connect(str(path))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(come)
            await wait_all_tasks_blocked()
            await trio.sleep(1)
            assert got == []
            server.accept()[0].close()
    assert got == [(os.geteuid(), os.getpid())]


async def test_a_client_that_gives_up_waiting_leaves_nothing_open(
    path: Path, autojump_clock: MockClock
) -> None:
    with socket.socket(socket.AF_UNIX) as server, client() as first:
        server.bind(str(path))
        server.listen(0)
        first.connect(str(path))
        with trio.move_on_after(1) as scope:
            await connect(path)
        assert scope.cancelled_caught


def test_other_threads_keep_their_umask_while_a_private_socket_is_made(path: Path) -> None:
    directory = path.with_name("directory")

    class Slow(socket.socket):
        def bind(self, address: Any) -> None:
            other = threading.Thread(target=directory.mkdir)
            other.start()
            other.join()
            super().bind(address)

    umask = os.umask(0o022)
    try:
        with Slow(socket.AF_UNIX) as sock:
            _bind_private(sock, path)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755


def test_the_file_of_one_that_took_over_stays_though_its_number_may_be_the_same(path: Path) -> None:
    with listening(path, taken="taken", too_long="shorter") as sock, client() as next_one:
        sock.close()  # as whoever served it does before it leaves
        path.unlink()
        next_one.bind(str(path))
    assert path.is_socket()
