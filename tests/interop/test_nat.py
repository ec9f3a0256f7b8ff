"""A worker behind a router that translates addresses: the hub has no route to it, and calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop.programs import find

# To be root of a namespace of our own, or to make one of the network as root of all.
PREFIXES = (["-rn"], ["-n"])


@pytest.mark.interop
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hub_calls_a_worker_that_it_has_no_route_to(tmp_path: Path) -> None:
    unshare = find("unshare")
    find("nsenter")
    find("ip", "/usr/sbin", "/sbin")
    prefix = next(
        (
            [unshare, *options]
            for options in PREFIXES
            if subprocess.run([unshare, *options, "true"], check=False).returncode == 0
        ),
        None,
    )
    assert prefix is not None, "this system lets us make no network namespace"
    command = [*prefix, sys.executable, "-m", "tests.interop.nat_world", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
