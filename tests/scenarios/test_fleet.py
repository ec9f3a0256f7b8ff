"""A hub and three workers as processes, whose operations are programs that keep a ledger.

What the tutorial on hubs and workers tells, with what it cannot assert: which calls end and which
do not, that no job is begun twice, and that everybody finds back without help.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.session import CallSession
from alknet.client import open_control_session, open_session
from alknet.core.config import load_config
from alknet.core.home import CONFIG_FILE
from alknet.stores.home import open_home_identities
from tests.commands.kit import Place, open_place
from tests.scenarios.homes import Process, process_node, steady_address
from tests.scenarios.rig import make_friend
from tests.scenarios.test_workers import address_of, homes, join, until

WORKERS = ("w1", "w2", "w3")
# Enough that each worker runs several, and that a repeated one would be seen.
JOBS = 9
# The configured idle time-out is 2 s, the default 30 s: far from both, for a loaded machine.
NOTICED_WITHIN_S = 20
PATIENCE_S = 90

JOB = """
[[command]]
name = "{name}"
run = ["{script}"]
op_type = "mutation"
scopes_all = ["echo"]
read = ["{directory}"]
write = ["{directory}"]
concurrent = 16
timeout_s = 60
"""
RE_EXPORT = """
[[re_export]]
peers = ["any"]
operations = ["jobs/*"]
scopes_all = ["jobs"]
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with open_place(tmp_path / "other") as place:
        place.directory.chmod(0o777)  # programs of a node that runs as root write as somebody else
        yield place


class Ledger:
    """Which jobs have begun, and where; they end when told."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._go = place.directory / "go"

    def job(self, worker: str, name: str = "jobs/run") -> str:
        """Return a ``[[command]]`` that notes its input, waits, and answers with *worker*."""
        directory = self._place.directory
        script = self._place.script(
            f'read -r job; echo "$job" >> {directory}/{worker}.begun\n'
            f"while [ ! -e {self._go} ]; do sleep 0.05; done\n"
            f"echo '\"{worker}\"'"
        )
        return JOB.format(name=name, script=script, directory=directory)

    def begun(self) -> dict[str, list[int]]:
        """Return the numbers of the jobs that each worker has begun, in order."""
        return {
            path.stem: [msgspec.json.decode(line)["job"] for line in path.read_text().splitlines()]
            for path in self._place.directory.glob("*.begun")
        }

    def go(self) -> None:
        self._go.touch()


class Fleet:
    """The nodes that run, and the jobs that are called at the hub."""

    def __init__(self, hub_home: Path, worker_homes: dict[str, Path]) -> None:
        self.hub_home = hub_home
        self.worker_homes = worker_homes
        self.workers: dict[str, Process] = {}
        self.done: dict[int, str] = {}
        self.failed: dict[int, CallError] = {}

    async def run_job(self, caller: CallSession, number: int) -> None:
        asked = caller.call("jobs/run", {"job": number}, peer=("any",), timeout_s=60)
        try:
            self.done[number] = msgspec.json.decode(await asked, type=str)
        except CallError as exc:
            self.failed[number] = exc

    async def until_offered(self, *names: str, operation: str = "jobs/run") -> None:
        """Wait until exactly *names* offer *operation* to the hub, whoever runs it."""
        with trio.fail_after(PATIENCE_S):
            async with open_control_session(self.hub_home) as owner:
                while True:
                    asked = {"with_operations": True}
                    found = msgspec.json.decode(await owner.call("services/list-peers", asked))
                    offering = [p["name"] for p in found["peers"] if operation in p["operations"]]
                    if offering == sorted(names):
                        return
                    await trio.sleep(0.01)


@asynccontextmanager
async def laptop(hub_home: Path, hub: Process) -> AsyncGenerator[CallSession]:
    """Connect as a peer of the hub that may call jobs, by the hub's rule."""
    friend = make_friend("laptop", "jobs")
    async with open_home_identities(hub_home, load_config(hub_home / CONFIG_FILE)) as identities:
        await identities.put_peer(friend.peer)
    async with open_session(hub.ticket, key=friend.key) as session:
        with trio.fail_after(PATIENCE_S):
            while (await session.call_as(dict[str, Any], "node/whoami"))["id"] != "peer:laptop":
                await trio.sleep(0.02)
        yield session


@asynccontextmanager
async def fleet(
    directory: Path, ledger: Ledger, *, patient: bool = False
) -> AsyncGenerator[tuple[Fleet, Process]]:
    """Run the hub and the workers; the caller may kill and start any of them.

    Args:
        patient: Nobody notices by silence alone that another is gone, for much longer than a test.
    """
    async with AsyncExitStack() as stack:
        hub_home, worker_homes = await stack.enter_async_context(homes(directory, *WORKERS))
        if patient:
            for home in (hub_home, *worker_homes.values()):
                (home / CONFIG_FILE).write_text("[limits]\nidle_timeout_s = 600.0\n")
        found = Fleet(hub_home, worker_homes)
        with (hub_home / CONFIG_FILE).open("a") as config:
            config.write(RE_EXPORT)
        address = str(steady_address())
        hub = await stack.enter_async_context(process_node(hub_home, listen=address))
        for name, home in worker_homes.items():
            with (home / CONFIG_FILE).open("a") as config:
                config.write(ledger.job(name))
            await join(hub_home, hub, home, name)
            found.workers[name] = await stack.enter_async_context(process_node(home))
        await found.until_offered(*WORKERS)
        yield found, hub


