"""The command line in this process and in others; nodes as real processes; a terminal."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from alknet.cli import main
from tests.kept_log import kept_log

PROGRAM = (sys.executable, "-m", "alknet")
# For processes of a loaded machine; nothing waits so long when all is well.
PATIENCE_S = 90.0
# How soon a person presses a key again that had no effect.
KEY_REPEAT_S = 0.5

# Where nobody listens, nor sends from (RFC 863).
DISCARD_PORT = 9

# What a home holds that a command has made.
MADE = {
    "node.toml",
    "node.db",
    "node.db-bell",
    "vault.alk",
    "vault.key",
    "vault.lock",
    "vault.seen",
}
# And what a node adds that ended while it started.
STARTED = MADE | {"node.lock", "reset.key"}

T = TypeVar("T")
Json = dict[str, Any]


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> Json:
        """The last line on standard error, which with --json is the error."""
        error = json.loads(self.err.splitlines()[-1])["error"]
        assert isinstance(error, dict)
        return error


class Cli:
    """Runs commands in this process, on one home."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: object, stdin: str = "", home: Path | None = None) -> Result:
        given = ["--home", str(home or self.home), *map(str, arguments)]
        with (
            self._monkeypatch.context() as patch,
            # A file, for `up` writes to its descriptor.
            tempfile.TemporaryFile("w+", encoding="utf-8") as out,
            io.StringIO() as err,
        ):
            patch.setattr(sys, "stdin", io.StringIO(stdin))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            with kept_log(), pytest.raises(SystemExit) as ended:
                main(given)
            code = ended.value.code
            assert isinstance(code, int)
            out.seek(0)
            return Result(code, out.read(), err.getvalue())

    def ok(self, *arguments: object, **options: Any) -> Result:
        """Run a command that must succeed."""
        result = self(*arguments, **options)
        assert result.status == 0, result.err
        return result

    def fails(self, status: int, *arguments: object, **options: Any) -> Result:
        """Run a command that must end with *status*."""
        result = self(*arguments, **options)
        assert result.status == status, (result.status, result.out, result.err)
        return result


class Process:
    """A command in a process of its own, whose lines can be awaited."""

    def __init__(self, *arguments: object, home: Path, **env: str) -> None:
        self.process = subprocess.Popen(
            [*PROGRAM, "--home", str(home), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **env},
        )
        self._rest = b""

    def line(self) -> str:
        """Wait for the next line of standard output; empty at its end."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        deadline = time.monotonic() + PATIENCE_S
        while b"\n" not in self._rest:
            left = max(0.0, deadline - time.monotonic())
            assert select.select([descriptor], [], [], left)[0], "no line in time"
            data = os.read(descriptor, 65536)
            if not data:
                break
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def lines_until(self, event: str) -> list[Json]:
        """Read JSON lines up to the one of *event*."""
        seen: list[Json] = []
        while not seen or seen[-1]["event"] != event:
            seen.append(json.loads(self.line()))
        return seen

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> Result:
        """Wait for its end."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return Result(self.process.returncode, (self._rest + out).decode(), err.decode())

    def close(self) -> None:
        with self.process:
            self.process.kill()


@contextlib.contextmanager
def process(*arguments: object, home: Path, **env: str) -> Iterator[Process]:
    running = Process(*arguments, home=home, **env)
    try:
        yield running
    finally:
        running.close()


@dataclass
class RunningNode:
    home: Path
    ready: Json
    process: Process

    @property
    def ticket(self) -> str:
        return str(self.ready["ticket"])


@contextlib.contextmanager
def running_node(home: Path, *arguments: object, **env: str) -> Iterator[RunningNode]:
    """A node on a free port of loopback; killed at the end if it still runs."""
    command = ("up", "--listen", "127.0.0.1:0", "--json", *arguments)
    with process(*command, home=home, **env) as started:
        line = started.line()
        if not line:
            raise AssertionError(started.end().err)
        yield RunningNode(home, json.loads(line), started)


class Terminal:
    """A command on a terminal of its own, where keys can be typed."""

    def __init__(self, *arguments: object, home: Path) -> None:
        self._master, slave = pty.openpty()
        take_terminal = (
            "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        command = [sys.executable, "-c", take_terminal, *PROGRAM]
        self._process = subprocess.Popen(
            [*command, "--home", str(home), *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm"},
        )
        os.close(slave)
        # A read may end within a letter.
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.seen = ""

    def expect(self, pattern: str) -> None:
        """Wait until *pattern* is on the screen; what was seen before counts no more."""
        deadline = time.monotonic() + PATIENCE_S
        while not (match := re.search(pattern, self.seen)):
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self._master], [], [], left)[0], self.seen
            assert self._read(), self.seen
        self.seen = self.seen[match.end() :]

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def interrupt(self) -> int:
        """Press Ctrl-C until the command ends, as a person would; return what a shell calls it.

        Once is not always enough: a signal that reaches Python between its last look for signals
        and the blocking read is seen only when that read returns. One that comes while Python ends
        kills it, which is 130 to a shell, as otherwise.
        """
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            self.type("\x03")
            while select.select([self._master], [], [], KEY_REPEAT_S)[0]:
                if not self._read():
                    status = self._process.wait(PATIENCE_S)
                    return 128 - status if status < 0 else status
        raise AssertionError(f"Ctrl-C does not end it: {self.seen}")

    def end(self) -> int:
        """Read to the end and return the exit status."""
        while self._read():
            pass
        return self._process.wait(PATIENCE_S)

    def close(self) -> None:
        with self._process:
            self._process.kill()
        os.close(self._master)

    def _read(self) -> bool:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux says EIO when the last process has closed it
            return False
        self.seen += self._decoder.decode(data)
        return bool(data)


@contextlib.contextmanager
def terminal(*arguments: object, home: Path) -> Iterator[Terminal]:
    opened = Terminal(*arguments, home=home)
    try:
        yield opened
    finally:
        opened.close()


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """A port of loopback on which nobody listens, neither UDP nor TCP, nor comes to listen.

    One that was merely given back is soon given to another process.
    """
    with contextlib.ExitStack() as stack:
        while True:
            tcp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            tcp.bind(("127.0.0.1", 0))  # it does not listen
            port = int(tcp.getsockname()[1])
            with contextlib.suppress(OSError):
                udp.bind(("127.0.0.1", port))
                break
        udp.connect(("127.0.0.1", DISCARD_PORT))  # what comes from elsewhere is not for it
        yield port


def wait_until(is_true: Callable[[], object]) -> None:
    """Look again until it is so; other processes tell no one."""
    seen_when(is_true, bool)


def seen_when(look: Callable[[], T], is_it: Callable[[T], bool]) -> T:
    """Look again until what is seen is it, and return that."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_it(seen := look()):
        assert time.monotonic() < deadline, seen
        select.select([], [], [], 0.02)
    return seen


def all_files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}
