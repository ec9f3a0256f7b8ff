"""Writing on a full disk: nothing partial stays behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# In a process of its own, for what it may write to files is limited for good.
SCRIPT = """
import resource, sys
from pathlib import Path
from alknet.vault.durable import write_private

resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    write_private(Path(sys.argv[1]), b"x" * 100)
except OSError as exc:
    print(exc.strerror)
"""


def test_a_file_that_does_not_fit_leaves_no_part(tmp_path: Path) -> None:
    path = tmp_path / "words"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "File too large\n"
    assert not path.exists()


def test_what_was_there_before_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_bytes(b"mine")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "File exists\n"
    assert path.read_bytes() == b"mine"
