"""Foreign programs as child processes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import trio


def find(name: str, *places: str) -> str:
    """Return the path of a program; a missing one fails the test, and says what to do.

    Args:
        places: Directories to look into beside those of PATH.
    """
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *places]))
    if path is None:
        pytest.fail(f"{name} is not installed: run tests/install-foreign")
    return path


async def run(*command: str | Path, stdin: bytes = b"", within_s: float = 120.0) -> tuple[int, str]:
    """Run to the end; return the status, and what it wrote to both outputs."""
    with trio.fail_after(within_s):
        done = await trio.run_process(
            [str(part) for part in command],
            stdin=stdin,
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return done.returncode, done.stdout.decode(errors="replace")
