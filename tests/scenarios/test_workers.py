"""A hub and workers as processes of their own: killed, restarted, and together again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.session import CallSession
from alknet.client import join_hub, open_control_session
from alknet.core.config import load_config
from alknet.core.home import CONFIG_FILE
from alknet.core.identity import NodeId, Peer
from alknet.core.invitation import Invitation
from alknet.core.ticket import Ticket
from alknet.errors import Unavailable
from alknet.stores.enrolment import EnrolmentTokens
from alknet.stores.home import open_home_identities
from alknet.stores.outbound import StoredOutbound
from alknet.vault.homevault import home_identity
from tests.scenarios.homes import Process, make_home, process_node, steady_address

# A peer that is gone without a goodbye is noticed by this, so that the test need not wait for it.
CONFIG = "[limits]\nidle_timeout_s = 4.0\nkeep_alive_s = 0.5\n"
# For processes of a loaded machine; nothing waits so long when all is well.
PATIENCE_S = 90.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


async def join(hub_home: Path, hub: Process, worker_home: Path, name: str) -> None:
    """Invite the node of *worker_home* under *name*, and let it join."""
    async with open_home_identities(hub_home, load_config(hub_home / CONFIG_FILE)) as identities:
        minted = await EnrolmentTokens(identities).create(name, lifetime_s=60)
    key = home_identity(worker_home)
    config = load_config(worker_home / CONFIG_FILE)
    async with open_home_identities(worker_home, config) as identities:
        outbound = StoredOutbound(identities, NodeId.from_public_key(key.public_key()))
        invitation = Invitation(Ticket.parse(hub.ticket), minted.secret)
        await join_hub(invitation, outbound, key=key, hub=Peer(name="hub", scopes=("echo",)))


@asynccontextmanager
async def homes(directory: Path, *workers: str) -> AsyncGenerator[tuple[Path, dict[str, Path]]]:
    made = {}
    for name in ("hub", *workers):
        (directory / name).mkdir()
        made[name] = await make_home(directory / name, config=CONFIG)
    yield made.pop("hub"), made


async def call(session: CallSession, worker: str, message: object) -> Any:
    """Call a worker through the hub, as its owner."""
    output = await session.call(
        "echo/unary", {"message": message}, peer=(worker,), timeout_s=PATIENCE_S
    )
    return msgspec.json.decode(output)["message"]


async def until_answered(home: Path, worker: str, message: object) -> None:
    """Call a worker through the hub of *home* until it answers: it may not be there yet."""
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                async with open_control_session(home) as session:
                    assert await call(session, worker, message) == message
                    return
            except (CallError, Unavailable, OSError):
                await trio.sleep(0.05)


async def until(claim: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not claim():
            await trio.sleep(0.02)


def address_of(node: Process) -> str:
    [address] = Ticket.parse(node.ticket).addresses
    return str(address)


async def test_a_worker_comes_back_to_a_hub_that_was_killed(tmp_path: Path) -> None:
    async with homes(tmp_path, "w1") as (hub_home, workers):
        address = str(steady_address())
        async with process_node(hub_home, listen=address) as hub:
            await join(hub_home, hub, workers["w1"], "w1")
            async with process_node(workers["w1"]) as worker:
                await until_answered(hub_home, "w1", "first")
                hub.kill()
                await until(lambda: "outbound.lost" in {line["event"] for line in worker.lines})
                async with process_node(hub_home, listen=address) as again:
                    assert address_of(again) == address
                    await until_answered(hub_home, "w1", "second")


async def test_a_worker_that_was_killed_comes_back_and_no_other_notices(tmp_path: Path) -> None:
    async with homes(tmp_path, "w1", "w2") as (hub_home, workers):
        async with process_node(hub_home) as hub:
            for name, home in workers.items():
                await join(hub_home, hub, home, name)
            async with process_node(workers["w2"]):
                async with process_node(workers["w1"]) as worker:
                    for name in workers:
                        await until_answered(hub_home, name, "first")
                    async with open_control_session(hub_home) as owner:
                        errors: list[CallError] = []

                        async def call_until_it_ends() -> None:
                            try:
                                await owner.call(
                                    "echo/unary",
                                    {"message": 1, "delay_ms": 60_000},
                                    peer=("w1",),
                                    timeout_s=PATIENCE_S,
                                )
                            except CallError as exc:
                                errors.append(exc)

                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(call_until_it_ends)
                            await until_busy(workers["w1"])
                            worker.kill()
                            assert await call(owner, "w2", "meanwhile") == "meanwhile"
                        assert [error.code for error in errors] == ["UNAVAILABLE"]
                async with process_node(workers["w1"]):
                    await until_answered(hub_home, "w1", "second")


async def until_busy(home: Path) -> None:
    """Wait until the node of *home* runs a call."""
    with trio.fail_after(PATIENCE_S):
        async with open_control_session(home) as owner:
            while True:
                status = msgspec.json.decode(await owner.call("node/status"))
                if status["calls"] > 0:
                    return
                await trio.sleep(0.02)


async def test_a_worker_that_runs_already_connects_when_it_joins_and_ends_when_it_leaves(
    tmp_path: Path,
) -> None:
    async with homes(tmp_path, "w1") as (hub_home, workers):
        async with process_node(hub_home) as hub, process_node(workers["w1"]) as worker:
            await join(hub_home, hub, workers["w1"], "w1")
            await until_answered(hub_home, "w1", "joined")
            home = workers["w1"]
            async with open_home_identities(home, load_config(home / CONFIG_FILE)) as identities:
                me = NodeId.from_public_key(home_identity(home).public_key())
                await StoredOutbound(identities, me).leave("hub")
            await until(lambda: "outbound.ended" in {line["event"] for line in worker.lines})
            await until(lambda: "peer.detached" in {line["event"] for line in hub.lines})
