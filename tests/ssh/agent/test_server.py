"""The agent's socket: whose it is, what it answers, and that clients do not wait on each other."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from alknet.errors import LocalError, Unavailable
from alknet.ssh.agent.proto import FAILURE, AgentKey, encode_keys
from alknet.ssh.agent.server import MAX_CLIENTS, serve_agent

LIST = b"\0\0\0\1\x0b"


class Keys:
    """Keys of this process."""

    def __init__(self) -> None:
        self.keys = [Ed25519PrivateKey.generate() for _ in range(2)]
        self.is_locked = False
        self.waits_for: trio.Event | None = None

    async def public_key(self, index: int) -> bytes:
        if self.is_locked:
            raise Unavailable("the vault is locked")
        return self.keys[index].public_key().public_bytes_raw()

    async def sign(self, index: int, data: bytes) -> bytes:
        if self.waits_for is not None:
            await self.waits_for.wait()
        return self.keys[index].sign(data)

    async def listed(self, count: int) -> bytes:
        keys = [AgentKey(await self.public_key(n), f"alknet:{n}") for n in range(count)]
        return encode_keys(keys)


def string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def sign_request(public_key: bytes, data: bytes) -> bytes:
    blob = string(b"ssh-ed25519") + string(public_key)
    return string(b"\x0d" + string(blob) + string(data) + bytes(4))


async def ask(path: Path, request: bytes) -> bytes:
    """Send, and return the one answer; empty if the agent hung up."""
    async with await trio.open_unix_socket(os.fspath(path)) as stream:
        await stream.send_all(request)
        answer = b""
        while len(answer) < 4 or len(answer) < 4 + int.from_bytes(answer[:4], "big"):
            data = await stream.receive_some()
            if not data:
                return answer
            answer += data
        return answer


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


async def test_keys_are_listed_and_sign(nursery: trio.Nursery, keys: Keys, path: Path) -> None:
    await nursery.start(partial(serve_agent, path, keys, count=2))
    assert await ask(path, LIST) == await keys.listed(2)
    public_key = await keys.public_key(1)
    signature = (await ask(path, sign_request(public_key, b"data")))[-64:]
    Ed25519PublicKey.from_public_bytes(public_key).verify(signature, b"data")
    nursery.cancel_scope.cancel()


async def test_a_key_that_is_not_offered_does_not_sign(
    nursery: trio.Nursery, keys: Keys, path: Path
) -> None:
    await nursery.start(partial(serve_agent, path, keys, count=1))
    assert await ask(path, sign_request(await keys.public_key(1), b"data")) == FAILURE
    nursery.cancel_scope.cancel()


async def test_a_locked_vault_has_no_keys(nursery: trio.Nursery, keys: Keys, path: Path) -> None:
    await nursery.start(partial(serve_agent, path, keys))
    request = sign_request(await keys.public_key(0), b"data")
    keys.is_locked = True
    assert await ask(path, LIST) == encode_keys([])
    assert await ask(path, request) == FAILURE
    keys.is_locked = False
    assert await ask(path, LIST) == await keys.listed(1)
    nursery.cancel_scope.cancel()


async def test_other_requests_fail_and_the_connection_goes_on(
    nursery: trio.Nursery, keys: Keys, path: Path
) -> None:
    await nursery.start(partial(serve_agent, path, keys))
    async with await trio.open_unix_socket(os.fspath(path)) as stream:
        # lock, remove all, extension, add
        for request in (b"\x16" + string(b"pw"), b"\x13", b"\x1b" + string(b"query"), b"\x11"):
            await stream.send_all(string(request))
            assert await stream.receive_some() == FAILURE
        await stream.send_all(LIST)
        assert await stream.receive_some() == await keys.listed(1)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("request_bytes", [b"\xff\xff\xff\xff", string(b"\x0d")])
async def test_who_sends_nonsense_is_hung_up_on(
    nursery: trio.Nursery, keys: Keys, path: Path, request_bytes: bytes
) -> None:
    await nursery.start(partial(serve_agent, path, keys))
    assert await ask(path, request_bytes) == b""
    assert await ask(path, LIST) == await keys.listed(1)
    nursery.cancel_scope.cancel()


async def test_another_user_is_hung_up_on(nursery: trio.Nursery, keys: Keys, path: Path) -> None:
    seen: list[int] = []

    def is_allowed(uid: int) -> bool:
        seen.append(uid)
        return False

    await nursery.start(partial(serve_agent, path, keys, is_allowed=is_allowed))
    with contextlib.suppress(trio.BrokenResourceError):  # it may be gone before the request
        assert await ask(path, LIST) == b""
    assert seen == [os.geteuid()]
    nursery.cancel_scope.cancel()


async def test_one_client_too_many_is_hung_up_on(
    nursery: trio.Nursery, keys: Keys, path: Path
) -> None:
    await nursery.start(serve_agent, path, keys)
    async with contextlib.AsyncExitStack() as idle:
        for _ in range(MAX_CLIENTS):
            stream = await idle.enter_async_context(await trio.open_unix_socket(os.fspath(path)))
            await stream.send_all(LIST)
            await stream.receive_some()  # it is served
        with contextlib.suppress(trio.BrokenResourceError):
            assert await ask(path, LIST) == b""
    await trio.testing.wait_all_tasks_blocked()
    assert await ask(path, LIST) == await keys.listed(1)


async def test_a_client_that_waits_keeps_nobody_waiting(
    nursery: trio.Nursery, keys: Keys, path: Path
) -> None:
    await nursery.start(partial(serve_agent, path, keys))
    keys.waits_for = trio.Event()
    answers = []

    async def wait() -> None:
        answers.append(await ask(path, sign_request(await keys.public_key(0), b"slow")))

    async with trio.open_nursery() as waiting:
        waiting.start_soon(wait)
        assert await ask(path, LIST) == await keys.listed(1)
        assert answers == []
        keys.waits_for.set()
    assert len(answers[0]) > 64
    nursery.cancel_scope.cancel()


async def test_the_socket_is_private_and_goes_with_the_agent(keys: Keys, path: Path) -> None:
    async with trio.open_nursery() as nursery:
        assert await nursery.start(partial(serve_agent, path, keys)) == path
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_a_second_agent_does_not_take_the_place(
    nursery: trio.Nursery, keys: Keys, path: Path
) -> None:
    await nursery.start(partial(serve_agent, path, keys))
    with pytest.raises(LocalError, match="already"):
        await serve_agent(path, keys)
    assert await ask(path, LIST) == await keys.listed(1)
    nursery.cancel_scope.cancel()


async def test_what_a_dead_agent_left_is_cleared_away_and_a_file_is_not(
    nursery: trio.Nursery, keys: Keys, path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    await nursery.start(partial(serve_agent, path, keys))
    assert await ask(path, LIST) == await keys.listed(1)
    other = path.with_name("file")
    other.write_bytes(b"mine")
    with pytest.raises(LocalError, match="in the way"):
        await serve_agent(other, keys)
    with pytest.raises(LocalError, match="--socket"):
        await serve_agent(path.with_name("x" * 120), keys)
    nursery.cancel_scope.cancel()
