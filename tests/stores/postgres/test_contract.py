"""What every store promises, in PostgreSQL."""

from __future__ import annotations

import pytest

from alknet.testing.store_contract import PROCESS_CHECKS, STORE_CHECKS, StoreCheck
from tests.stores.postgres.harness import PostgresHarness


@pytest.mark.interop
@pytest.mark.parametrize(
    "check", [*STORE_CHECKS, *PROCESS_CHECKS], ids=lambda check: check.__name__
)
async def test_a_store_keeps_its_promises(check: StoreCheck, harness: PostgresHarness) -> None:
    await check(harness)
