"""Three machines in network namespaces: a hub, a worker, and the router between them.

``unshare -n python -m tests.interop.nat_world DIRECTORY`` is the hub's machine and makes the other
two. The worker's network is private: the hub has no route to it. What the worker sends to the
router goes on to the hub under the router's own address (`tests.interop.nat_relay`).
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from alknet.call.codes import CallError
from alknet.client import open_control_session
from alknet.errors import Unavailable

HUB, ROUTER_OUTSIDE = "203.0.113.1", "203.0.113.2"
ROUTER_INSIDE, WORKER, WORKER_LATER = "10.0.0.1", "10.0.0.2", "10.0.0.3"
PORT = 4433
# A peer that is gone without a goodbye is noticed by this, so that the test need not wait for it.
CONFIG = "[limits]\nidle_timeout_s = 2.0\nkeep_alive_s = 0.5\n"
PATIENCE_S = 90.0


class Machine:
    """A network namespace, held by a process of its own; None is the one that we are in."""

    def __init__(self, holder: subprocess.Popen[bytes] | None = None) -> None:
        self._holder = holder

    @property
    def pid(self) -> int:
        return os.getpid() if self._holder is None else self._holder.pid

    def command(self, *arguments: object) -> list[str]:
        enter = [] if self._holder is None else ["nsenter", f"--net=/proc/{self.pid}/ns/net"]
        return [*enter, *map(str, arguments)]

    def run(self, *arguments: object, stdin: str = "") -> str:
        done = subprocess.run(
            self.command(*arguments), input=stdin, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def alknet(self, home: Path, *arguments: object, stdin: str = "") -> Any:
        program = (sys.executable, "-m", "alknet", "--home", home)
        return json.loads(self.run(*program, *arguments, "--json", stdin=stdin))


@asynccontextmanager
async def another_machine() -> AsyncGenerator[Machine]:
    ours = Path("/proc/self/ns/net").readlink()
    with subprocess.Popen(["unshare", "-n", "sleep", "600"]) as holder:
        try:
            with trio.fail_after(PATIENCE_S):
                while Path(f"/proc/{holder.pid}/ns/net").readlink() == ours:
                    await trio.sleep(0.01)
            yield Machine(holder)
        finally:
            holder.kill()


def wire(hub: Machine, router: Machine, worker: Machine) -> None:
    """Lay two cables, and give each end its address."""
    for machine in (hub, router, worker):
        machine.run("ip", "link", "set", "lo", "up")
    hub.run("ip", "link", "add", "hub0", "type", "veth", "peer", "out0", "netns", router.pid)
    router.run("ip", "link", "add", "in0", "type", "veth", "peer", "w0", "netns", worker.pid)
    for machine, device, address in (
        (hub, "hub0", HUB),
        (router, "out0", ROUTER_OUTSIDE),
        (router, "in0", ROUTER_INSIDE),
        (worker, "w0", WORKER),
    ):
        machine.run("ip", "address", "add", f"{address}/24", "dev", device)
        machine.run("ip", "link", "set", device, "up")


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[None]:
    with log.open("ab") as output, subprocess.Popen(command, stdout=output) as process:
        try:
            yield
        finally:
            process.kill()


@asynccontextmanager
async def node(machine: Machine, home: Path, listen: str) -> AsyncGenerator[Path]:
    """Run a node; yield its log."""
    up = machine.command(
        sys.executable, "-m", "alknet", "--home", home, "up", "--listen", listen, "--json"
    )
    log = home.with_suffix(".log")
    with running(up, log):
        await until_logged(log, "ready")
        yield log


async def until_logged(log: Path, event: str) -> None:
    with trio.fail_after(PATIENCE_S):
        while f'"{event}"' not in log.read_text():
            await trio.sleep(0.02)


@asynccontextmanager
async def relay(router: Machine, log: Path) -> AsyncGenerator[None]:
    inside, outside = f"{ROUTER_INSIDE}:{PORT}", f"{HUB}:{PORT}"
    command = (sys.executable, "-m", "tests.interop.nat_relay", inside, outside)
    with running(router.command(*command), log):
        await until_logged(log, "ready")
        yield


async def until_answered(hub_home: Path, message: str) -> None:
    """Call the worker through the hub until it answers."""
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                async with open_control_session(hub_home) as owner:
                    output = await owner.call(
                        "echo/unary", {"message": message}, peer=("w1",), timeout_s=5
                    )
            except (CallError, Unavailable):
                await trio.sleep(0.05)
            else:
                assert msgspec.json.decode(output) == {"message": message}
                return


async def until_worker_is_at(hub_home: Path, *addresses: str) -> None:
    with trio.fail_after(PATIENCE_S):
        while await addresses_of_worker(hub_home) != set(addresses):
            await trio.sleep(0.05)


async def addresses_of_worker(hub_home: Path) -> set[str]:
    async with open_control_session(hub_home) as owner:
        status = msgspec.json.decode(await owner.call("node/status"))
    connections = [one for one in status["connections"] if one["identity"] == "peer:w1"]
    return {one["address"].rpartition(":")[0] for one in connections}


def assert_no_route() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        assert probe.connect_ex((WORKER, PORT)) == errno.ENETUNREACH


def make_homes(directory: Path, hub: Machine, worker: Machine) -> tuple[Path, Path]:
    homes = (directory / "hub", directory / "worker")
    for machine, home in zip((hub, worker), homes, strict=True):
        machine.alknet(home, "init", "--words-file", f"{home}.words")
        (home / "node.toml").write_text(CONFIG)
    return homes


async def scenario(directory: Path) -> None:
    hub = Machine()
    async with another_machine() as router, another_machine() as worker:
        wire(hub, router, worker)
        assert_no_route()
        hub_home, home = make_homes(directory, hub, worker)
        async with node(hub, hub_home, f"{HUB}:{PORT}"):
            invite = ("peer", "invite", "w1", "--address", f"{ROUTER_INSIDE}:{PORT}")
            invitation = hub.alknet(hub_home, *invite)["invitation"]
            async with node(worker, home, "127.0.0.1:0") as log:
                async with relay(router, directory / "router.log"):
                    join = ("worker", "join", "--allow", "echo")
                    worker.alknet(home, *join, stdin=invitation)
                    await until_answered(hub_home, "through the router")
                    await until_worker_is_at(hub_home, ROUTER_OUTSIDE)
                    worker.run("ip", "address", "del", f"{WORKER}/24", "dev", "w0")
                    worker.run("ip", "address", "add", f"{WORKER_LATER}/24", "dev", "w0")
                    await until_logged(log, "outbound.network_changed")
                    await until_answered(hub_home, "from another address")
                async with relay(router, directory / "router-2.log"):
                    await until_answered(hub_home, "through a router that was restarted")


if __name__ == "__main__":
    trio.run(scenario, Path(sys.argv[1]))
