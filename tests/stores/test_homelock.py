"""One node per home, and what is said where its lock cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alknet.errors import Conflict
from alknet.stores.homelock import LOCK_FILE, hold_home

# In a process of its own, for what it may write to files is limited for good.
FULL = """
import resource, sys
from pathlib import Path
from alknet.errors import StoreError
from alknet.stores.homelock import hold_home

resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    with hold_home(Path(sys.argv[1])):
        print("held")
except StoreError as exc:
    print(exc)
"""


def test_the_second_is_told_of_the_first(tmp_path: Path) -> None:
    with hold_home(tmp_path), pytest.raises(Conflict, match=f"process {os.getpid()}"):
        with hold_home(tmp_path):
            pass
    with hold_home(tmp_path):
        pass
    assert (tmp_path / LOCK_FILE).read_bytes() == b""


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"cannot write {tmp_path / LOCK_FILE}: File too large\n"
