from __future__ import annotations

import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from alknet.cli import lines
from alknet.cli.lines import LineReader, LineWriter
from alknet.cli.notify import feed_watchdog, notify


def test_lines_arrive_in_order() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        with LineWriter(stream) as out:
            out.write("a\n")
            out.write("b\n")
    with os.fdopen(reader) as read:
        assert read.read() == "a\nb\n"


def test_a_reader_that_stands_still_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "FLUSH_WITHIN_S", 0.02)
    monkeypatch.setattr(lines, "MAX_LINES", 100)
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        out = LineWriter(stream)
        for _ in range(1_000):
            out.write("x" * 1_000 + "\n")
        assert out.dropped > 500
        out.close()
        out.close()
        assert out._thread.is_alive()
        os.close(reader)  # so that the thread ends before the stream does
        out._queue.put(None)
        out._thread.join()


def test_a_reader_that_went_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, LineWriter(stream) as out:
        out.write("a\n")
        out.write("b\n")
    assert out.dropped == 0


def test_without_a_manager_nothing_is_told() -> None:
    assert notify("READY=1") is False


def test_a_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        assert notify("READY=1") is True
        assert manager.recv(100) == b"READY=1"


def test_a_manager_in_the_abstract_namespace_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # the kernel picks an abstract name
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + manager.getsockname()[1:].decode())
        assert notify("STOPPING=1") is True
        assert manager.recv(100) == b"STOPPING=1"


def test_a_manager_that_is_gone_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert notify("READY=1") is False


@pytest.fixture
def watching_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager that wants to hear from us every 10 s."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        monkeypatch.setenv("WATCHDOG_USEC", "10000000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield manager


async def test_the_watchdog_is_fed_twice_per_period(
    watching_manager: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    with trio.move_on_after(12):
        await feed_watchdog()
    assert [watching_manager.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    with pytest.raises(BlockingIOError):
        watching_manager.recv(100)


async def test_a_manager_that_was_busy_for_a_moment_is_fed_again(
    watching_manager: socket.socket,
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
) -> None:
    waiting = 0
    while notify("STATUS=busy"):  # until its queue is full
        waiting += 1
    nursery.start_soon(feed_watchdog)
    await trio.sleep(7)
    assert {watching_manager.recv(100) for _ in range(waiting)} == {b"STATUS=busy"}
    await trio.sleep(5)
    assert watching_manager.recv(100) == b"WATCHDOG=1"
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("usec", "pid"), [("", None), ("x", None), ("0", None), ("5", "1")])
async def test_who_is_not_asked_feeds_no_watchdog(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    await feed_watchdog()


async def test_lines_are_read_as_they_come() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader) as stream, os.fdopen(writer, "wb", buffering=0) as out:
        read = LineReader(stream)
        out.write("eins\nzwö".encode()[:-1])
        assert await read.next() == "eins"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_finish, out, "ö\n\ndrei".encode()[1:])
            assert await read.next() == "zwö"
        assert await read.next() == ""
        assert await read.next() == "drei"
        assert await read.next() is None
        assert await read.next() is None


async def _finish(out: io.FileIO, rest: bytes) -> None:
    out.write(rest)
    out.close()


async def test_lines_in_memory_are_read_too() -> None:
    read = LineReader(io.StringIO("1\n2"))
    assert [await read.next() for _ in range(3)] == ["1", "2", None]


async def test_a_line_that_is_too_long_or_no_text_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 10)
    with pytest.raises(ValueError, match="over 10 bytes"):
        await LineReader(io.StringIO("x" * 100_000)).next()
    reader, writer = os.pipe()
    with os.fdopen(reader) as stream, os.fdopen(writer, "wb", buffering=0) as out:
        out.write(b"\xff\n")
        with pytest.raises(UnicodeDecodeError):
            await LineReader(stream).next()
