"""The rounds of a soak: who comes, what they do, and the picture after they have gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from alknet.client import open_control_session
from alknet.core.config import load_config
from alknet.core.home import CONFIG_FILE
from alknet.core.identity import NodeId, Peer
from alknet.core.ticket import Ticket
from alknet.stores.home import open_home_identities
from alknet.vault.keyfile import create_home
from benchmarks.attacks import ATTACKS
from tests.soak.held import Held
from tests.soak.verdict import leftovers
from tests.vault.oldhome import write_key

# What a connection may linger is short, so that a round ends soon after its peers.
CONFIG = """
[limits]
idle_timeout_s = 2
keep_alive_s = 0.7
handshake_timeout_s = 2
half_open_before_retry = 200
"""
LOAD_S = 6.0
# For all that the dead leave: the idle time-out and then the closing period. Both are three times
# the PTO at least (RFC 9000 sec. 10), which reaches 20 s where floods and a busy machine make
# round trips of seconds. Waited for only as long as something is left.
SETTLE_S = 130.0
# Of what is left after a round, so many are named.
MAX_NAMED = 8
# In so many rounds each attack has its turn, at this rate; the soak counts what is left.
CYCLE = 5
RATE = 800
TRANSPORTS = ("quic", "tcp")
ENDED_WITHIN_S = 60.0
# For a program to say its first word, on a busy machine.
BEGUN_WITHIN_S = 90.0


class Soak:
    """A node, and what was seen of it.

    Attributes:
        baseline: Of the node before anybody came.
        pictures: Of the node after each round, when all had left.
        problems: What was wrong, in words.
        calls: How many the peers have made.
        packets: How many the attackers have sent.
        killed: Peers that ended without a word.
    """

    baseline: Held

    def __init__(self, home: Path, ticket: str, log: Path) -> None:
        self._home = home
        self._ticket = ticket
        self._log = log
        self._attacks = list(ATTACKS)
        self.pictures: list[Held] = []
        self.problems: list[str] = []
        self.calls = 0
        self.packets = 0
        self.killed = 0
        self._last: Held | None = None
        self.key = b""

    @classmethod
    @asynccontextmanager
    async def running(cls, directory: Path) -> AsyncGenerator[Soak]:
        """Run a node in *directory* during the block; it must end well."""
        home, log = directory / "home", directory / "node.log"
        key = await _make_home(home)
        with log.open("wb") as stderr:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "tests.soak.node", str(home)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
            try:
                assert process.stdout is not None
                soak = cls(home, await _first_line(process.stdout, log), log)
                soak.key = key
                soak.baseline = await soak.settled_picture(None)
                yield soak
                if process.poll() is not None:
                    soak.problems.append(f"the node ended, with status {process.returncode}")
                else:
                    await soak._stop(process)
            finally:
                if process.poll() is None:
                    process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()

    async def _stop(self, process: trio.Process) -> None:
        process.send_signal(signal.SIGTERM)
        with trio.move_on_after(ENDED_WITHIN_S) as scope:
            await process.wait()
        if scope.cancelled_caught:
            self.problems.append(f"the node did not stop within {ENDED_WITHIN_S:g} s of SIGTERM")
        elif process.returncode:
            self.problems.append(f"the node stopped with status {process.returncode}")

    async def round(self, number: int) -> None:
        """Have everybody come, do what they do, and leave; take a picture then."""
        async with trio.open_nursery() as nursery:
            for at, transport in enumerate(TRANSPORTS):
                nursery.start_soon(self._peer, transport, 2 * number + at, LOAD_S, False)
                # Killed in the middle, and another comes in its place.
                nursery.start_soon(self._peer, transport, 1_000_000 + number, LOAD_S / 3, True)
            # Always the same together: how much memory they take at their worst depends on it.
            for name in self._attacks[number % CYCLE :: CYCLE]:
                nursery.start_soon(self._attack, name)
        picture = await self.settled_picture(self.baseline)
        self.pictures.append(picture)
        left = leftovers(self.baseline, picture)
        if left:
            more = f" and {len(left) - MAX_NAMED} more" if len(left) > MAX_NAMED else ""
            named = ", ".join(left[:MAX_NAMED])
            self.problems.append(f"round {number + 1} has left {named}{more}")

    async def settled_picture(self, baseline: Held | None) -> Held:
        """Take a picture when nothing is left over *baseline*, or when time is up."""
        with trio.move_on_after(SETTLE_S):
            while True:
                picture = await self._picture()
                if baseline is not None and not leftovers(baseline, picture):
                    return picture
                if baseline is None and self.pictures_agree(picture):
                    return picture
                await trio.sleep(0.5)
        return await self._picture()

    def pictures_agree(self, picture: Held) -> bool:
        """Whether a second look, which the first may have warmed up, shows the same."""
        before, self._last = self._last, picture
        return before is not None and before.kinds == picture.kinds

    async def _picture(self) -> Held:
        async with open_control_session(self._home) as session:
            return await session.call_as(Held, "soak/held", timeout_s=60)

    async def _peer(self, transport: str, seed: int, seconds: float, again: bool) -> None:
        arguments = ["tests.soak.peer", self.key.hex(), self._ticket, transport, str(seed)]
        for turn in range(2 if again else 1):
            said = await self._run_for(arguments, seconds, signal.SIGKILL)
            self.killed += 1
            lines = said.splitlines()
            if not lines:
                self.problems.append(f"a peer over {transport} came to nothing (turn {turn + 1})")
                continue
            calls, _, wrong = lines[-1].partition(" ")
            self.calls += int(calls)
            if wrong:
                self.problems.append(f"a peer over {transport}: {wrong}")

    async def _attack(self, name: str) -> None:
        address = Ticket.parse(self._ticket).addresses[0]
        core = str(max(os.sched_getaffinity(0)))
        target = [address.host, str(address.port), str(RATE)]
        said = await self._run_for(["benchmarks.attacks", core, name, *target], LOAD_S, None)
        lines = said.splitlines()
        if len(lines) < 2:
            self.problems.append(f"the attack «{name}» did not run to its end")
        else:
            self.packets += msgspec.json.decode(lines[1])["packets"]

    async def _run_for(
        self, arguments: list[str], seconds: float, end: signal.Signals | None
    ) -> str:
        """Run a module for so long; end it by a signal, or by closing its standard input."""
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        said = bytearray()
        try:
            with trio.move_on_after(BEGUN_WITHIN_S):
                said += await process.stdout.receive_some()
            with trio.move_on_after(seconds):
                await _read(process.stdout, said)
            if end is None:
                await process.stdin.aclose()
                with trio.move_on_after(ENDED_WITHIN_S):
                    await _read(process.stdout, said)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                await process.stdin.aclose()
                await process.stdout.aclose()
        return said.decode().rpartition("\n")[0]

    def log_problems(self) -> list[str]:
        """Return what the node's log has of errors and tracebacks."""
        lines = self._log.read_text(errors="replace").splitlines()
        bad = [line for line in lines if '"level":"error"' in line or "Traceback" in line]
        return [f"in the node's log: {line[:1_000]}" for line in bad[:5]]


async def _make_home(home: Path) -> bytes:
    """Make a home that knows one peer, and return that peer's private key."""
    create_home(home)
    write_key(home, Ed25519PrivateKey.generate())
    (home / CONFIG_FILE).write_text(CONFIG)
    key = Ed25519PrivateKey.generate()
    fingerprint = NodeId.from_public_key(key.public_key()).fingerprint
    peer = Peer(name="soak", fingerprints=(fingerprint,), scopes=("echo", "soak"))
    async with open_home_identities(home, load_config(home / CONFIG_FILE)) as identities:
        await identities.put_peer(peer)
    return key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())


async def _first_line(stream: trio.abc.ReceiveStream, log: Path) -> str:
    received = bytearray()
    with trio.fail_after(BEGUN_WITHIN_S):
        while b"\n" not in received:
            data = await stream.receive_some()
            if not data:
                raise RuntimeError(f"the node did not start: {log.read_text(errors='replace')}")
            received += data
    return received.partition(b"\n")[0].decode()


async def _read(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
    while data := await stream.receive_some():
        into += data
