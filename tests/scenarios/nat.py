"""Five machines in network namespaces: a hub, and two workers, each behind a router of its own.

``unshare -n python -m tests.scenarios.nat DIRECTORY`` is the hub's machine and makes the others.
The routers are Linux, with masquerading as at home: both workers have the address 192.168.1.2, and
nobody else can tell. What the hub sends to them without being asked has no way to get there.

`tests.interop.nat_world` does the like with a router in user space and one worker; here the kernel
translates, and forgets what it has translated in the middle of calls.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import trio

from alknet.call.handles import Bidi
from alknet.call.session import CallSession
from alknet.client import open_control_session
from tests.interop.nat_world import PATIENCE_S, Machine, another_machine, node

INSIDE, WORKER = "192.168.1.1", "192.168.1.2"
PORT = 4433
# A peer that is gone without a goodbye is noticed soon, so that the test need not wait for it.
CONFIG = "[limits]\nidle_timeout_s = 4.0\nkeep_alive_s = 0.5\n"
# Every mapping gets a port at random, and a router that has forgotten it makes another of the other
# half: not the same by chance.
HALVES = ("1024-32767", "32768-65535")
TRANSLATION = """
table ip translation
delete table ip translation
table ip translation {
  chain after {
    type nat hook postrouting priority 100
    oifname "out" meta l4proto { tcp, udp } masquerade to :%s fully-random
  }
}
"""
# What comes from outside without having been asked for is dropped.
WALL = """
table ip wall {
  chain forward {
    type filter hook forward priority 0
    policy drop
    iifname "in" accept
    ct state established,related accept
  }
}
"""


@dataclass
class Site:
    """A worker and its router; *network* is that of the router and the hub, a prefix of /24."""

    name: str
    network: str
    router: Machine
    worker: Machine
    host: int = 2

    @property
    def hub(self) -> str:
        return f"{self.network}.1"

    @property
    def outside(self) -> str:
        """The address of the router that others see."""
        return f"{self.network}.{self.host}"

    def lay(self, hub: Machine) -> None:
        """Lay the cables, and let the router translate."""
        for machine in (self.router, self.worker):
            machine.run("ip", "link", "set", "lo", "up")
        cable = ("type", "veth", "peer", "name")
        hub.run("ip", "link", "add", self.name, *cable, "out", "netns", self.router.pid)
        self.router.run("ip", "link", "add", "in", *cable, "lan", "netns", self.worker.pid)
        for machine, device, address in (
            (hub, self.name, self.hub),
            (self.router, "out", self.outside),
            (self.router, "in", INSIDE),
            (self.worker, "lan", WORKER),
        ):
            machine.run("ip", "address", "add", f"{address}/24", "dev", device)
            machine.run("ip", "link", "set", device, "up")
        self.worker.run("ip", "route", "add", "default", "via", INSIDE)
        self.router.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        self.router.run("nft", "-f", "-", stdin=TRANSLATION % HALVES[0] + WALL)

    def forget(self) -> None:
        """Let the router lose all mappings, as one does whose cable was pulled for a moment."""
        self.router.run("ip", "link", "set", "out", "down")
        self.router.run("nft", "-f", "-", stdin=TRANSLATION % HALVES[1])
        self.router.run("ip", "link", "set", "out", "up")

    def move(self) -> None:
        """Give the router another address, as some providers do every night."""
        self.router.run("ip", "address", "del", f"{self.outside}/24", "dev", "out")
        self.host += 1
        self.router.run("ip", "address", "add", f"{self.outside}/24", "dev", "out")


@asynccontextmanager
async def sites(hub: Machine) -> AsyncGenerator[list[Site]]:
    hub.run("ip", "link", "set", "lo", "up")
    async with AsyncExitStack() as stack:
        made = []
        for name, network in (("w1", "203.0.113"), ("w2", "198.51.100")):
            router = await stack.enter_async_context(another_machine())
            worker = await stack.enter_async_context(another_machine())
            made.append(Site(name, network, router, worker))
            made[-1].lay(hub)
        yield made


def assert_no_route() -> None:
    """The hub knows no way to the workers' network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        assert probe.connect_ex((WORKER, PORT)) == errno.ENETUNREACH


