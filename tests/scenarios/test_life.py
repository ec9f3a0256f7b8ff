"""The life of a node: reloads, drains, crashes of what it serves."""

from __future__ import annotations

import logging
import re
import signal
import ssl
from pathlib import Path

import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.operations import operation, public
from alknet.client import connect, open_session
from alknet.core.address import Address
from alknet.core.contracts import CloseCode, Connection
from alknet.core.endpoint.dial import DialError
from alknet.core.home import CONFIG_FILE
from alknet.core.limits import Limits
from alknet.errors import Conflict
from alknet.node import Node
from alknet.testing.nodes import open_node, open_node_pair
from tests.core.endpoint_kit import Handler, ask, echo
from tests.scenarios.homes import LOOPBACK, make_home, serving, signal_self
from tests.scenarios.rig import (
    TRANSPORTS,
    Friend,
    bystander,
    ended,
    eventually,
    make_friend,
    raw_caller,
)

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)

SLOW = {"message": 1, "delay_ms": 60_000}
# A drain that lasts far longer than a busy machine needs for one that does not.
PATIENT = Limits(drain_timeout_s=60.0)
# A file is read, and what has changed is written down: a disk may take its time.
RELOADED_WITHIN_S = 20.0


def peer_table(friend: Friend, *scopes: str) -> str:
    return (
        f'[[peers]]\nname = "{friend.peer.name}"\nid = "{friend.peer.fingerprints[0]}"\n'
        f"scopes = {list(scopes)}\n"
    )


