"""Rights that are taken away while they are used: felt within a second, and by nobody else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.session import CallSession
from alknet.client import open_session
from alknet.core.address import Address
from alknet.core.clock import wall_clock
from alknet.core.config import NodeConfig
from alknet.core.contracts import CloseCode
from alknet.core.home import CONFIG_FILE
from alknet.node import Node
from alknet.stores.home import DATABASE_FILE, open_home_identities
from alknet.testing.nodes import open_node
from alknet.vault.keyfile import create_home
from tests.scenarios.homes import command, make_home, process_running, serving
from tests.scenarios.rig import (
    TRANSPORTS,
    Friend,
    bystander,
    ended,
    eventually,
    make_friend,
    new_token,
)
from tests.scenarios.test_federation import worker_of
from tests.vault.oldhome import write_key

SLOW = {"message": 1, "delay_ms": 60_000}
ENDLESS = {"count": 2**31 - 1, "interval_ms": 1}

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)


@asynccontextmanager
async def revoked_within_a_second(
    session: CallSession, within_s: float = 1
) -> AsyncGenerator[None]:
    """A call runs; the block takes the right away; the call ends, and the connection with it."""
    async with trio.open_nursery() as nursery:
        errors: list[CallError] = []

        async def call() -> None:
            with pytest.raises(CallError) as caught:
                await session.call("echo/unary", SLOW)
            errors.append(caught.value)

        nursery.start_soon(call)
        await session.call("node/ping")
        yield
        await eventually(lambda: errors, within_s)
    assert errors[0].code == "FORBIDDEN"
    assert (await ended(session)).code == CloseCode.REVOKED


@pytest.mark.parametrize("how", ["disabled", "removed", "key taken away"])
async def test_a_peer_that_is_revoked(transport: str, how: str) -> None:
    friend = make_friend("friend", "echo")
    async with open_node() as node, bystander(node, transport):
        await node.identities.put_peer(friend.peer)
        async with (
            open_session(node.ticket, key=friend.key, transports=[transport]) as session,
            revoked_within_a_second(session),
        ):
            if how == "removed":
                await node.identities.remove_peer("friend")
            elif how == "disabled":
                await node.identities.update_peer(
                    msgspec.structs.replace(friend.peer, enabled=False)
                )
            else:
                other = make_friend("x").peer.fingerprints
                await node.identities.update_peer(
                    msgspec.structs.replace(friend.peer, fingerprints=other)
                )


@asynccontextmanager
async def ended_within_a_second(session: CallSession, **options: Any) -> AsyncGenerator[None]:
    """A call and streams run; the block takes their right away; they end, and nothing else does."""
    async with trio.open_nursery() as nursery:
        errors: list[CallError] = []

        async def note_end(run: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(CallError) as caught:
                await run()
            errors.append(caught.value)

        kinds = (
            partial(session.call, "echo/unary", SLOW, **options),
            partial(_take_all, session, **options),
            partial(_converse, session, **options),
        )
        for kind in kinds:
            nursery.start_soon(note_end, kind)
        async with session.subscribe("services/watch") as versions:
            await anext(versions)
            await session.call("node/ping")
            running = len(session.calling.pending)
            yield
            await eventually(lambda: len(errors) == len(kinds), 1)
            # What is open to everybody goes on.
            assert len(session.calling.pending) == running - len(kinds)
    assert {error.code for error in errors} == {"FORBIDDEN"}
    assert {error.message for error in errors} == {
        "the right to it was taken away: scope 'echo' missing"
    }
    with pytest.raises(CallError, match=r"FORBIDDEN|NOT_FOUND"):
        await session.call("echo/unary", {"message": 1}, **options)
    assert session.close_reason is None


async def test_scopes_that_are_taken_away_end_what_runs_by_them(transport: str) -> None:
    friend = make_friend("friend", "echo", "more")
    async with open_node() as node, bystander(node, transport):
        await node.identities.put_peer(friend.peer)
        async with open_session(node.ticket, key=friend.key, transports=[transport]) as session:
            fewer = msgspec.structs.replace(friend.peer, scopes=("more",))
            async with ended_within_a_second(session):
                await node.identities.update_peer(fewer)


@pytest.mark.slow
async def test_a_command_that_takes_scopes_away(transport: str, tmp_path: Path) -> None:
    friend = make_friend("friend", "echo")
    async with (
        node_with_home(tmp_path, friend) as node,
        bystander(node, transport),
        open_session(node.ticket, key=friend.key, transports=[transport]) as session,
    ):
        home = str(tmp_path / "home")
        async with ended_within_a_second(session):
            await trio.run_process(command("--home", home, "peer", "set", "friend", "--no-scopes"))


async def test_a_file_that_takes_scopes_away(transport: str, tmp_path: Path) -> None:
    friend = make_friend("friend")

    def text(scopes: str) -> str:
        return (
            f'[[peers]]\nname = "friend"\nscopes = [{scopes}]\n'
            f'fingerprints = ["{friend.peer.fingerprints[0]}"]\n'
        )

    home = await make_home(tmp_path, config=text('"echo"'))
    async with (
        serving(home) as node,
        bystander(node, transport),
        open_session(node.ticket, key=friend.key, transports=[transport]) as session,
        ended_within_a_second(session),
    ):
        (home / CONFIG_FILE).write_text(text('"other"'))
        assert node.reload() == []


async def test_a_token_that_may_less_than_before(transport: str) -> None:
    friend = make_friend("friend", "echo")
    async with (
        open_node(peers=[friend.peer]) as node,
        bystander(node, transport),
        open_session(node.ticket, key=friend.key, transports=[transport]) as session,
        trio.open_nursery() as nursery,
    ):
        token = await new_token(node, "echo")
        nursery.start_soon(session.call, "echo/unary", SLOW)
        [kept] = node.identities.api_keys()
        async with ended_within_a_second(session, token=token):
            await node.identities.put_api_key(msgspec.structs.replace(kept, scopes=("other",)))
        assert len(session.calling.pending) == 1  # the one that ran under the key
        nursery.cancel_scope.cancel()


RELAYED = """\
[[re_export]]
peers = ["w1"]
operations = ["echo/**"]
scopes_all = ["echo"]
"""


@asynccontextmanager
async def relayed(
    transport: str, directory: Path
) -> AsyncGenerator[tuple[Node, Node, Friend, CallSession]]:
    """Yield a hub, its worker, and a friend of the hub with a session by which it calls both."""
    friend = make_friend("friend", "echo")
    home = await make_home(directory, friend.peer, config=RELAYED)
    async with (
        serving(home) as hub,
        bystander(hub, transport),
        worker_of(hub, "w1", allows=("echo",)) as worker,
        open_session(hub.ticket, key=friend.key, transports=[transport]) as session,
    ):
        yield hub, worker, friend, session


async def test_a_relay_ends_what_it_passes_on(transport: str, tmp_path: Path) -> None:
    async with relayed(transport, tmp_path) as (hub, worker, friend, session):
        fewer = msgspec.structs.replace(friend.peer, scopes=())
        async with ended_within_a_second(session, peer=("w1",)):
            await eventually(lambda: _calls(worker) == 3)
            await hub.identities.update_peer(fewer)
        await eventually(lambda: _calls(worker) == 0, 1)


async def test_a_worker_ends_what_its_hub_may_not_any_more(transport: str, tmp_path: Path) -> None:
    async with relayed(transport, tmp_path) as (_, worker, _, session):
        [known] = worker.identities.peers()
        async with ended_within_a_second(session, peer=("w1",)):
            await eventually(lambda: _calls(worker) == 3)
            worker.identities.set_config_peers([msgspec.structs.replace(known, scopes=())])


def _calls(node: Node) -> int:
    """Return how many calls run there."""
    return sum(one["calls"] or 0 for one in node.status()["connections"])


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_token_that_is_revoked_ends_its_calls_and_no_other(
    transport: str, how: str
) -> None:
    friend = make_friend("friend", "echo")
    async with (
        open_node(peers=[friend.peer]) as node,
        bystander(node, transport),
        open_session(node.ticket, key=friend.key, transports=[transport]) as session,
        trio.open_nursery() as nursery,
    ):
        token = await new_token(node, "echo")
        nursery.start_soon(session.call, "echo/unary", SLOW)
        ended_calls = []

        async def note_end(run: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(CallError, match="FORBIDDEN: the authorization was revoked"):
                await run()
            ended_calls.append(run)

        nursery.start_soon(note_end, partial(session.call, "echo/unary", SLOW, token=token))
        nursery.start_soon(note_end, partial(_take_all, session, token=token))
        await eventually(lambda: _calls_under_tokens(node) == 2)
        if how == "revoked":
            await node.identities.remove_api_key(token[4:12])
        else:
            [kept] = node.identities.api_keys()
            soon = msgspec.structs.replace(kept, expires_at=wall_clock() + 0.2)
            await node.identities.put_api_key(soon)
        await eventually(lambda: len(ended_calls) == 2, 1.2)
        with pytest.raises(CallError, match="FORBIDDEN"):
            await session.call("node/ping", token=token)
        assert len(session.calling.pending) == 1  # the one that ran under the key
        nursery.cancel_scope.cancel()


def _calls_under_tokens(node: Node) -> int:
    """Return how many calls run there as a token's identity."""
    sessions = node._calls.sessions
    calls = [call for session in sessions for call in session.serving.calls.values()]
    return sum(call.auth_token is not None for call in calls)


