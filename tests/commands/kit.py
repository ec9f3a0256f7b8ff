"""Commands of scripts that a test writes, and policies to run programs without a node."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alknet.call.operations import Operation
from alknet.commands.operations import command_operations
from alknet.commands.policy import ProgramLimits, ProgramPolicy
from alknet.commands.runner import CommandRunner
from alknet.core.config_command import CommandConfig, read_commands
from alknet.core.config_read import Reader

LIMITS = ProgramLimits(
    cpu_s=20, memory_bytes=2 << 30, processes=64, open_files=64, file_bytes=1 << 20
)
# One that the user "nobody" may run, wherever the tests' own lies.
PYTHON = next(path for path in ("/usr/bin/python3", sys.executable) if Path(path).exists())
PYTHON_READS = [] if PYTHON.startswith("/usr/") else [sys.prefix, sys.base_prefix]


class Place:
    """Where scripts lie that every user may read, and a home that none may."""

    def __init__(self, directory: Path, home: Path) -> None:
        self.directory = directory
        self.home = home
        self.runner = CommandRunner(lambda: 32)
        self._count = 0

    def script(self, body: str, *, interpreter: str = "/bin/sh") -> str:
        """Write a program and return its path."""
        self._count += 1
        path = self.directory / f"script-{self._count}"
        path.write_text(f"#!{interpreter}\n{body}\n")
        path.chmod(0o755)
        return str(path)

    def command(self, body: str | list[str], **keys: Any) -> CommandConfig:
        """Return a command of a script, or of an argument list."""
        run = body if isinstance(body, list) else [self.script(body)]
        raw = {"name": "test/command", "run": run, "public": True, "grace_s": 0.1, **keys}
        reader = Reader(self.home / "node.toml", "", {})
        commands = read_commands(reader, [raw], self.home)
        assert not reader.problems, [str(problem) for problem in reader.problems]
        return commands[0]

    def operation(self, body: str | list[str], **keys: Any) -> Operation[..., Any]:
        """Return the operation of a command."""
        [operation] = command_operations([self.command(body, **keys)], self.runner)
        return operation

    def python(self, body: str, **keys: Any) -> Operation[..., Any]:
        """Return the operation of a Python script."""
        reads = [*PYTHON_READS, *keys.pop("read", [])]
        return self.operation([self.script(body, interpreter=PYTHON)], read=reads, **keys)


@contextmanager
def open_place(home: Path) -> Iterator[Place]:
    home.mkdir(mode=0o700)
    (home / "vault.alk").write_text("the vault")
    with tempfile.TemporaryDirectory(prefix="alknet-test-") as directory:
        Path(directory).chmod(0o755)
        yield Place(Path(directory), home)


def policy(argv: list[str], **changed: Any) -> ProgramPolicy:
    """Return how to run *argv* as this very user, confined by Landlock."""
    found: dict[str, Any] = {
        "argv": argv,
        "environment": {},
        "directory": None,
        "temporary": tempfile.gettempdir(),
        "sandbox": "landlock",
        "bwrap": "",
        "read": PYTHON_READS,
        "write": [],
        "network": False,
        "user": None,
        "grace_s": 0.1,
        "limits": LIMITS,
    }
    return ProgramPolicy(**{**found, **changed})  # type: ignore[typeddict-item]  # as above


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def is_root() -> bool:
    return os.geteuid() == 0
