"""What every store promises, run on those that need no server."""

from __future__ import annotations

from pathlib import Path

import pytest

from alknet.stores.sqlite import follower
from alknet.testing.store_contract import (
    PROCESS_CHECKS,
    STORE_CHECKS,
    StoreCheck,
    StoreHarness,
)
from tests.contracts.stores import MemoryHarness, SqliteHarness


@pytest.fixture(params=["memory", "sqlite"])
def harness(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> StoreHarness:
    if request.param == "memory":
        return MemoryHarness()
    # What a look without a bell finds is found soon enough for a test.
    monkeypatch.setattr(follower, "LOOK_INTERVAL_S", 0.05)
    return SqliteHarness(tmp_path)


@pytest.mark.parametrize("check", STORE_CHECKS, ids=lambda check: check.__name__)
async def test_a_store_keeps_its_promises(check: StoreCheck, harness: StoreHarness) -> None:
    await check(harness)


@pytest.mark.slow
@pytest.mark.parametrize("check", PROCESS_CHECKS, ids=lambda check: check.__name__)
async def test_processes_share_a_database(check: StoreCheck, tmp_path: Path) -> None:
    await check(SqliteHarness(tmp_path))
