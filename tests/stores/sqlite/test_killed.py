"""Writers that are killed, again and again: nothing acknowledged is lost.

``make kills`` does 200 rounds; a test run does a few.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from alknet.testing.store_contract.processes import what_was_acknowledged_outlives_kill_9
from tests.contracts.stores import SqliteHarness

ROUNDS = int(os.environ.get("ALKNET_KILLS", "2"))


@pytest.mark.timeout(300 + 10 * ROUNDS)
async def test_nothing_acknowledged_is_lost_however_often_writers_are_killed(
    tmp_path: Path,
) -> None:
    for number in range(ROUNDS):
        home = tmp_path / str(number)
        home.mkdir(mode=0o700)
        await what_was_acknowledged_outlives_kill_9(SqliteHarness(home))