async def _take_all(session: CallSession, **options: Any) -> None:
    async with session.subscribe("echo/stream", ENDLESS, **options) as items:
        async for _ in items:
            pass


async def _converse(session: CallSession, **options: Any) -> None:
    async with session.bidi("echo/bidi", **options) as bidi:
        await anext(bidi)


@asynccontextmanager
async def node_with_home(directory: Path, friend: Friend) -> AsyncGenerator[Node]:
    home = directory / "home"
    create_home(home)
    write_key(home, make_friend("node").key)
    async with open_home_identities(home, NodeConfig()) as identities:
        await identities.put_peer(friend.peer)
    async with Node.from_home(home, listen=[Address("127.0.0.1", 0)]) as node:
        yield node


@pytest.mark.slow
async def test_another_process_that_writes_the_store_revokes_too(
    transport: str, tmp_path: Path
) -> None:
    friend = make_friend("friend", "echo")
    async with (
        node_with_home(tmp_path, friend) as node,
        bystander(node, transport),
        open_session(node.ticket, key=friend.key, transports=[transport]) as session,
    ):
        program: list[str | Path] = [sys.executable, "-c", _REMOVE, tmp_path / "home"]
        pipe = subprocess.PIPE
        async with process_running(program, stdin=pipe, stdout=pipe) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with trio.fail_after(60):
                assert await process.stdout.receive_some() == b"."
            async with revoked_within_a_second(session):
                await process.stdin.send_all(b"\n")
                assert await process.wait() == 0


_REMOVE = """
import pathlib, sys, trio
from alknet.core.config import NodeConfig
from alknet.stores.home import open_home_identities

async def main():
    async with open_home_identities(pathlib.Path(sys.argv[1]), NodeConfig()) as identities:
        print(end=".", flush=True)
        sys.stdin.readline()
        await identities.remove_peer("friend")

trio.run(main)
"""


@pytest.mark.slow
async def test_a_store_edited_by_hand_counts_too(transport: str, tmp_path: Path) -> None:
    friend = make_friend("friend", "echo")
    async with (
        node_with_home(tmp_path, friend) as node,
        bystander(node, transport),
        open_session(node.ticket, key=friend.key, transports=[transport]) as session,
    ):
        path = tmp_path / "home" / DATABASE_FILE
        async with revoked_within_a_second(session, within_s=2):  # no bell rings
            await trio.to_thread.run_sync(_edit, path)


def _edit(path: Path) -> None:
    """As the ``sqlite3`` shell would."""
    connection = apsw.Connection(str(path))
    connection.execute("DELETE FROM row WHERE tab = 'peer' AND key = 'friend'")
    connection.close()
