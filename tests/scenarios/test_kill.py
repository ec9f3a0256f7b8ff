"""kill -9 of either side amid a call: the other side finds out, and holds nothing for the dead."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.session import CallSession
from alknet.client import open_session
from alknet.core.identity import NodeId, Peer
from alknet.core.limits import Limits
from alknet.testing.nodes import open_node
from alknet.vault.keyfile import read_key
from tests.scenarios.homes import command, make_home, process_node, process_running
from tests.scenarios.rig import bystander, eventually, make_friend

# Time-outs of idle connections, far below the defaults; the keep-alive follows. A machine that is
# busy lets a process stand still for a second or two, and then nothing has been idle.
IDLE_S, KEEP_ALIVE_S = 3.0, 0.5
SHORT = Limits(idle_timeout_s=IDLE_S, keep_alive_s=KEEP_ALIVE_S)
SHORT_TOML = f"[limits]\nidle_timeout_s = {IDLE_S}\nkeep_alive_s = {KEEP_ALIVE_S}\n"
# For a machine on which even a killed process takes its time to end; below the default of 30 s.
WITHIN_S = 20.0

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("transport", ["quic", "tcp"])]


async def test_a_killed_node_ends_its_clients_calls(transport: str, tmp_path: Path) -> None:
    friend = make_friend("friend", "echo")
    home = await make_home(tmp_path, friend.peer, config=SHORT_TOML)
    async with (
        open_node() as another,
        bystander(another, transport),
        process_node(home) as node,
        open_session(node.ticket, key=friend.key, transports=[transport], limits=SHORT) as session,
        trio.open_nursery() as nursery,
    ):
        errors: list[CallError] = []

        async def call() -> None:
            with pytest.raises(CallError) as caught:
                await session.call("echo/unary", {"message": 1, "delay_ms": 60_000})
            errors.append(caught.value)

        async def subscribe() -> None:
            with pytest.raises(CallError) as caught:
                await _subscribe(session)
            errors.append(caught.value)

        nursery.start_soon(call)
        nursery.start_soon(subscribe)
        await session.call("node/ping")
        await trio.sleep(1.5 * IDLE_S)  # keep-alives hold it, however idle it is
        assert not errors
        node.kill()
        await eventually(lambda: len(errors) == 2, WITHIN_S)
        assert [error.code for error in errors] == ["UNAVAILABLE"] * 2
        assert all(error.retryable for error in errors)
        with pytest.raises(CallError, match="UNAVAILABLE"):
            await session.call("node/ping")
        assert not session.calling.pending


async def _subscribe(session: CallSession) -> None:
    async with session.subscribe("echo/stream", {"count": 9, "interval_ms": 60_000}) as items:
        async for _ in items:
            pass


async def test_a_killed_client_ends_its_calls_on_the_node(transport: str, tmp_path: Path) -> None:
    home = await make_home(tmp_path)
    fingerprint = NodeId.from_public_key(read_key(home).public_key()).fingerprint
    caller = Peer(name="caller", fingerprints=(fingerprint,), scopes=("echo",))
    async with open_node(limits=SHORT, peers=[caller]) as node, bystander(node, transport):
        sessions = node._calls.sessions

        def running() -> int:
            calls = [call for session in sessions for call in session.serving.calls.values()]
            return sum(call.identity.id == "peer:caller" for call in calls)

        arguments = command(
            *("--home", str(home), "call", str(node.ticket), "echo/unary"),
            '{"message":1,"delay_ms":60000}',
            *("--transport", transport, "--json"),
        )
        async with process_running(arguments, stdout=subprocess.DEVNULL) as process:
            await eventually(lambda: running() == 1, within_s=20)
            await trio.sleep(1.5 * IDLE_S)
            assert running() == 1
            process.kill()
            await eventually(lambda: running() == 0, within_s=WITHIN_S)
            await eventually(lambda: len(node.endpoint.connections()) == 1)
