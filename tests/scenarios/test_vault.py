"""The vault of a running node, as its owner reaches it over the control socket."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call.codes import CallError
from alknet.call.session import CallSession
from alknet.client import open_control_session, open_session
from alknet.core.address import Address
from alknet.core.nodeid import NodeId
from alknet.core.vault_pipe import offer_entropy
from alknet.core.vault_service import verify
from alknet.node import Node
from alknet.stores.credentials import Credentials
from alknet.vault.homevault import create_home_vault, home_vault
from alknet.vault.keyfile import create_home
from alknet.vault.locked import LockedBuffer
from alknet.vault.vault import create_vault
from alknet.vault.vaultfile import VaultFile
from tests.vault.oldhome import write_key

ENTROPY = bytes(range(32))
LOOPBACK = [Address("127.0.0.1", 0)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "h"
    create_home(home)
    vault, _ = create_home_vault(home, LockedBuffer.of(ENTROPY), now=1.0)
    vault.lock()
    return home


@asynccontextmanager
async def owner(home: Path) -> AsyncGenerator[tuple[Node, CallSession]]:
    async with Node.from_home(home, listen=LOOPBACK) as node:
        async with open_control_session(home) as session:
            yield node, session


async def call(session: CallSession, name: str, /, **values: Any) -> Any:
    return msgspec.json.decode(await session.call(f"vault/{name}", values))


def text(value: bytes) -> str:
    return base64.b64encode(value).decode()


async def refused(session: CallSession, name: str, /, **values: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        await call(session, name, **values)
    return caught.value


async def test_the_owner_keeps_secrets(home: Path) -> None:
    async with owner(home) as (_, session):
        assert await call(session, "put", path="mail/smtp", value=text(b"one")) == {"version": 1}
        assert await call(session, "get", path="mail/smtp") == {"value": text(b"one")}
        assert (await refused(session, "get", path="mail/imap")).code == "NOT_FOUND"
        wrong = await refused(session, "put", path="Mail", value="")
        assert (wrong.code, "no path of a secret" in wrong.message) == ("INVALID_INPUT", True)
        conflict = await refused(session, "put", path="mail/smtp", value="", expect=0)
        assert conflict.code == "CONFLICT"
        listed = await call(session, "list", prefix="mail/")
        assert [secret["path"] for secret in listed["secrets"]] == ["mail/smtp"]
        assert await call(session, "rotate") == {"version": 3}
        assert await call(session, "rewrap", retire=True) == {"count": 1}
        assert await call(session, "check") == {"damaged": []}
        await call(session, "remove", path="mail/smtp")
        assert (await refused(session, "get", path="mail/smtp")).code == "NOT_FOUND"


async def test_credentials_of_the_store_follow_before_old_keys_are_retired(
    home: Path, tmp_path: Path
) -> None:
    other = create_vault(
        VaultFile(tmp_path), LockedBuffer.random(32), lambda *_: [], now=1.0
    )  # of a node that shares the store
    foreign = other.encrypt("mail/theirs", b"x")
    async with owner(home) as (node, session):
        sealed = await call(session, "encrypt", name="mail/smtp", value=text(b"secret"))
        await node.sealed.put("mail", "smtp", sealed["sealed"])
        await node.sealed.put("mail", "theirs", foreign)
        await call(session, "rotate")
        assert await call(session, "rewrap", retire=True) == {"count": 1}
        anew = node.sealed.get("mail", "smtp")
        opened = await call(session, "decrypt", name="mail/smtp", sealed=anew)
        assert opened == {"value": text(b"secret")}
        assert (await refused(session, "decrypt", name="mail/smtp", **sealed)).code == "NOT_FOUND"
        assert node.sealed.get("mail", "theirs") == foreign
        assert await call(session, "rewrap", retire=True) == {"count": 0}


async def test_a_key_version_that_another_begins_meanwhile_retires_none_that_is_in_use(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with owner(home) as (node, session):
        sealed = await call(session, "encrypt", name="mail/smtp", value=text(b"secret"))
        await node.sealed.put("mail", "smtp", sealed["sealed"])
        await call(session, "rotate")
        replaced = Credentials._replaced

        async def before_another_rotates(self: Credentials, *given: Any) -> bool:
            monkeypatch.undo()
            done = await replaced(self, *given)
            assert await call(session, "rotate") == {"version": 4}
            return done

        monkeypatch.setattr(Credentials, "_replaced", before_another_rotates)
        assert await call(session, "rewrap", retire=True) == {"count": 1}
        anew = node.sealed.get("mail", "smtp")
        opened = await call(session, "decrypt", name="mail/smtp", sealed=anew)
        assert opened == {"value": text(b"secret")}
        assert (await refused(session, "decrypt", name="mail/smtp", **sealed)).code == "NOT_FOUND"


async def test_locked_the_node_keeps_its_identity_and_tells_no_secret(home: Path) -> None:
    async with owner(home) as (node, session):
        await call(session, "put", path="a", value="")
        assert not (await call(session, "lock"))["unlocked"]
        assert (await refused(session, "get", path="a")).code == "UNAVAILABLE"
        async with open_session(
            node.id, addresses=[Address.parse(node.listening[0].address)]
        ) as guest:
            pong = msgspec.json.decode(await guest.call("node/ping", {}))
        assert pong["id"] == str(node.id)


async def test_a_pipe_unlocks_it(home: Path) -> None:
    async with owner(home) as (_, session):
        await call(session, "lock")
        with offer_entropy(home, memoryview(ENTROPY)) as pipe:
            assert (home / pipe).stat().st_mode & 0o777 == 0o600
            assert (await call(session, "unlock", pipe=pipe))["unlocked"]
        assert not list(home.glob("unlock.*"))
        await call(session, "list")


async def test_what_is_no_such_pipe_unlocks_nothing(home: Path) -> None:
    async with owner(home) as (_, session):
        await call(session, "lock")
        name = f"unlock.{'0' * 16}"
        assert (await refused(session, "unlock", pipe=name)).code == "NOT_FOUND"
        assert (await refused(session, "unlock", pipe="../x")).code == "INVALID_INPUT"
        (home / name).write_bytes(ENTROPY)
        assert "no pipe" in (await refused(session, "unlock", pipe=name)).message
        (home / name).unlink()
        with offer_entropy(home, memoryview(bytes(32))) as pipe:
            assert (await refused(session, "unlock", pipe=pipe)).code == "DAMAGED"
        os.mkfifo(home / name, 0o600)
        assert (await refused(session, "unlock", pipe=name)).code == "UNAVAILABLE"


async def test_pipes_of_killed_commands_are_removed(home: Path) -> None:
    os.mkfifo(home / f"unlock.{'0' * 16}", 0o600)
    async with owner(home):
        assert not list(home.glob("unlock.*"))


async def test_nobody_from_outside_reaches_it(home: Path) -> None:
    async with owner(home) as (node, _):
        address = Address.parse(node.listening[0].address)
        async with open_session(node.id, addresses=[address]) as guest:
            for name in ("status", "get", "sign", "unlock"):
                assert (await refused(guest, name, path="a")).code in {"FORBIDDEN", "NOT_FOUND"}


async def test_keys_are_used_and_stay(home: Path) -> None:
    async with owner(home) as (_, session):
        made = await call(session, "sign", purpose="release", data=text(b"data"))
        public = base64.b64decode((await call(session, "derive", role="signing"))["value"])
        assert verify(public, "release", b"data", base64.b64decode(made["value"]))
        sealed = await call(session, "encrypt", name="n", value=text(b"secret"))
        opened = await call(session, "decrypt", name="n", sealed=sealed["sealed"])
        assert opened == {"value": text(b"secret")}
        assert (await refused(session, "decrypt", name="m", sealed=sealed["sealed"])).code == (
            "DAMAGED"
        )
        assert (await refused(session, "decrypt", name="n", sealed="x")).code == "INVALID_INPUT"
        assert (await refused(session, "derive", role="hmac")).code == "INVALID_INPUT"


async def test_another_process_s_writes_are_seen_at_once(home: Path) -> None:
    async with owner(home) as (node, session):
        assert node.vault is not None
        other = home_vault(home, now=1.0)
        other.put("a", b"1", now=1.0)
        assert await call(session, "get", path="a") == {"value": text(b"1")}
        await call(session, "put", path="b", value="")
        assert [info.path for info in other.secrets()] == ["a", "b"]


async def test_an_idle_vault_locks_itself_and_an_edit_changes_when(
    home: Path, autojump_clock: trio.testing.MockClock
) -> None:
    (home / "node.toml").write_text("[vault]\nlock_after_s = 60\n")
    async with Node.from_home(home, listen=LOOPBACK) as node:
        assert node.vault is not None
        await trio.sleep(50)
        assert node.vault.is_unlocked
        (home / "node.toml").write_text("[vault]\nlock_after_s = 100\n")
        assert node.reload() == []
        await trio.sleep(40)
        assert node.vault.is_unlocked
        await trio.sleep(20)
        await node.vault.reread()  # after what its thread does now
        assert not node.vault.is_unlocked


async def test_a_home_from_before_there_were_vaults_gets_one(tmp_path: Path) -> None:
    home = tmp_path / "h"
    create_home(home)
    key = Ed25519PrivateKey.generate()
    write_key(home, key)
    for _ in range(2):
        async with owner(home) as (node, session):
            assert node.id == NodeId.from_public_key(key.public_key())
            secrets = await call(session, "list")
            assert [secret["path"] for secret in secrets["secrets"]] == ["node/identity"]
            refusal = await refused(session, "get", path="node/identity")
            assert "neither shown" in refusal.message
    assert (home / "backup" / "node.key").exists()
    assert not (home / "node.key").exists()