class Hub:
    """What the owner of the hub sees and calls, by the control socket."""

    def __init__(self, session: CallSession) -> None:
        self._session = session

    async def offering(self) -> dict[str, int]:
        """Return the peers that offer to echo, and how many calls each runs."""
        output = await self._session.call("services/list-peers", {"with_operations": True})
        peers = msgspec.json.decode(output)["peers"]
        return {one["name"]: one["in_flight"] for one in peers if "echo/bidi" in one["operations"]}

    async def until_offered(self, *names: str) -> None:
        with trio.fail_after(PATIENCE_S):
            while set(await self.offering()) != set(names):
                await trio.sleep(0.02)

    async def connections(self) -> dict[str, tuple[str, str]]:
        """Return for each peer the id of its connection, and the address that it comes from."""
        status = msgspec.json.decode(await self._session.call("node/status"))
        return {
            one["identity"].removeprefix("peer:"): (one["id"], one["address"])
            for one in status["connections"]
            if one["identity"].startswith("peer:")
        }

    async def until_carried(self, name: str, carrier: str) -> None:
        """Wait until *carrier* is the only way that the peer *name* is connected by."""
        with trio.fail_after(PATIENCE_S):
            while True:
                status = msgspec.json.decode(await self._session.call("node/status"))
                mine = [c for c in status["connections"] if c["identity"] == f"peer:{name}"]
                if [one["carrier"] for one in mine] == [carrier]:
                    return
                await trio.sleep(0.02)

    async def until_seen_at(self, site: Site, before: str) -> None:
        """Wait until the worker of *site* is seen at a new address, that of its router."""
        with trio.fail_after(PATIENCE_S):
            while (seen := (await self.connections())[site.name][1]) == before:
                await trio.sleep(0.02)
        assert seen.rpartition(":")[0] == site.outside

    async def call(self, peer: str, message: str) -> None:
        output = await self._session.call("echo/unary", {"message": message}, peer=(peer,))
        assert msgspec.json.decode(output) == {"message": message}

    def echo(self) -> Any:
        """A call that lasts for as long as the block, at whichever worker has the least to do."""
        return self._session.bidi("echo/bidi", peer=("any",))


async def assert_echoes(calls: list[Bidi], item: str) -> None:
    with trio.fail_after(PATIENCE_S):
        for call in calls:
            await call.send(item)
            assert msgspec.json.decode(await anext(call)) == item


async def calls_outlive_what_routers_forget(hub: Hub, places: list[Site]) -> None:
    """Each worker runs a call while its router loses its mapping, or its address."""
    async with hub.echo() as one, hub.echo() as other:
        calls = [one, other]
        await assert_echoes(calls, "before")
        assert await hub.offering() == {"w1": 1, "w2": 1}
        before = await hub.connections()
        for change in (Site.forget, Site.move):
            seen = await hub.connections()
            for site in places:
                change(site)
            # The hub has something to say, and nobody to say it to before the worker speaks.
            await assert_echoes(calls, change.__name__)
            for site in places:
                await hub.until_seen_at(site, seen[site.name][1])
        after = await hub.connections()
        assert {name: seen[0] for name, seen in after.items()} == {
            name: seen[0] for name, seen in before.items()
        }
        for call in calls:
            await call.finish()
            assert [item async for item in call] == []


async def a_worker_that_is_cut_off_is_passed_by(hub: Hub, place: Site) -> None:
    """`any` finds the other one, once the hub has noticed."""
    place.router.run("ip", "link", "set", "in", "down")
    await hub.until_offered("w1")
    for turn in range(3):
        await hub.call("any", f"passed by {turn}")
    place.router.run("ip", "link", "set", "in", "up")
    await hub.until_offered("w1", "w2")


async def a_worker_whose_router_drops_udp_comes_by_tcp(hub: Hub, place: Site) -> None:
    drop = ("ip", "protocol", "udp", "drop")
    place.router.run("nft", "insert", "rule", "ip", "wall", "forward", *drop)
    await hub.until_carried(place.name, "tcp")
    await hub.until_offered("w1", "w2")
    await hub.call(place.name, "by TCP")


def make_home(machine: Machine, directory: Path, name: str) -> Path:
    home = directory / name
    machine.alknet(home, "init", "--words-file", f"{home}.words")
    (home / "node.toml").write_text(CONFIG)
    return home


async def scenario(directory: Path) -> None:
    machine = Machine()
    async with sites(machine) as places, AsyncExitStack() as stack:
        assert_no_route()
        home = make_home(machine, directory, "hub")
        await stack.enter_async_context(node(machine, home, f"0.0.0.0:{PORT}"))
        owner = await stack.enter_async_context(open_control_session(home))
        hub = Hub(owner)
        for site in places:
            invite = ("peer", "invite", site.name, "--address", f"{site.hub}:{PORT}")
            invitation = machine.alknet(home, *invite)["invitation"]
            worker_home = make_home(site.worker, directory, site.name)
            join = ("worker", "join", "--allow", "echo")
            site.worker.alknet(worker_home, *join, stdin=invitation)
            await stack.enter_async_context(node(site.worker, worker_home, "127.0.0.1:0"))
        await hub.until_offered("w1", "w2")
        await calls_outlive_what_routers_forget(hub, places)
        await a_worker_that_is_cut_off_is_passed_by(hub, places[1])
        await a_worker_whose_router_drops_udp_comes_by_tcp(hub, places[0])


if __name__ == "__main__":
    trio.run(scenario, Path(sys.argv[1]))
