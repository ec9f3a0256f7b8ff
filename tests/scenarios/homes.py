"""Nodes with a home on disk, run in this process or as processes of their own."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.core.address import Address
from alknet.core.config import load_config
from alknet.core.home import CONFIG_FILE
from alknet.core.identity import Peer
from alknet.node import Node
from alknet.stores.home import open_home_identities
from alknet.vault.keyfile import create_home
from tests.ports import UNGIVEN_PORTS, is_free
from tests.vault.oldhome import write_key

LOOPBACK = [Address("127.0.0.1", 0)]
# Each process of tests begins elsewhere, and takes none twice.
_numbers = itertools.count(16 * os.getpid())


def steady_address() -> Address:
    """An address for a node that goes and comes back: nobody else is given it meanwhile."""
    ports = (UNGIVEN_PORTS[number % len(UNGIVEN_PORTS)] for number in _numbers)
    return Address("127.0.0.1", next(filter(is_free, ports)))


async def make_home(directory: Path, *peers: Peer, config: str = "") -> Path:
    """Make a home with a fresh key, *peers* in its store and *config* as ``node.toml``."""
    home = directory / "home"
    create_home(home)
    write_key(home, Ed25519PrivateKey.generate())
    (home / CONFIG_FILE).write_text(config)
    async with open_home_identities(home, load_config(home / CONFIG_FILE)) as identities:
        for peer in peers:
            await identities.put_peer(peer)
    return home


@asynccontextmanager
async def serving(home: Path, **options: Any) -> AsyncGenerator[Node]:
    """Run the node of *home* in this process as ``alknet up`` does, signals included.

    The block ends when it ends the node by a signal, or at its own end, by a cancel.
    """
    async with Node.from_home(home, listen=LOOPBACK, **options) as node:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.run_until_stopped)
            await trio.testing.wait_all_tasks_blocked()
            yield node
            if not node.endpoint.draining.is_set():
                nursery.cancel_scope.cancel()


def signal_self(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


class Process:
    """An ``alknet up`` of its own.

    Attributes:
        ready: The first line of its output.
        lines: What it has written since, parsed.
    """

    def __init__(self, process: trio.Process, ready: dict[str, Any]) -> None:
        self.process = process
        self.ready = ready
        self.ticket: str = ready["ticket"]
        self.lines: list[dict[str, Any]] = []

    def kill(self) -> None:
        """As a power failure would: no goodbye."""
        self.process.kill()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "alknet", *arguments]


@asynccontextmanager
async def process_node(
    home: Path, *options: str, listen: str = "127.0.0.1:0"
) -> AsyncGenerator[Process]:
    """Run ``alknet up --json`` on *home*; what is left of it is killed with the block."""
    arguments = command("--home", str(home), "up", "--listen", listen, "--json", *options)
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            _run_process, [*arguments], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        )
        received = bytearray()
        with trio.fail_after(90):  # a process, on a busy machine
            while b"\n" not in received:
                data = await process.stdout.receive_some()
                assert data, (await process.stderr.receive_some()).decode()
                received += data
        ready = msgspec.json.decode(received.partition(b"\n")[0])
        assert ready["event"] == "ready"
        node = Process(process, ready)
        nursery.start_soon(_drain, process.stdout, node.lines, bytes(received.partition(b"\n")[2]))
        nursery.start_soon(_drain, process.stderr, [], b"")
        try:
            yield node
        finally:
            process.kill()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def process_running(
    arguments: Sequence[str | Path], **options: Any
) -> AsyncGenerator[trio.Process]:
    """Run a program for as long as the block; what is left of it is killed."""
    async with trio.open_nursery() as nursery:
        process = await nursery.start(_run_process, [str(part) for part in arguments], options)
        try:
            yield process
        finally:
            nursery.cancel_scope.cancel()


async def _run_process(
    arguments: Sequence[str],
    options: dict[str, Any],
    task_status: trio.TaskStatus[trio.Process],
) -> None:
    process = await trio.lowlevel.open_process(arguments, **options)
    try:
        task_status.started(process)
        await process.wait()
        await trio.sleep_forever()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    await stream.aclose()


async def _drain(stream: trio.abc.ReceiveStream, lines: list[dict[str, Any]], rest: bytes) -> None:
    while data := await stream.receive_some():
        *whole, rest = (rest + data).split(b"\n")
        lines.extend(msgspec.json.decode(line) for line in whole if line.startswith(b"{"))