async def test_only_the_calls_of_a_killed_worker_end_and_none_is_begun_twice(
    tmp_path: Path, place: Place
) -> None:
    ledger = Ledger(place)
    async with (
        fleet(tmp_path, ledger) as (nodes, hub),
        open_control_session(nodes.hub_home) as owner,
        laptop(nodes.hub_home, hub) as peer,
    ):
        async with trio.open_nursery() as nursery:
            for number in range(JOBS):
                nursery.start_soon(nodes.run_job, (owner, peer)[number % 2], number)
            await until(lambda: sum(map(len, ledger.begun().values())) == JOBS)
            begun = ledger.begun()
            assert set(begun) == set(WORKERS)
            assert sorted(job for jobs in begun.values() for job in jobs) == list(range(JOBS))
            nodes.workers["w2"].kill()
            async with trio.open_nursery() as meanwhile:
                for name in ("w1", "w3"):
                    meanwhile.start_soon(_call_all_the_time, owner, name)
                with trio.fail_after(NOTICED_WITHIN_S):
                    while len(nodes.failed) < len(begun["w2"]):
                        await trio.sleep(0.01)
                meanwhile.cancel_scope.cancel()
            assert not nodes.done
            ledger.go()
        assert set(nodes.failed) == set(begun["w2"])
        assert {(e.code, e.retryable) for e in nodes.failed.values()} == {("UNAVAILABLE", True)}
        assert nodes.done == {job: name for name in ("w1", "w3") for job in begun[name]}
        assert ledger.begun() == begun
        await nodes.until_offered("w1", "w3")
        async with process_node(nodes.worker_homes["w2"]):
            await nodes.until_offered(*WORKERS)
            for job in nodes.failed.copy():
                await nodes.run_job(peer, job)
        assert sorted(nodes.done) == list(range(JOBS))


async def test_calls_of_a_worker_that_is_back_do_not_wait_for_the_idle_time_out(
    tmp_path: Path, place: Place
) -> None:
    """Killed and started again at once, as by a supervisor, where silence may be long."""
    ledger = Ledger(place)
    async with fleet(tmp_path, ledger, patient=True) as (nodes, hub):
        async with open_control_session(nodes.hub_home) as owner, trio.open_nursery() as nursery:
            for number in range(JOBS):
                nursery.start_soon(nodes.run_job, owner, number)
            await until(lambda: sum(map(len, ledger.begun().values())) == JOBS)
            lost = ledger.begun()["w2"]
            nodes.workers["w2"].kill()
            async with process_node(nodes.worker_homes["w2"]):
                await until(lambda: len(nodes.failed) == len(lost))
                assert set(nodes.failed) == set(lost)
                assert {error.code for error in nodes.failed.values()} == {"UNAVAILABLE"}
                await until(lambda: "peer.silent" in {line["event"] for line in hub.lines})
                ledger.go()
        assert set(nodes.done) == set(range(JOBS)) - set(lost)


async def _call_all_the_time(owner: CallSession, worker: str) -> None:
    while True:
        output = await owner.call("echo/unary", {"message": worker}, peer=(worker,), timeout_s=60)
        assert msgspec.json.decode(output) == {"message": worker}
        await trio.sleep(0.01)


async def test_all_workers_come_back_to_a_hub_that_was_killed_and_no_job_is_begun_again(
    tmp_path: Path, place: Place
) -> None:
    ledger = Ledger(place)
    async with fleet(tmp_path, ledger) as (nodes, hub):
        async with open_control_session(nodes.hub_home) as owner, trio.open_nursery() as nursery:
            for number in range(JOBS):
                nursery.start_soon(nodes.run_job, owner, number)
            await until(lambda: sum(map(len, ledger.begun().values())) == JOBS)
            begun = ledger.begun()
            hub.kill()
        assert {error.code for error in nodes.failed.values()} == {"UNAVAILABLE"}
        assert len(nodes.failed) == JOBS
        async with process_node(nodes.hub_home, listen=address_of(hub)):
            await nodes.until_offered(*WORKERS)
            assert ledger.begun() == begun
            ledger.go()
            async with open_control_session(nodes.hub_home) as owner:
                for number in range(JOBS, 2 * JOBS):
                    await nodes.run_job(owner, number)
        assert sorted(nodes.done) == list(range(JOBS, 2 * JOBS))
        assert set(nodes.done.values()) == set(WORKERS)


async def test_the_hub_follows_what_workers_offer_while_they_run(
    tmp_path: Path, place: Place
) -> None:
    ledger = Ledger(place)
    async with fleet(tmp_path, ledger) as (nodes, _), open_control_session(nodes.hub_home) as owner:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nodes.run_job, owner, 0)
            await until(lambda: bool(ledger.begun()))
            [busy] = ledger.begun()
            config = nodes.worker_homes[busy] / CONFIG_FILE
            old = config.read_text()
            changed = old.replace('"jobs/run"', '"jobs/later"')
            assert changed != old
            config.write_text(changed)
            nodes.workers[busy].process.send_signal(signal.SIGHUP)
            await nodes.until_offered(busy, operation="jobs/later")
            await nodes.until_offered(*(name for name in WORKERS if name != busy))
        # What was begun under the old name could not be called any more, and has ended.
        assert not nodes.done
        assert nodes.failed[0].code == "FORBIDDEN"
        ledger.go()
        output = await owner.call("jobs/later", {"job": 1}, peer=("any",))
        assert msgspec.json.decode(output) == busy
        with pytest.raises(CallError, match="NOT_FOUND"):
            await owner.call("jobs/run", {"job": 2}, peer=(busy,))
        config.write_text(old)
        nodes.workers[busy].process.send_signal(signal.SIGHUP)
        await nodes.until_offered(*WORKERS)