# Reload


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGHUP", "edit"])
async def test_a_reload_takes_over_what_changed_and_drops_no_session(
    transport: str, how: str, tmp_path: Path
) -> None:
    old, new = make_friend("old"), make_friend("new")
    home = await make_home(tmp_path, config=peer_table(old, "echo"))
    async with serving(home) as node, bystander(node, transport):
        async with (
            open_session(node.ticket, key=old.key, transports=[transport]) as session,
            open_session(node.ticket, key=new.key, transports=[transport]) as stranger,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(session.call, "echo/unary", SLOW)
            await session.call("echo/unary", {"message": 1})
            (home / CONFIG_FILE).write_text(
                "[limits]\nconnections_per_address = 7\n"
                + peer_table(old, "echo")
                + peer_table(new, "echo")
            )
            if how == "SIGHUP":
                signal_self(signal.SIGHUP)
            await eventually(lambda: node.identities.peer("new") is not None, RELOADED_WITHIN_S)
            assert node.endpoint.limits.connections_per_address == 7
            await session.call("echo/unary", {"message": 2})
            assert session.close_reason is stranger.close_reason is None
            # Who was a stranger has become a peer, on the connection that it had.
            await stranger.call("echo/unary", {"message": 3})
            nursery.cancel_scope.cancel()


async def test_a_peer_taken_out_of_the_file_is_out(transport: str, tmp_path: Path) -> None:
    old = make_friend("old")
    home = await make_home(tmp_path, config=peer_table(old, "echo"))
    async with serving(home) as node, bystander(node, transport):
        async with open_session(node.ticket, key=old.key, transports=[transport]) as session:
            await session.call("echo/unary", {"message": 1})
            (home / CONFIG_FILE).write_text("")
            signal_self(signal.SIGHUP)
            assert (await ended(session, RELOADED_WITHIN_S)).code == CloseCode.REVOKED


async def test_a_bad_file_changes_nothing_and_says_why(
    transport: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = make_friend("old")
    home = await make_home(tmp_path, config=peer_table(old, "echo"))
    async with serving(home) as node, bystander(node, transport):
        async with open_session(node.ticket, key=old.key, transports=[transport]) as session:
            (home / CONFIG_FILE).write_text("[limits]\nidle_timeout = 3\n")
            signal_self(signal.SIGHUP)
            await eventually(lambda: "config.reload_failed" in caplog.text, RELOADED_WITHIN_S)
            (record,) = [r for r in caplog.records if r.getMessage() == "config.reload_failed"]
            assert "idle_timeout" in vars(record)["error"]
            await session.call("echo/unary", {"message": 1})
    assert node.identities.peer("old") is not None


# Drain


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
async def test_a_drain_lets_running_calls_finish_and_takes_no_more(
    transport: str, number: signal.Signals, tmp_path: Path
) -> None:
    friend = make_friend("friend", "echo")
    home = await make_home(tmp_path, friend.peer)
    async with serving(home) as node:
        async with open_session(node.ticket, key=friend.key, transports=[transport]) as session:
            async with session.upload("echo/upload") as upload:
                await upload.send("begun")
                await eventually(lambda: node.status()["calls"] == 1)
                signal_self(number)
                await node.endpoint.draining.wait()
                await trio.sleep(0.05)
                with pytest.raises(CallError) as caught:
                    await session.call("node/ping")
                assert caught.value.code == "UNAVAILABLE"
                assert caught.value.retryable
                with pytest.raises((DialError, CallError)):
                    await _ping_anew(node, transport)
                await upload.send("done")
                assert bytes(await upload.finish()) == b'{"count":2}'
            assert (await ended(session)).code == CloseCode.SHUTDOWN


async def _ping_anew(node: Node, transport: str) -> None:
    limits = Limits(dial_timeout_s=0.5)
    async with open_session(node.ticket, transports=[transport], limits=limits) as session:
        await session.call("node/ping", timeout_s=0.5)


async def test_a_second_signal_hurries(transport: str, tmp_path: Path) -> None:
    friend = make_friend("friend", "echo")
    home = await make_home(tmp_path, friend.peer, config="[limits]\ndrain_timeout_s = 60.0\n")
    with trio.fail_after(50):
        async with serving(home) as node, trio.open_nursery() as nursery:
            async with open_session(node.ticket, key=friend.key, transports=[transport]) as session:

                async def call() -> None:
                    with pytest.raises(CallError) as caught:
                        await session.call("echo/unary", SLOW)
                    assert caught.value.code == "UNAVAILABLE"

                nursery.start_soon(call)
                await session.call("node/ping")
                signal_self(signal.SIGTERM)
                await node.endpoint.draining.wait()
                await trio.testing.wait_all_tasks_blocked(0.02)
                assert session.calling.pending
                signal_self(signal.SIGTERM)
                assert (await ended(session)).code == CloseCode.SHUTDOWN


async def test_idle_connections_do_not_hold_up_a_drain(transport: str) -> None:
    friend = make_friend("friend", "echo")
    async with trio.open_nursery() as nursery:
        async with open_node(peers=[friend.peer], limits=PATIENT) as node:

            async def idle_peer() -> None:
                async with open_session(
                    node.ticket, key=friend.key, transports=[transport]
                ) as session:
                    await ended(session, within_s=30)

            nursery.start_soon(idle_peer)
            nursery.start_soon(_idle_browser, node)
            await eventually(lambda: len(node.endpoint.connections()) == 2)
            began = trio.current_time()
        assert trio.current_time() - began < 30  # of the minute of a drain


async def _idle_browser(node: Node) -> None:
    """Keep a connection open for a request that does not come."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    address = node.ticket.addresses[0]
    tcp = await trio.open_tcp_stream(address.host, address.port)
    async with trio.SSLStream(tcp, context, https_compatible=True) as stream:
        assert await stream.receive_some() == b""


# Crashes


async def test_a_crash_ends_one_connection_and_is_logged_once(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def crash(connection: Connection) -> None:
        stream = await connection.accept_stream()
        await stream.receive_some()
        raise KeyError("the password is swordfish")

    handlers = [Handler(crash, alpns=["crash/1"]), Handler(echo, alpns=["echo/1"])]
    async with open_node(handlers=handlers) as node, bystander(node, transport):
        async with (
            connect(node.ticket, alpn="echo/1", transports=[transport]) as other,
            connect(node.ticket, alpn="crash/1", transports=[transport]) as connection,
        ):
            stream = await connection.open_stream()
            await stream.send_all(b"now")
            with trio.fail_after(15):
                reason = await connection.wait_closed()
            assert await ask(other) == b"ping"
    records = [r for r in caplog.records if r.levelno >= logging.ERROR]
    (record,) = records
    assert record.getMessage() == "handler.crashed"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)
    correlation_id = vars(record)["correlation_id"]
    assert re.fullmatch("[0-9a-f]{16}", correlation_id)
    if connection.carrier.close_code:
        assert reason.code == CloseCode.HANDLER_ERROR
        assert reason.reason == f"correlation id {correlation_id}"
    assert "swordfish" not in reason.reason


@operation("boom/now", access=public())
async def boom() -> None:
    """Crash."""
    raise RuntimeError("the password is swordfish")


async def test_a_crash_of_an_operation_ends_one_call_and_is_logged_once(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        open_node(operations=[boom]) as node,
        bystander(node, transport),
        open_session(node.ticket, transports=[transport]) as session,
    ):
        with pytest.raises(CallError) as caught:
            await session.call("boom/now")
        assert caught.value.code == "INTERNAL"
        assert "swordfish" not in str(caught.value) + str(caught.value.details)
        await session.call("node/ping")
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert vars(record)["correlation_id"] == caught.value.correlation_id
    assert record.exc_info is not None
    assert "swordfish" in str(record.exc_info[1])


# Two nodes


async def test_two_nodes_call_each_other_at_once(transport: str) -> None:
    async with open_node_pair() as pair:
        right_as_peer = open_session(
            pair.left.ticket, key=pair.right.credentials.key, transports=[transport]
        )
        async with pair.session(transports=[transport]) as left, right_as_peer as right:
            for session, name in ((left, "peer:left"), (right, "peer:right")):
                assert name.encode() in bytes(await session.call("node/whoami"))


async def test_a_second_node_on_one_home_is_refused_and_the_first_goes_on(
    transport: str, tmp_path: Path
) -> None:
    home = await make_home(tmp_path)
    async with serving(home) as node, bystander(node, transport):
        with pytest.raises(Conflict, match="already runs"):
            async with Node.from_home(home, listen=LOOPBACK):
                pass
    async with Node.from_home(home, listen=LOOPBACK):  # free again
        pass


async def test_the_connection_of_a_raw_peer_is_listed_and_gone(transport: str) -> None:
    async with open_node() as node:
        async with raw_caller(node, transport) as caller:
            await caller.request("node/ping")
            await caller.answer()
            (entry,) = node.endpoint.connections()
            assert (entry.carrier, entry.identity) == (transport, "anonymous")
            assert Address.parse(entry.address).host == "127.0.0.1"
        await eventually(lambda: not node.endpoint.connections())
