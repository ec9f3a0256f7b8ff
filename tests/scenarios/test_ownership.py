"""Who spawns something on a node owns it there, over connections, restarts and hubs."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.operations import CompositionAuthority, Operation, operation, public, scopes
from alknet.call.peers.reference import PeerRef
from alknet.call.resource import ResourceLife
from alknet.call.session import CallSession
from alknet.client import open_control_session, open_session
from alknet.core.config import load_config
from alknet.core.home import CONFIG_FILE
from alknet.core.identity import Grant, Identity, NodeId, Peer
from alknet.core.limits import Limits
from alknet.node import Node
from alknet.stores.home import open_home_identities
from alknet.stores.tables import OWNERSHIP
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.nodes import open_node
from tests.scenarios.homes import LOOPBACK, make_home, process_running
from tests.scenarios.rig import Friend, eventually, make_friend, new_token
from tests.scenarios.shells import Shell, Shells


async def code_of(session: CallSession, name: str, value: object = None, **options: Any) -> str:
    """Return the code of a call that fails."""
    with pytest.raises(CallError) as caught:
        await session.call(name, value, timeout_s=5, **options)
    return caught.value.code


def session_of(node: Node, friend: Friend) -> Any:
    return open_session(node.ticket, key=friend.key, transports=["tcp"])


async def test_the_spawner_owns_and_others_need_a_grant() -> None:
    shells = Shells()
    ann, bob = make_friend("ann", "shell"), make_friend("bob", "shell")
    carol = make_friend("carol", "shell")
    grants = (Grant.parse("shell:*:use"),)
    granted = msgspec.structs.replace(carol.peer, resources=grants)
    async with (
        open_node(operations=shells.operations(), peers=[ann.peer, bob.peer, granted]) as node,
        session_of(node, ann) as as_ann,
        session_of(node, bob) as as_bob,
        session_of(node, carol) as as_carol,
    ):
        shell = await as_ann.call_as(Shell, "shell/open")
        assert await as_ann.call_as(int, "shell/tell", shell) == 1
        for name in ("shell/tell", "shell/close"):
            assert await code_of(as_bob, name, shell) == "FORBIDDEN"
            # Whom a caller says that it speaks for gives it nothing.
            whom = Identity("peer:ann", ("*",), grants)
            assert await code_of(as_bob, name, shell, forwarded_for=whom) == "FORBIDDEN"
        assert await as_bob.call_as(list[str], "shell/list") == []
        assert await as_carol.call_as(list[str], "shell/list") == [shell.id]
        assert node.status()["resources"] == {"shell": 1}
        await as_carol.call("shell/close", shell)
        assert shells.lines == {}
        assert await as_ann.call_as(list[str], "shell/list") == []
        # Nobody owns it any more: it is as if it had never been there.
        assert await code_of(as_ann, "shell/close", shell) == "FORBIDDEN"


async def test_a_stranger_can_own_nothing_and_a_token_can() -> None:
    shells = Shells()
    async with (
        open_node(operations=shells.operations()) as node,
        open_session(node.ticket, transports=["tcp"]) as session,
    ):
        assert await code_of(session, "shell/open") == "FORBIDDEN"
        token, other = await new_token(node, "shell"), await new_token(node, "shell", name="other")
        shell = await session.call_as(Shell, "shell/open", token=token)
        assert await session.call_as(int, "shell/tell", shell, token=token) == 1
        assert await code_of(session, "shell/tell", shell, token=other) == "FORBIDDEN"
        assert await code_of(session, "shell/tell", shell) == "FORBIDDEN"


async def test_it_outlives_the_connection_and_the_next_one_still_owns_it() -> None:
    shells = Shells()
    ann = make_friend("ann", "shell")
    async with open_node(operations=shells.operations(), peers=[ann.peer]) as node:
        async with session_of(node, ann) as session:
            shell = await session.call_as(Shell, "shell/open")
        await eventually(lambda: not node._calls.sessions)
        assert list(shells.lines) == [shell.id]
        async with session_of(node, ann) as session:
            assert await session.call_as(list[str], "shell/list") == [shell.id]
            assert await session.call_as(int, "shell/tell", shell) == 1
            await session.call("shell/close", shell)
    assert shells.lines == {}


async def test_a_removed_peer_and_a_new_one_of_its_name_own_nothing() -> None:
    shells = Shells()
    ann, new = make_friend("ann", "shell"), make_friend("ann", "shell")
    async with open_node(operations=shells.operations()) as node:
        await node.identities.put_peer(ann.peer)
        async with session_of(node, ann) as session:
            shell = await session.call_as(Shell, "shell/open")
            await node.identities.remove_peer("ann")
            await node.identities.put_peer(new.peer)
        async with session_of(node, new) as session:
            assert await code_of(session, "shell/tell", shell) == "FORBIDDEN"
            assert await session.call_as(list[str], "shell/list") == []


async def test_the_limit_of_an_identity_is_told_and_another_is_not_held_up() -> None:
    shells = Shells()
    ann, bob = make_friend("ann", "shell"), make_friend("bob", "shell")
    async with (
        open_node(
            operations=shells.operations(),
            peers=[ann.peer, bob.peer],
            limits=Limits(resources_per_identity=2),
        ) as node,
        session_of(node, ann) as as_ann,
        session_of(node, bob) as as_bob,
    ):
        for _ in range(2):
            await as_ann.call("shell/open")
        assert await code_of(as_ann, "shell/open") == "RESOURCE_EXHAUSTED"
        await as_bob.call("shell/open")
        assert len(shells.lines) == 3


async def test_a_call_cancelled_anywhere_leaves_a_shell_with_an_owner_or_none() -> None:
    shells = Shells()
    ann = make_friend("ann", "shell")
    async with (
        open_node(operations=shells.operations(), peers=[ann.peer]) as node,
        session_of(node, ann) as session,
    ):

        async def settled() -> None:
            await eventually(lambda: not any(s.serving.calls for s in node._calls.sessions))
            owned = [row.resource_id for row in node.ownership.recorded()]
            assert owned == list(shells.lines)
            for name in owned:
                await session.call("shell/close", Shell(name))

        assert await cancel_at_every_checkpoint(lambda: session.call("shell/open"), settled) > 0


@operation("desk/open", access=public(), calls=["shell/open"])
async def open_without_authority(ctx: Context) -> Shell:
    return msgspec.json.decode(await ctx.call("shell/open"), type=Shell)


@operation(
    "desk/lend",
    access=scopes("desk"),
    calls=["shell/open", "shell/tell"],
    authority=CompositionAuthority("desk", scopes=("shell",)),
)
async def lend(ctx: Context) -> Shell:
    answer = await ctx.call("shell/open")
    await ctx.call("shell/tell", answer)
    return msgspec.json.decode(answer, type=Shell)


async def test_what_an_operation_spawns_by_another_is_owned_by_its_label() -> None:
    shells = Shells()
    ann = make_friend("ann", "desk", "shell")
    served = [*shells.operations(), open_without_authority, lend]
    async with (
        open_node(operations=served, peers=[ann.peer]) as node,
        session_of(node, ann) as session,
    ):
        shell = await session.call_as(Shell, "desk/lend")
        assert node.ownership.owned_by("shell", shell.id) == "op:desk"
        assert shells.lines == {shell.id: ["op:desk"]}
        # It was for her, and is not hers.
        assert await code_of(session, "shell/tell", shell) == "FORBIDDEN"
        # Without authority a child runs as nobody, whoever the caller is.
        assert await code_of(session, "desk/open") == "INTERNAL"
        assert len(shells.lines) == 1


# The life of a node with a home.


async def rows_of(home: Path) -> list[str]:
    """Return the ids in the store of a node that does not run."""
    async with open_home_identities(home, load_config(home / CONFIG_FILE)) as identities:
        return [row.value.resource_id for row in identities.store.rows(OWNERSHIP)]


async def test_a_node_that_stops_ends_what_it_holds_first(tmp_path: Path) -> None:
    shells = Shells()
    ann = make_friend("ann", "shell")
    home = await make_home(tmp_path, ann.peer)
    async with Node.from_home(home, listen=LOOPBACK, operations=shells.operations()) as node:
        async with session_of(node, ann) as session:
            for _ in range(3):
                await session.call("shell/open")
        assert len(node.ownership.recorded()) == 3
    assert shells.lines == {}
    assert await rows_of(home) == []


async def test_the_nodes_owner_ends_what_a_removed_peer_left_running(tmp_path: Path) -> None:
    shells = Shells()
    ann = make_friend("ann", "shell")
    home = await make_home(tmp_path, ann.peer)
    async with Node.from_home(home, listen=LOOPBACK, operations=shells.operations()) as node:
        async with session_of(node, ann) as session:
            shell = await session.call_as(Shell, "shell/open")
            assert await code_of(session, "node/resources") == "FORBIDDEN"
            assert await code_of(session, "node/release", {"type": "shell", "id": shell.id}) == (
                "FORBIDDEN"
            )
        await node.identities.remove_peer("ann")
        assert list(shells.lines) == [shell.id]
        async with open_control_session(home) as owner:
            [one] = await owner.call_as(list[dict[str, Any]], "node/resources")
            assert (one["owner"], one["spawned_by"]) == (None, "peer:ann")
            await owner.call("node/release", {"type": one["type"], "id": one["id"]})
        assert shells.lines == {}
        [row] = await node.identities.audit.newest(1)
        assert (row.who, row.action, row.target) == ("owner", "node.release", shell.id)


async def test_a_node_that_crashes_lets_go_of_what_it_holds(tmp_path: Path) -> None:
    shells = Shells()
    ann = make_friend("ann", "shell")
    home = await make_home(tmp_path, ann.peer)

    async def run() -> None:
        async with Node.from_home(home, listen=LOOPBACK, operations=shells.operations()) as node:
            async with session_of(node, ann) as session:
                await session.call("shell/open")
            assert len(node.ownership.recorded()) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run()
    assert shells.lines == {}
    assert await rows_of(home) == []


async def test_what_outlives_the_node_is_found_again_with_its_owner(tmp_path: Path) -> None:
    shells = Shells()
    ann = make_friend("ann", "shell")
    home = await make_home(tmp_path, ann.peer)

    async def find(ids: Sequence[str]) -> Mapping[str, ResourceLife[None]]:
        return {name: partial(shells.live, name) for name in ids if name != gone.id}

    @asynccontextmanager
    async def running() -> AsyncGenerator[tuple[Node, CallSession]]:
        node = Node.from_home(home, listen=LOOPBACK, operations=shells.operations())
        node.resources.outlive("shell", find)
        async with node, session_of(node, ann) as session:
            yield node, session

    async with running() as (_, session):
        kept, gone = [await session.call_as(Shell, "shell/open") for _ in range(2)]
    assert sorted(await rows_of(home)) == sorted([kept.id, gone.id])
    async with running() as (node, session):
        await eventually(lambda: list(shells.lines) == [kept.id])
        await eventually(lambda: len(node.ownership.recorded()) == 1)
        assert await session.call_as(int, "shell/tell", kept) == 1
        await session.call("shell/close", kept)
    assert await rows_of(home) == []


@pytest.mark.slow
async def test_after_a_kill_the_next_start_lets_go_of_what_lived_there(tmp_path: Path) -> None:
    ann = make_friend("ann", "shell")
    home = await make_home(tmp_path, ann.peer)
    command = [sys.executable, "-m", "tests.scenarios.shells", str(home)]
    async with process_running(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        ticket = b""
        while not ticket.endswith(b"\n"):
            ticket += await process.stdout.receive_some()
        async with open_session(
            ticket.decode().strip(), key=ann.key, transports=["tcp"]
        ) as session:
            opened = [await session.call_as(Shell, "shell/open") for _ in range(2)]
            process.kill()
    assert sorted(await rows_of(home)) == sorted(shell.id for shell in opened)
    shells = Shells()
    async with (
        Node.from_home(home, listen=LOOPBACK, operations=shells.operations()) as node,
        session_of(node, ann) as session,
    ):
        assert node.ownership.recorded() == []
        assert await code_of(session, "shell/tell", opened[0]) == "FORBIDDEN"
        await session.call("shell/open")


# A hub between a user and a worker.


@operation(
    "hub/open",
    access=scopes("hub"),
    calls=["@worker/shell/open"],
)
async def hub_open(ctx: Context) -> Shell:
    """Open a shell on the worker, for the caller."""
    ctx.log.info("hub.opening")
    answer = await ctx.call("shell/open", peer=PeerRef.specific("worker"))
    return msgspec.json.decode(answer, type=Shell)


@asynccontextmanager
async def hub_and_worker(
    shells: Shells, *users: Peer, of_worker: tuple[Peer, ...] = ()
) -> AsyncGenerator[tuple[Node, Node]]:
    """Run a hub that knows *users* and has a session to a worker that knows the hub alone."""
    hub_key = make_friend("hub", "shell")
    own: list[Operation[..., Any]] = [hub_open]
    async with (
        open_node(operations=shells.operations(), peers=[hub_key.peer, *of_worker]) as worker,
        open_node(key=hub_key.key, operations=own, peers=users) as hub,
        open_session(worker.ticket, key=hub_key.key, transports=["tcp"]) as session,
    ):
        with hub.peers.attach("worker", session):
            yield hub, worker


async def test_a_hub_owns_what_it_spawns_for_a_user(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shells = Shells()
    user = make_friend("user", "hub")
    # The worker knows the user as well, by the same name; and still the hub is the owner.
    known = msgspec.structs.replace(user.peer, scopes=("shell",))
    async with (
        hub_and_worker(shells, user.peer, of_worker=(known,)) as (hub, worker),
        session_of(hub, user) as session,
    ):
        shell = await session.call_as(Shell, "hub/open")
        assert worker.ownership.owned_by("shell", shell.id) == "peer:hub"
        assert hub.ownership.recorded() == []
        async with session_of(worker, user) as direct:
            assert await code_of(direct, "shell/close", shell) == "FORBIDDEN"
            assert await direct.call_as(list[str], "shell/list") == []
    records = {record.getMessage(): record.__dict__ for record in caplog.records}
    for name in ("resource.started", "shell.opened"):  # both of the worker
        assert records[name]["forwarded_for"] == "peer:user"
    assert records["resource.started"]["owner"] == "peer:hub"
    assert records["shell.opened"]["identity"] == "peer:hub"
    assert "forwarded_for" not in records["hub.opening"]


async def test_a_user_who_may_not_call_the_hub_reaches_no_worker() -> None:
    shells = Shells()
    user = make_friend("user")
    async with (
        hub_and_worker(shells, user.peer) as (hub, _),
        session_of(hub, user) as session,
    ):
        assert await code_of(session, "hub/open") == "FORBIDDEN"
        assert shells.lines == {}


async def test_a_worker_asks_what_the_hub_may_not_what_its_user_may() -> None:
    shells = Shells()
    user = make_friend("user", "*")
    stranger = make_friend("hub")  # a hub without the scope
    async with (
        open_node(operations=shells.operations(), peers=[stranger.peer]) as worker,
        open_node(key=stranger.key, operations=[hub_open], peers=[user.peer]) as hub,
        open_session(worker.ticket, key=stranger.key, transports=["tcp"]) as session,
    ):
        with hub.peers.attach("worker", session):
            async with session_of(hub, user) as as_user:
                assert await code_of(as_user, "hub/open") == "INTERNAL"
        assert shells.lines == {}
        assert NodeId.from_public_key(stranger.key.public_key()) == hub.id
