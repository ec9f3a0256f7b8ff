"""Processes that are measured: each pinned to a core, told what to do by lines of JSON."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks import processes
from benchmarks.certificates import write_certificates

ROOT = Path(__file__).parents[1]
# For peers that want other packages than we do; `make bench` makes them.
VENVS = Path(sys.prefix) / "peers"


class Peer(NamedTuple):
    """Who is measured.

    Attributes:
        module: Of `benchmarks.peers`.
        option: What that module is told.
        needs: The package without which it is left out.
        program: The same, a program.
        venv: The same, a virtual environment in `VENVS`, where its workers run.
    """

    name: str
    module: str
    option: str = ""
    needs: str = ""
    program: str = ""
    venv: str = ""

    @property
    def python(self) -> Path:
        """What runs its workers."""
        return VENVS / self.venv / "bin" / "python" if self.venv else Path(sys.executable)

    @property
    def is_installed(self) -> bool:
        if self.program and shutil.which(self.program) is None:
            return False
        if not self.python.exists():
            return False
        return not self.needs or importlib.util.find_spec(self.needs) is not None


class Worker:
    """One process of a peer, as ``server`` or ``client``."""

    def __init__(self, peer: Peer, role: str, core: int) -> None:
        command = [str(peer.python), "-m", "benchmarks.worker", str(core)]
        self._name = f"{peer.name}, {role}"
        self._process = subprocess.Popen(
            [*command, peer.module, peer.option, role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )

    def ask(self, do: str, **arguments: object) -> Any:
        """Run one command in the process and return its answer.

        Raises:
            RuntimeError: It failed, or the process is gone; its standard error says why.
        """
        self.begin(do, **arguments)
        return self.finish()

    def begin(self, do: str, **arguments: object) -> None:
        """Send a command whose answer `finish` will read."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode({"do": do, **arguments}) + b"\n")
        self._process.stdin.flush()

    def finish(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = msgspec.json.decode(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise RuntimeError(f"{self._name}: {answer['error']}")
        return answer["ok"]

    def cpu_s(self) -> float:
        """CPU time of all its threads so far."""
        return processes.cpu_s(self._process.pid)

    def family_cpu_s(self) -> float:
        """The same, of the processes that it has started too."""
        return processes.family_cpu_s(self._process.pid)

    def memory_bytes(self) -> int:
        """Resident bytes that are its own."""
        for line in Path(f"/proc/{self._process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the kernel does not say how much memory it uses")

    def stop(self) -> None:
        """End it: politely, by closing its standard input, within some seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Bench(NamedTuple):
    """A peer's server and client, ready."""

    peer: Peer
    server: Worker
    client: Worker
    address: dict[str, Any]

    def open(self, links: int, *, parallel: int = 8) -> dict[str, float]:
        """Open so many connections and make a call on each, or one byte of bulk."""
        opened: dict[str, float] = self.client.ask(
            "open", address=self.address, links=links, parallel=parallel
        )
        return opened

    def close(self) -> None:
        self.client.ask("close")


@contextmanager
def running(peers: Sequence[Peer]) -> Iterator[list[Bench]]:
    """Start a server and a client process for each installed peer; ended with the block.

    Servers share the first core that this process may use, clients the last: only one pair works
    at a time.
    """
    cores = sorted(os.sched_getaffinity(0))
    found = [peer for peer in peers if peer.is_installed]
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        write_certificates(Path(directory))
        servers = [_start(stack, peer, "server", cores[0]) for peer in found]
        clients = [_start(stack, peer, "client", cores[-1]) for peer in found]
        for server in servers:
            server.begin("serve", directory=directory)
        addresses = [server.finish() for server in servers]
        yield list(map(Bench, found, servers, clients, addresses))


def left_out(peers: Sequence[Peer]) -> list[str]:
    """Say, for a table's notes, who is missing."""
    missing = [peer.name for peer in peers if not peer.is_installed]
    return [f"Left out, not installed: {', '.join(missing)}."] if missing else []


def _start(stack: ExitStack, peer: Peer, role: str, core: int) -> Worker:
    worker = Worker(peer, role, core)
    stack.callback(worker.stop)
    return worker
