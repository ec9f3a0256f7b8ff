"""What is done through a running node stands in its audit log, under who did it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import trio

from alknet.client import open_control_session
from alknet.core.home import CONFIG_FILE
from alknet.stores.tables import AuditRow
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
