"""What is done through a running node stands in its audit log, under who did it."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.session import CallSession
from alknet.client import open_control_session
from alknet.core.home import CONFIG_FILE
from alknet.core.vault_pipe import offer_entropy
from alknet.node import Node
from alknet.stores.home import open_home_identities
from alknet.stores.tables import AuditRow
from alknet.vault.homevault import open_home_vault, what_unlocks
from alknet.vault.unlock import find_entropy
from tests.scenarios.homes import make_home, serving


async def test_the_vault_and_the_configuration_leave_rows_without_a_secret(tmp_path: Path) -> None:
    home = await make_home(tmp_path)
    async with serving(home) as node:
        async with open_control_session(home) as owner:
            secret = {"path": "db/password", "value": "aHVudGVyMg=="}
            await owner.call("vault/put", secret)
            await owner.call("vault/list", {})
            await owner.call("vault/get", {"path": "db/password"})
        await trio.Path(home / CONFIG_FILE).write_text("[limits]\nframe_bytes = 1000000\n")
        rows: list[AuditRow] = []
        with trio.fail_after(60):
            while len(rows) < 3:
                await trio.sleep(0.05)
                rows = await node.identities.audit.newest(10)
    assert [(row.who, row.action, row.target) for row in rows] == [
        ("owner", "vault.put", "db/password"),
        ("owner", "vault.get", "db/password"),
        ("owner", "config.change", "limits.frame_bytes"),
    ]
    assert b"hunter2" not in msgspec.json.encode(rows)
    assert b"aHVudGVyMg" not in msgspec.json.encode(rows)


SECRET = base64.b64encode(b"hunter2").decode()


async def test_uses_of_keys_leave_rows_with_what_for_and_no_secret(tmp_path: Path) -> None:
    home = await make_home(tmp_path)
    async with serving(home) as node, open_control_session(home) as owner:
        sealed = await owner.call("vault/encrypt", {"name": "mail", "value": SECRET})
        opened: dict[str, object] = {"name": "mail", **msgspec.json.decode(sealed)}
        signed: dict[str, object] = {"purpose": "release", "data": SECRET}
        uses: list[tuple[str, dict[str, object]]] = [
            ("decrypt", opened),
            ("decrypt", opened),
            ("datakey", {"name": "bulk"}),
            ("sign", signed),
            ("sign", {**signed, "key": 2}),
            ("hmac", signed),
            ("ssh-sign", {"data": SECRET}),
            ("x25519", {"public_key": base64.b64encode(bytes([9, *bytes(31)])).decode()}),
        ]
        said = [await owner.call(f"vault/{name}", given) for name, given in uses]
        await owner.call("vault/derive", {"role": "signing"})
        rows = await node.identities.audit.newest(None)
    assert [(row.who, row.action, row.target, row.details) for row in rows] == [
        ("owner", "vault.decrypt", "mail", {}),
        ("owner", "vault.datakey", "bulk", {}),
        ("owner", "vault.sign", "release", {"key": "0"}),
        ("owner", "vault.sign", "release", {"key": "2"}),
        ("owner", "vault.hmac", "release", {"key": "0"}),
        ("owner", "vault.ssh-sign", "", {"key": "0"}),
        ("owner", "vault.x25519", "", {"key": "0"}),
    ]
    assert_no_secret(
        rows, SECRET, "hunter2", *(bytes(answer).decode().split('"')[3] for answer in said)
    )
    # What was the same was counted, and told of when the node stopped.
    (told,) = (await rows_in(home))[len(rows) :]
    assert (told.action, told.target, told.details) == ("vault.decrypt", "mail", {"repeated": "1"})


async def test_what_failed_leaves_rows_with_why(tmp_path: Path) -> None:
    home = await make_home(tmp_path)
    async with serving(home) as node, open_control_session(home) as owner:
        await refused(owner, "get", {"path": "db/password"})
        await refused(owner, "get", {"path": "Hunter2 here!"})
        await refused(owner, "decrypt", {"name": "mail", "sealed": SECRET})
        await owner.call("vault/lock", {})
        for _ in range(50):
            await refused(owner, "sign", {"purpose": "release", "data": SECRET})
        with offer_entropy(home, memoryview(bytes(32))) as pipe:
            await refused(owner, "unlock", {"pipe": pipe, "by": "words"})
        rows = await node.identities.audit.newest(None)
    assert [(row.action, row.target, row.details) for row in rows] == [
        ("vault.get.failed", "db/password", {"code": "NOT_FOUND"}),
        ("vault.get.failed", "", {"code": "NOT_FOUND"}),
        ("vault.decrypt.failed", "mail", {"code": "INVALID_INPUT"}),
        ("vault.lock", "", {}),
        ("vault.sign.failed", "release", {"key": "0", "code": "UNAVAILABLE"}),
        ("vault.unlock.failed", "", {"by": "words", "code": "DAMAGED"}),
    ]
    assert_no_secret(rows, SECRET, "unter2")
    assert (await rows_in(home))[-1].details["repeated"] == "49"


async def test_who_has_unlocked_it_stands_there_and_that_it_locked_itself(tmp_path: Path) -> None:
    home = await make_home(tmp_path, config="[vault]\nlock_after_s = 3600\n")
    async with serving(home) as node, open_control_session(home) as owner:
        assert node.vault is not None
        node.vault.lock_after(0.001)
        rows: list[AuditRow] = []
        with trio.fail_after(60):
            while not rows:
                await trio.sleep(0.02)
                rows = await node.identities.audit.newest(None)
        assert [(row.action, row.details) for row in rows] == [("vault.lock", {"why": "idle"})]
        node.vault.lock_after(None)
        entropy = entropy_of(home)
        with offer_entropy(home, memoryview(entropy)) as pipe:
            await owner.call("vault/unlock", {"pipe": pipe, "by": "key-file"})
        (unlocked,) = await node.identities.audit.newest(1)
    assert (unlocked.action, unlocked.details) == ("vault.unlock", {"by": "key-file"})
    assert_no_secret([unlocked], entropy.hex(), base64.b64encode(entropy).decode())


async def refused(owner: CallSession, name: str, given: dict[str, object]) -> None:
    with pytest.raises(CallError):
        await owner.call(f"vault/{name}", given)


async def rows_in(home: Path) -> list[AuditRow]:
    async with open_home_identities(home, Node().config) as identities:
        assert (await identities.audit.verify()).broken_at is None
        return await identities.audit.newest(None)


def entropy_of(home: Path) -> bytes:
    vault = open_home_vault(home)
    with find_entropy(vault.header, what_unlocks(home)) as entropy:
        return bytes(entropy.view)


def assert_no_secret(rows: list[AuditRow], *secrets: str) -> None:
    written = msgspec.json.encode(rows).decode()
    assert [secret for secret in secrets if secret in written] == []
