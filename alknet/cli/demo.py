"""``make run``: two nodes on this machine that know and call each other; then how to go on.

Everything goes through the command line, as a person would do it, in real processes. The homes
are in ``scratch/`` and stay; a second run uses them again.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from alknet.core.home import NODE_FILES

__all__ = ["main"]

SCRATCH = Path("scratch")
NAMES = ("alice", "bob")
# A start takes half a second; a small machine under load may need far longer.
READY_WITHIN_S = 60.0
STOP_WITHIN_S = 60.0
COMMAND_WITHIN_S = 60.0


class DemoFailed(Exception):
    """A step did not work; the message says which and why."""


def main() -> int:
    """Run the demo and return the exit status."""
    try:
        _demo()
    except (DemoFailed, OSError) as exc:
        click.echo(f"\nThe demo failed: {exc}", err=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _demo() -> None:
    for name in NAMES:
        _init(name)
    with _node("alice") as alice, _node("bob") as bob:
        nodes = {"alice": alice, "bob": bob}
        for name, ready in nodes.items():
            _introduce(name, ready)
        _meet("alice", "bob", bob["ticket"])
        _meet("bob", "alice", alice["ticket"])
        _wait_known("alice", "bob")
        _wait_known("bob", "alice")
        for transport in ("quic", "tcp"):
            _call_all("alice", "bob", bob["id"], transport)
            _call_all("bob", "alice", alice["id"], transport)
        _show_refusal(bob["ticket"])
    click.echo("\nBoth nodes have drained and stopped.")
    _how_to_go_on()


def _init(name: str) -> None:
    home = SCRATCH / name
    if any((home / name).exists() for name in NODE_FILES):
        click.echo(f"{name}: the node in {home} is used again.")
        return
    words = SCRATCH / f"{name}.words"
    SCRATCH.mkdir(exist_ok=True)
    words.unlink(missing_ok=True)  # of a run that ended before the home was made
    _alknet("--home", str(home), "init", "--words-file", str(words))
    click.echo(f"{name}: made a node in {home}; its 24 words are in {words}.")


@contextlib.contextmanager
def _node(name: str) -> Iterator[dict[str, Any]]:
    """Run a node as a process while the block runs; gives its ready line."""
    home = SCRATCH / name
    command = [*_PROGRAM, "--home", str(home), "up", "--listen", "127.0.0.1:0", "--json"]
    with (SCRATCH / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)  # noqa: S603
        try:
            yield _ready(name, process)
        finally:
            _stop(name, process)


def _ready(name: str, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    line = _first_line(process)
    try:
        ready = json.loads(line)
        assert ready["event"] == "ready"
    except (ValueError, KeyError, TypeError, AssertionError):
        said = (SCRATCH / f"{name}.log").read_text(errors="replace").strip()
        reason = f"{line or ''} {said}".strip() or f"nothing said in {READY_WITHIN_S:g} s"
        raise DemoFailed(f"{name} did not start: {reason}") from None
    return dict(ready)


def _first_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    deadline = time.monotonic() + READY_WITHIN_S
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            break
        # By single bytes, for the rest is left in the pipe; it is one line.
        byte = os.read(descriptor, 1)
        if not byte:
            break
        line += byte
    return line.decode(errors="replace")


def _stop(name: str, process: subprocess.Popen[bytes]) -> None:
    """Let it drain; what does not end is killed."""
    failed = sys.exc_info()[0] is not None
    with process:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
    if process.returncode and not failed:
        raise DemoFailed(f"{name} ended with status {process.returncode} instead of a drain")


def _introduce(name: str, ready: dict[str, Any]) -> None:
    click.echo(f"\n{name} runs: {ready['ticket']}")
    for one in ready["listen"]:
        click.echo(f"  {one['transport']:<4} on {one['address']} serves {', '.join(one['alpns'])}")


def _meet(who: str, whom: str, ticket: str) -> None:
    """Let *who* know *whom*; the port differs in each run, so an older record is replaced."""
    home = str(SCRATCH / who)
    with contextlib.suppress(DemoFailed):
        _alknet("--home", home, "peer", "remove", whom)
    _alknet("--home", home, "peer", "add", whom, ticket, "--scope", "echo")
    click.echo(f"{who} knows {whom} by its key, and lets it use what needs the scope 'echo'.")


def _wait_known(who: str, whom: str) -> None:
    """Wait until the node of *who* has seen what was written beside it: a quarter of a second."""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        status = json.loads(_alknet("--home", str(SCRATCH / who), "status", "--json"))
        if any(peer["name"] == whom for peer in status["peers"]):
            return
    raise DemoFailed(f"{who}'s node does not notice that {whom} was added")


def _call_all(who: str, whom: str, expected_id: str, transport: str) -> None:
    click.echo(f"\n{who} calls {whom} over {transport.upper()}:")
    hello = {"message": f"hello from {who}"}
    pong = _call(who, whom, transport, "node/ping", None)
    _expect(pong[0]["id"] == expected_id, f"another node than {whom} answered: {pong}")
    echo = _call(who, whom, transport, "echo/unary", hello)
    _expect(echo == [hello], f"echo/unary answered {echo}")
    items = _call(who, whom, transport, "echo/stream", {"count": 3})
    _expect(items == [{"n": 0}, {"n": 1}, {"n": 2}], f"echo/stream answered {items}")


def _call(who: str, whom: str, transport: str, operation: str, data: object) -> list[Any]:
    arguments = ["call", f"@{whom}", operation]
    if data is not None:
        arguments.append(json.dumps(data))
    output = _alknet("--home", str(SCRATCH / who), *arguments, "--transport", transport, "--json")
    items = [json.loads(line) for line in output.splitlines()]
    click.echo(f"  {operation:<12} -> {', '.join(map(json.dumps, items))}")
    return items


def _show_refusal(ticket: str) -> None:
    """A stranger with the ticket alone gets what is public and no more."""
    arguments = [*_PROGRAM, "--home", str(SCRATCH / "nobody"), "call", ticket, "echo/unary"]
    done = _run([*arguments, '{"message": 1}'])
    _expect(done.returncode == 3, f"a stranger was not refused: {done.stdout}{done.stderr}")
    click.echo("\nA stranger who has bob's ticket, but a key that bob does not know, is refused.")


def _how_to_go_on() -> None:
    program = _program_to_type()
    click.echo(
        f"""
