"""What a node leaves on disk and in its log: for its user alone, and no secret at all."""

from __future__ import annotations

import base64
import json
import logging
import stat
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from alknet.call.codes import CallError
from alknet.client import open_control_session, open_session
from alknet.core.address import Address
from alknet.node import Node
from alknet.vault.homevault import home_identity
from tests.scenarios.homes import command, process_node
from tests.scenarios.rig import TRANSPORTS, Friend, make_friend

pytestmark = pytest.mark.slow


async def alknet(home: Path, *arguments: str | Path) -> str:
    """Run a command of the CLI; it must succeed."""
    done = await trio.run_process(
        command("--home", str(home), *map(str, arguments)),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def modes(home: Path) -> dict[str, int]:
    return {
        str(path.relative_to(home.parent)): stat.S_IMODE(path.lstat().st_mode)
        for path in (home, *home.rglob("*"))
    }


async def test_a_home_is_for_its_user_alone(tmp_path: Path) -> None:
    home, words = tmp_path / "node", tmp_path / "words"
    await alknet(home, "init", "--words-file", words)
    assert stat.S_IMODE(words.stat().st_mode) == 0o600
    assert len(words.read_text().split()) == 24
    friend = make_friend("friend")
    async with process_node(home) as node:
        await alknet(home, "peer", "add", "friend", friend.peer.fingerprints[0])
        await alknet(home, "token", "create", "robot", "--scope", "echo", "--json")
        found = modes(home)
        assert "node/control.sock" in found
        for name, mode in found.items():
            assert mode & 0o077 == 0, f"{name} has mode {mode:o}"
        assert found["node"] == 0o700
        # A second node on the same home is refused, and the first goes on.
        second = await trio.run_process(
            command("--home", str(home), "up", "--listen", "127.0.0.1:0", "--json"),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        assert second.returncode == 1
        error = json.loads(second.stderr.splitlines()[-1])["error"]
        assert "already runs" in error["message"]
        assert str(node.process.pid) in error["message"]
        async with open_session(node.ticket) as session:
            await session.call("node/ping")


async def test_no_secret_is_in_the_log_of_a_whole_life(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At level debug, libraries included: calls, refusals, crashes, a drain."""
    home, words = tmp_path / "node", tmp_path / "words"
    await alknet(home, "init", "--words-file", words)
    made = json.loads(await alknet(home, "token", "create", "r", "--scope", "echo", "--json"))
    wrong = made["token"][:13] + made["token"][13:][::-1]
    friend = make_friend("friend", "echo")
    caplog.set_level(logging.DEBUG)
    node = Node.from_home(home, listen=[Address("127.0.0.1", 0)])
    async with node:
        await node.identities.put_peer(friend.peer)
        for transport in TRANSPORTS:
            await _live(node, friend, transport, made["token"], wrong)
        async with open_control_session(home) as owner:
            status = bytes(await owner.call("node/status"))
            tasks = bytes(await owner.call("node/tasks"))
        await node.identities.remove_api_key(made["prefix"])
    key = home_identity(home)
    raw = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    state = "".join(path.read_bytes().decode(errors="replace") for path in home.glob("node.db*"))
    text = "".join([*map(_everything, caplog.records), status.decode(), tasks.decode(), state])
    assert "connection.accepted" in text
    for secret in (
        made["token"],
        made["token"].rpartition("_")[2],
        wrong.rpartition("_")[2],
        " ".join(words.read_text().split()[:3]),
        raw.hex(),
        base64.b64encode(raw).decode(),
        repr(raw)[2:-1],
        "PRIVATE KEY",
        "my secret message",
    ):
        assert secret not in text


def _everything(record: logging.LogRecord) -> str:
    return f"{record.getMessage()} {vars(record)} {record.exc_info}\n"


async def _live(node: Node, friend: Friend, transport: str, token: str, wrong: str) -> None:
    async with open_session(node.ticket, key=friend.key, transports=[transport]) as session:
        message = {"message": "my secret message"}
        await session.call("echo/unary", message)
        await session.call("echo/unary", message, token=token)
        for value, given in ((message, wrong), ({"mess": "my secret message"}, None)):
            with pytest.raises(CallError):
                await session.call("echo/unary", value, token=given)
