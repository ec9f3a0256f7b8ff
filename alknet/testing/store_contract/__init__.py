"""What every store engine promises, as checks to run on it.

An engine's tests give a `StoreHarness` and run each of `STORE_CHECKS` on a fresh one::

    @pytest.mark.parametrize("check", STORE_CHECKS, ids=lambda check: check.__name__)
    async def test_my_store(check: StoreCheck, harness: MyHarness) -> None:
        await check(harness)

`PROCESS_CHECKS` do the same for engines whose data other processes can open; they start some.
"""

from alknet.testing.store_contract.following import FOLLOWING_CHECKS
from alknet.testing.store_contract.harness import (
    LOG,
    NOTES,
    TABLES,
    Line,
    Note,
    StoreCheck,
    StoreHarness,
)
from alknet.testing.store_contract.processes import PROCESS_CHECKS
from alknet.testing.store_contract.rows import ROW_CHECKS
from alknet.testing.store_contract.writers import WRITER_CHECKS

__all__ = [
    "LOG",
    "NOTES",
    "PROCESS_CHECKS",
    "STORE_CHECKS",
    "TABLES",
    "Line",
    "Note",
    "StoreCheck",
    "StoreHarness",
]

STORE_CHECKS: tuple[StoreCheck, ...] = (*ROW_CHECKS, *WRITER_CHECKS, *FOLLOWING_CHECKS)
