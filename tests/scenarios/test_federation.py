"""A user, a hub and its workers, as whole nodes: routes, rules, and operations that change."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.operations import Operation, operation, scopes
from alknet.call.session import CallSession
from alknet.core.address import Address
from alknet.core.config import NodeConfig
from alknet.core.home import CONFIG_FILE
from alknet.core.identity import NodeId, Peer
from alknet.core.outbound import OutboundConfig
from alknet.node import Node
from alknet.testing.nodes import open_peer_session
from tests.scenarios.homes import make_home, serving
from tests.scenarios.rig import eventually

LOOPBACK = Address("127.0.0.1", 0)

RULES = """\
[[re_export]]
peers = ["w*", "any"]
operations = ["echo/**", "who/*"]
scopes_all = ["workers"]

[federation]
list_peers = true
"""


@operation("who/asks", access=scopes("who"))
async def asks(ctx: Context) -> list[str]:
    """Say who calls, and for whom."""
    origin = ctx.forwarded_for
    return [ctx.identity.id, "" if origin is None else origin.id]


@operation("who/else", access=scopes("who"))
async def late() -> str:
    return "late"


@asynccontextmanager
async def worker_of(
    hub: Node, name: str, *operations: Operation[..., Any], allows: tuple[str, ...]
) -> AsyncGenerator[Node]:
    """Run a worker that keeps a connection to *hub*; the hub has attached it and its offer."""
    key = Ed25519PrivateKey.generate()
    fingerprint = NodeId.from_public_key(key.public_key()).fingerprint
    await hub.identities.put_peer(Peer(name=name, fingerprints=(fingerprint,), may_offer=True))
    record = Peer(
        name="hub",
        fingerprints=(hub.id.fingerprint,),
        scopes=allows,
        addresses=tuple(map(str, hub.ticket.addresses)),
    )
    config = NodeConfig(listen=(LOOPBACK,), peers=(record,), outbound=(OutboundConfig("hub"),))
    async with Node(key, config=config, operations=operations) as worker:
        await eventually(lambda: _version(hub, name) is not None, 10)
        yield worker


def _version(hub: Node, name: str) -> str | None:
    attached = hub.peers.get(name)
    return None if attached is None else attached.operations_version


async def listed(session: CallSession) -> dict[str, list[str]]:
    wanted = {"with_operations": True}
    found = await session.call_as(dict[str, Any], "services/list-peers", wanted)
    return {one["name"]: one["operations"] for one in found["peers"]}


async def code_of(session: CallSession, name: str, *route: str) -> str:
    with pytest.raises(CallError) as caught:
        await session.call(name, {}, peer=route)
    return caught.value.code


async def test_a_user_calls_workers_through_their_hub(tmp_path: Path) -> None:
    home = await make_home(tmp_path, config=RULES)
    async with (
        serving(home) as hub,
        worker_of(hub, "w1", asks, allows=("who", "echo")),
        worker_of(hub, "w2", allows=("echo",)),
        open_peer_session(hub, name="user", scopes=["workers"]) as user,
        open_peer_session(hub, name="other", scopes=["echo"]) as other,
    ):
        assert await user.call_as(list[str], "who/asks", peer=("w1",)) == ["peer:hub", "peer:user"]
        assert await user.call_as(list[str], "who/asks", peer=("any",)) == ["peer:hub", "peer:user"]
        assert await code_of(user, "who/asks", "w2") == "NOT_FOUND"
        assert await code_of(user, "node/status", "w1") == "NOT_FOUND"
        assert await code_of(user, "echo/unary", "w3") == "NOT_FOUND"
        assert await code_of(other, "echo/unary", "w1") == "FORBIDDEN"
        echo = ["echo/bidi", "echo/stream", "echo/unary", "echo/upload"]
        assert await listed(user) == {"w1": [*echo, "who/asks"], "w2": echo}
        assert await listed(other) == {}
        async with user.subscribe("echo/stream", {"count": 3}, peer=("w2",)) as items:
            assert [bytes(item) async for item in items] == [b'{"n":0}', b'{"n":1}', b'{"n":2}']


async def test_rules_change_without_a_restart(tmp_path: Path) -> None:
    home = await make_home(tmp_path, config=RULES)
    async with (
        serving(home) as hub,
        worker_of(hub, "w1", asks, allows=("who", "echo")),
        open_peer_session(hub, name="user", scopes=["workers"]) as user,
    ):
        assert "w1" in await listed(user)
        (home / CONFIG_FILE).write_text("")
        assert hub.reload() == []
        assert await listed(user) == {}
        assert await code_of(user, "who/asks", "w1") == "NOT_FOUND"
        (home / CONFIG_FILE).write_text(RULES.replace("workers", "staff"))
        assert hub.reload() == []
        assert await code_of(user, "who/asks", "w1") == "FORBIDDEN"
        (home / CONFIG_FILE).write_text(RULES)
        assert hub.reload() == []
        assert await user.call_as(list[str], "who/asks", peer=("w1",)) == ["peer:hub", "peer:user"]


async def test_operations_that_change_are_seen_and_a_worker_that_left_is_missed(
    tmp_path: Path,
) -> None:
    home = await make_home(tmp_path, config=RULES)
    async with serving(home) as hub:
        async with (
            open_peer_session(hub, name="user", scopes=["workers"]) as user,
            worker_of(hub, "w1", asks, allows=("who",)) as worker,
        ):
            assert await listed(user) == {"w1": ["who/asks"]}
            worker.registry.set_commands([late])
            await eventually(lambda: len(hub.peers.offering("who/else")) == 1, 5)
            assert await user.call_as(str, "who/else", peer=("any",)) == "late"
            # What the hub may do at the worker changes what it sees there, too.
            record = worker.config.peers[0]
            peers = (msgspec.structs.replace(record, scopes=()),)
            worker.apply(msgspec.structs.replace(worker.config, peers=peers))
            await eventually(lambda: not hub.peers.offering("who/asks"), 5)
            assert await listed(user) == {}
        async with open_peer_session(hub, name="user", scopes=["workers"]) as user:
            await eventually(lambda: hub.peers.get("w1") is None, 5)
            assert await code_of(user, "who/asks", "w1") == "UNAVAILABLE"
            assert await code_of(user, "who/asks", "any") == "NOT_FOUND"
