"""The collector is calmed in a node's own process, and in no other."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
import alknet.node, alknet.cli.up, alknet.core.collector
assert gc.get_threshold() == (700, 10, 10), gc.get_threshold()
assert gc.get_freeze_count() == 0
alknet.core.collector.calm_collector()
print(*gc.get_threshold(), gc.get_freeze_count() > 10_000)
"""


def test_importing_changes_nothing_and_calming_sets_what_is_there_aside() -> None:
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, check=True, text=True
    )
    assert out.stdout.split() == ["50000", "20", "100", "True"]