How to go on (paste one after another, in this folder):

  export ALKNET_HOME=scratch/alice   # or --home with each command
  {program} up &                     # run a node, on port 4433; 'kill %1' lets it drain and stop
  {program} status                   # what it does
  {program} ops                      # what can be called
  {program} call echo/stream '{{"count": 3}}'
  {program} id                       # its ticket, for others to dial
  {program} --help                   # all commands

A node of your own, in its usual place: {program} init; {program} up"""
    )


def _alknet(*arguments: str) -> str:
    """Run a command to its end and return what it printed."""
    done = _run([*_PROGRAM, *arguments])
    if done.returncode:
        raise DemoFailed(f"'alknet {shlex.join(arguments)}' said: {done.stderr.strip()}")
    return done.stdout


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603  our own program
            command, capture_output=True, text=True, check=False, timeout=COMMAND_WITHIN_S
        )
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"{shlex.join(command)} did not end") from None


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise DemoFailed(message)


def _program_to_type() -> str:
    """Return the shortest command that starts this very program from here."""
    script = Path(sys.executable).parent / "alknet"
    found = shutil.which("alknet")
    if found is not None and Path(found) == script:
        return "alknet"
    if not script.exists():
        return shlex.join(_PROGRAM)
    here = Path.cwd()
    return shlex.quote(str(script.relative_to(here) if here in script.parents else script))


_PROGRAM = (sys.executable, "-m", "alknet")


if __name__ == "__main__":
    sys.exit(main())
