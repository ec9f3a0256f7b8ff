"""``alknet vault ssh-agent``: stock ``ssh``, ``git`` and ``ssh-keygen`` sign with the vault."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alknet.cli.auditing import record_unlock
from alknet.cli.options import Command, is_json, the_home
from alknet.cli.output import emit, say
from alknet.cli.unlocking import unlock_options
from alknet.cli.vault_run import cannot_run

if TYPE_CHECKING:
    import trio

    from alknet.ssh.agent.keys import AgentKeys

__all__ = ["ssh_agent"]

# Each is offered to a server in turn, which hangs up after six by default (MaxAuthTries).
MAX_KEYS = 64
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@click.command(
    "ssh-agent",
    cls=Command,
    examples=[
        "alknet vault ssh-agent                          prints SSH_AUTH_SOCK, and serves",
        "alknet vault ssh-agent -- ssh-add -L            the public keys, for authorized_keys",
        "alknet vault ssh-agent -- ssh user@host         an agent for one command",
        "alknet vault ssh-agent --socket ~/.ssh/agent --keys 3",
    ],
)
@click.option(
    "--socket",
    "path",
    metavar="PATH",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to listen, instead of ssh-agent.sock in the home.",
)
@click.option(
    "--keys",
    "count",
    type=click.IntRange(1, MAX_KEYS),
    default=1,
    show_default=True,
    help="How many of the SSH user keys to offer.",
)
@unlock_options
@click.argument("command", nargs=-1, metavar="[-- COMMAND...]")
def ssh_agent(path: Path | None, count: int, command: Sequence[str], **unlock: Any) -> int:
    """Be an SSH agent whose keys are the vault's SSH user keys (m/74'/0'/2'/n').

    Where a node runs on the home, it is asked, and the vault's lock is the node's; else the vault
    is opened here. While it is locked, the agent has no keys. Keys cannot be added or removed.

    Prints a line for the shell that sets SSH_AUTH_SOCK, and runs until a signal ends it. With a
    COMMAND it runs that instead, with SSH_AUTH_SOCK in its environment, and ends with its status.
    """
    from alknet.cli.running import run
    from alknet.ssh.agent.server import SOCKET_NAME
    from alknet.vault.locked import harden_process

    harden_process()
    where = path.expanduser().absolute() if path else the_home() / SOCKET_NAME
    return run(partial(_serve, where, count, command, unlock))


async def _serve(path: Path, count: int, command: Sequence[str], unlock: Mapping[str, Any]) -> int:
    import trio

    from alknet.ssh.agent.server import serve_agent

    late = _ignored_late() if command else nullcontext()
    with late, trio.open_signal_receiver(*SIGNALS) as signals:
        async with _keys(unlock) as keys, trio.open_nursery() as nursery:
            await nursery.start(partial(serve_agent, path, keys, count=count))
            if command:
                status = await _run(command, path, signals)
            else:
                _say_ready(path)
                status = 0
                async for _ in signals:
                    break
            nursery.cancel_scope.cancel()
    return status


@asynccontextmanager
async def _keys(unlock: Mapping[str, Any]) -> AsyncGenerator[AgentKeys]:
    from alknet.cli.opening import open_vault_apart
    from alknet.client import open_control_session
    from alknet.core.vault_service import VaultService
    from alknet.errors import Unavailable
    from alknet.ssh.agent.keys import NodeKeys, ServiceKeys

    home = the_home()
    try:
        async with open_control_session(home):
            pass
    except Unavailable:
        vault = open_vault_apart(**unlock)
        record_unlock(vault.opened_by)
        service = VaultService(vault)
        try:
            yield ServiceKeys(service)
        finally:
            vault.lock()
    else:
        yield NodeKeys(partial(open_control_session, home))


async def _run(command: Sequence[str], path: Path, signals: AsyncIterator[int]) -> int:
    import trio

    environment = {**os.environ, "SSH_AUTH_SOCK": str(path)}
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, list(command), stdin=None, env=environment, check=False)
        try:
            process: trio.Process = await nursery.start(run)
        except OSError as exc:
            raise cannot_run(command[0], exc) from exc
        nursery.start_soon(_pass_on, signals, process)
        returncode = await process.wait()
        nursery.cancel_scope.cancel()
    # As a shell says that a signal ended it.
    return returncode if returncode >= 0 else 128 - returncode


async def _pass_on(signals: AsyncIterator[int], process: trio.Process) -> None:
    """Leave it to the command what a signal means; the agent lives as long as it does."""
    async for number in signals:
        if number != signal.SIGINT:  # the terminal gave that to both of us
            process.send_signal(number)


@contextmanager
def _ignored_late() -> Iterator[None]:
    """Ignore what no receiver inside has taken: it was meant for a command that has ended."""
    # No SIG_IGN: Python would complain of a signal that it has noticed already.
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_ready(path: Path) -> None:
    if is_json():
        emit({"event": "ready", "socket": str(path), "pid": os.getpid()})
    else:
        say(f"SSH_AUTH_SOCK={shlex.quote(str(path))}; export SSH_AUTH_SOCK")
