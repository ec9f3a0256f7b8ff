"""Workers behind routers of the kernel: the hub has no route to them, and calls `any` of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop.programs import find
from tests.interop.test_nat import PREFIXES


@pytest.mark.interop
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_calls_of_a_hub_outlive_what_the_routers_of_its_workers_forget(tmp_path: Path) -> None:
    unshare = find("unshare")
    for program in ("nsenter", "ip", "nft"):
        find(program, "/usr/sbin", "/sbin")
    for prefix in ([unshare, *options] for options in PREFIXES):
        if subprocess.run([*prefix, "true"], check=False).returncode == 0:
            break
    else:
        pytest.fail("this system lets us make no network namespace")
    command = [*prefix, sys.executable, "-m", "tests.scenarios.nat", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
