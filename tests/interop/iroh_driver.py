"""Talks to `iroh_peer` from Trio, and runs whole scenarios in a network of their own."""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


class IrohError(Exception):
    """What iroh said."""


class IrohPeer:
    """A stock iroh endpoint in another process.

    Attributes:
        id: Its endpoint id, which is its Ed25519 key, in hex.
        address: Where it listens, ``127.0.0.1:port``.
    """

    id = ""
    address = ""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._unread = b""

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Run one command of `tests.interop.iroh_peer`; one at a time.

        Raises:
            IrohError: iroh refused or failed.
        """
        assert self._process.stdin is not None
        line = json.dumps({"do": do, **arguments}) + "\n"
        await self._process.stdin.send_all(line.encode())
        answer = json.loads(await self._line())
        if "error" in answer:
            raise IrohError(answer["error"])
        return answer["ok"]

    async def exchange(self, messages: list[bytes]) -> list[bytes]:
        """Open a stream for each message, all at once, and return what came back on each."""
        answers = await self.ask("exchange", messages=[message.hex() for message in messages])
        return [bytes.fromhex(answer) for answer in answers]

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._unread:
            part = await self._process.stdout.receive_some()
            if not part:
                raise IrohError("the iroh process ended")
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return line


@asynccontextmanager
async def iroh_peer(*alpns: str) -> AsyncGenerator[IrohPeer]:
    """Run stock iroh, relays and discovery off, on 127.0.0.1; it accepts *alpns*."""
    command = [sys.executable, "-m", "tests.interop.iroh_peer"]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(
                trio.run_process,
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                check=False,
            )
        )
        peer = IrohPeer(process)
        bound = await peer.ask("bind", alpns=alpns)
        peer.id, peer.address = bound["id"], bound["address"]
        yield peer
        nursery.cancel_scope.cancel()


def run_isolated(module: str, scenario: str, *, timeout_s: float = 270.0) -> str:
    """Run ``python -m module scenario`` where nothing but a loopback interface exists.

    Where the kernel allows no namespaces, it runs in the open; iroh is told to be quiet anyway.

    Returns:
        All that it printed; raises AssertionError with it if it failed.
    """
    done = subprocess.run(
        [*_isolation(), sys.executable, "-X", "dev", "-m", module, scenario],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def raise_loopback() -> None:
    """Bring ``lo`` up, as the first thing inside a fresh namespace. Harmless elsewhere."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        name = b"lo".ljust(16, b"\0")
        flags = struct.unpack("16sh", fcntl.ioctl(sock, SIOCGIFFLAGS, name + bytes(2)))[1]
        if not flags & IFF_UP:
            fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh", name, flags | IFF_UP))


def _isolation() -> list[str]:
    for prefix in (["unshare", "-n"], ["unshare", "-rn"]):
        try:
            tried = subprocess.run([*prefix, "true"], stderr=subprocess.DEVNULL, check=False)
        except FileNotFoundError:
            break
        if tried.returncode == 0:
            return prefix
    return []
