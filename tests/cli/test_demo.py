from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Two dozen processes one after another: on a loaded machine they take their time.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def run(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "alknet.cli.demo"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
    )


def test_two_nodes_call_each_other_and_a_second_run_uses_them_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert first.returncode == 0, first.stderr
    for who, whom in (("alice", "bob"), ("bob", "alice")):
        for transport in ("QUIC", "TCP"):
            assert f"{who} calls {whom} over {transport}:" in first.stdout
    assert "How to go on" in first.stdout
    key = (tmp_path / "scratch" / "alice" / "vault.alk").read_bytes()
    second = run(tmp_path)
    assert second.returncode == 0, second.stderr
    assert "is used again" in second.stdout
    assert (tmp_path / "scratch" / "alice" / "vault.alk").read_bytes() == key


def test_a_demo_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "scratch").write_text("in the way")
    done = run(tmp_path)
    assert done.returncode == 1
    assert "The demo failed" in done.stderr
    assert "Traceback" not in done.stderr
