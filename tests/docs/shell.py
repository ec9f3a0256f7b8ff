"""A shell that runs the commands of one page, each with its output apart."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.docs.blocks import Command
from tests.ports import UNGIVEN_PORTS, is_free

__all__ = ["Shell", "environment", "matches", "open_shell", "with_free_ports"]

# For processes of a loaded machine; nothing waits so long when all is well.
COMMAND_TIMEOUT_S = 300.0
POLL_S = 0.01
FIRST_PORT, PORTS = 4433, 7


@contextmanager
def open_shell(directory: Path) -> Iterator[Shell]:
    """Start bash in *directory*; what still runs at the end is told to stop, and must."""
    shell = Shell(directory)
    try:
        yield shell
        shell.stop_jobs()
    finally:
        shell.kill()


class Shell:
    """Bash, fed with one command at a time: variables and jobs live as long as it does."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._scripts = directory / ".commands"
        self._scripts.mkdir()
        self._count = 0
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=directory,
            env=environment(directory),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, command: Command) -> str:
        """Run *command* and return what it printed, on both streams.

        Raises:
            AssertionError: It failed, took too long, or printed something else than is shown.
        """
        self._count += 1
        script = self._scripts / f"{self._count}.sh"
        output = self._scripts / f"{self._count}.out"
        script.write_text(command.text + "\n", encoding="utf-8")
        status = self._send(f". {script} </dev/null >{output} 2>&1; echo $?", command.text)
        if command.is_background:
            self._wait_for(output, command)
        printed = output.read_text(encoding="utf-8")
        assert status == "0", f"{command.text!r} exited with {status}:\n{printed}"
        shown = command.expected
        if shown is not None:
            assert matches(printed, shown), f"{command.text!r} printed\n{printed}\nand not\n{shown}"
        return printed

    def stop_jobs(self) -> None:
        """Stop what runs in the background as an operator would, and wait for it."""
        self._send('jobs=$(jobs -p); [ -z "$jobs" ] || kill $jobs; wait; echo $?', "wait")

    def kill(self) -> None:
        """End the shell and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.communicate()

    def _send(self, line: str, what: str) -> str:
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(line.encode() + b"\n")
        self._bash.stdin.flush()
        ready, _, _ = select.select([self._bash.stdout], [], [], COMMAND_TIMEOUT_S)
        assert ready, f"{what!r} took longer than {COMMAND_TIMEOUT_S:g} s"
        return self._bash.stdout.readline().decode().strip()

    def _wait_for(self, output: Path, command: Command) -> None:
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        shown = f"{(command.expected or '').rstrip()}..."
        while True:
            printed = output.read_text(encoding="utf-8")
            if printed.endswith("\n") and matches(printed, shown):
                return
            assert time.monotonic() < deadline, (
                f"{command.text!r} printed\n{printed}\nand not in time\n{shown}"
            )
            time.sleep(POLL_S)


def matches(printed: str, shown: str) -> bool:
    """Whether *printed* is what is *shown*, where ``...`` stands for anything."""
    parts = (re.escape(part) for part in _stripped(shown).split("..."))
    return re.fullmatch("(?s:.*?)".join(parts), _stripped(printed)) is not None


def with_free_ports() -> Iterator[tuple[str, str]]:
    """Yield pairs: the ports of the documentation, and free ones (UDP and TCP) in their place."""
    free = filter(is_free, secrets.SystemRandom().sample(UNGIVEN_PORTS, len(UNGIVEN_PORTS)))
    for number, port in zip(range(FIRST_PORT, FIRST_PORT + PORTS), free, strict=False):
        yield str(number), str(port)


def environment(directory: Path) -> dict[str, str]:
    """Return the environment of commands: a home in *directory*, this interpreter's programs."""
    kept = {name: os.environ[name] for name in os.environ if name.startswith("COVERAGE")}
    return {
        **kept,
        "ALKNET_HOME": str(directory / "node"),
        "HOME": str(directory),
        "LANG": "C.UTF-8",
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "PYTHONWARNINGS": "error",
        "TERM": "dumb",
        "TZ": "UTC",
    }


def _stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
