"""One run of a program: start its launcher, read what it writes, end it."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import trio

from alknet.commands import launch
from alknet.commands.policy import ProgramPolicy
from alknet.errors import AlknetError

__all__ = ["CommandFailed", "Ended", "NotStarted", "Program", "open_program"]

log = logging.getLogger(__name__)

READ_BYTES = 65_536
"""What a pipe holds: a read takes it at once, and no more waits in memory."""

END_WITHIN_S = 10.0
"""Beyond the grace: to kill what will not end, and to clear a directory of many files."""


class CommandFailed(AlknetError):
    """A program did what a command must not do. The message is for the log alone."""


class NotStarted(CommandFailed):
    """The program never ran; the message says why."""


class Ended(msgspec.Struct, frozen=True):
    """How a program ended.

    Attributes:
        exit: Its exit status, or a signal's number, negative.
        stderr: The last that it said on standard error.
        failed: Why it never ran.
    """

    exit: int = 0
    stderr: str = ""
    failed: str = ""


class Program:
    """A program that runs; made by `open_program`."""

    def __init__(self, stdout: trio.abc.ReceiveStream, control: trio.SocketStream) -> None:
        self._stdout = stdout
        self._control = control
        self._ended: Ended | None = None

    async def read(self) -> bytes:
        """Return the next of standard output, at most 64 KiB; empty at its end.

        Nothing is read ahead, so a program that writes more waits. Cancelled, nothing is lost.
        """
        return bytes(await self._stdout.receive_some(READ_BYTES))

    async def wait(self) -> Ended:
        """Wait until the program and all that it started have ended. Cancelled, no effect.

        Raises:
            NotStarted: It could not be started.
            CommandFailed: The launcher died.
        """
        if self._ended is None:
            self._ended = await self._receive()
        if self._ended.failed:
            raise NotStarted(self._ended.failed)
        return self._ended

    async def _receive(self) -> Ended:
        data = b""
        # Broken is what ends without having read all that it was sent.
        with suppress(trio.BrokenResourceError):
            async for more in self._control:
                data += more
        if not data.endswith(b"\n"):
            raise CommandFailed("its launcher ended without a word")
        return msgspec.json.decode(data, type=Ended)


@asynccontextmanager
async def open_program(policy: ProgramPolicy, data: bytes) -> AsyncIterator[Program]:
    """Run a program inside the block, with *data* as its standard input.

    When the block is left, however, the program is over, and so is all that it started: it gets
    SIGTERM, after its grace SIGKILL. That much longer a cancel takes, and not more.

    Raises:
        NotStarted: No process can be made.
    """
    try:
        ours, theirs = socket.socketpair()
    except OSError as exc:
        raise NotStarted(str(exc)) from exc
    control = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    async with control:
        with theirs:
            process = await _start(theirs, data)
        assert process.stdout is not None
        try:
            async with process.stdout as stdout:
                await _send(control, policy)
                yield Program(stdout, control)
        finally:
            await _end(process, control, policy["grace_s"])


async def _start(theirs: socket.socket, data: bytes) -> trio.Process:
    stdin = _memory_file(data)
    control = theirs.fileno()
    process = None
    try:
        with trio.CancelScope(shield=True):  # once started, it must be known
            process = await trio.lowlevel.open_process(
                [sys.executable, "-I", "-S", _LAUNCHER, str(control)],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[control],
                start_new_session=True,
                cwd="/",
                env={},
            )
    except OSError as exc:
        raise NotStarted(str(exc)) from exc
    finally:
        os.close(stdin)
    assert process is not None
    return process


def _memory_file(data: bytes) -> int:
    """Return a file that holds *data*: a program may read it or not, and nobody waits for it.

    Raises:
        NotStarted: There is no room for one.
    """
    try:
        fd = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as exc:
        raise NotStarted(str(exc)) from exc
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _READ_ONLY)  # it is no place to keep things in
    except OSError as exc:
        os.close(fd)
        raise NotStarted(str(exc)) from exc
    return fd


async def _send(control: trio.SocketStream, policy: ProgramPolicy) -> None:
    try:
        await control.send_all(msgspec.json.encode(policy) + b"\n")
    except trio.BrokenResourceError as exc:
        raise NotStarted("its launcher ended at once") from exc


async def _end(process: trio.Process, control: trio.SocketStream, grace_s: float) -> None:
    """Let the launcher end everything; it notices that *control* is closed."""
    control.socket.close()
    with trio.CancelScope(shield=True):
        with trio.move_on_after(grace_s + END_WITHIN_S):
            await process.wait()
        if process.returncode is None:
            log.error("command.not_ended", extra={"pid": process.pid})
            process.kill()
            await process.wait()


_READ_ONLY = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_LAUNCHER = str(Path(launch.__file__).resolve())
