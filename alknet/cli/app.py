"""The program: its commands by name, what all have in common, and the one place where errors end.

Command modules are imported when they are called, so that ``alknet --help`` costs little more
than click itself. The table `COMMANDS` holds the short helps for the same reason.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from alknet.cli.interrupts import Interrupted
from alknet.cli.options import Group
from alknet.cli.output import prepare_streams

__all__ = ["COMMANDS", "cli", "main"]

COMMANDS = {
    "init": ("alknet.cli.init:init", "Create this node: keys from 24 words, and a config file."),
    "up": ("alknet.cli.up:up", "Run the node until it is told to stop."),
    "id": ("alknet.cli.identity:show_id", "Print this node's id, fingerprint and ticket."),
    "whoami": ("alknet.cli.identity:whoami", "Ask a node whom it takes you for."),
    "status": ("alknet.cli.status:status", "Show what the running node does."),
    "peer": ("alknet.cli.peer:peer", "Say which nodes this one knows and what they may do."),
    "peers": ("alknet.cli.peers:peers", "Show which peers can be called, and how they are."),
    "top": ("alknet.cli.top:top", "Watch a running node's connections and calls."),
    "worker": ("alknet.cli.worker:worker", "Make this node a worker of a hub."),
    "token": ("alknet.cli.token:token", "Make and revoke API tokens."),
    "audit": ("alknet.cli.audit:audit", "Show who changed what."),
    "key": ("alknet.cli.key:key", "Give this node a new key."),
    "vault": ("alknet.cli.vault:vault", "Keep secrets, encrypted at rest."),
    "ops": ("alknet.cli.ops:ops", "List the operations that a node lets you call."),
    "call": ("alknet.cli.call:call", "Call an operation of a node."),
    "ping": ("alknet.cli.ping:ping", "Measure round trips to a node."),
    "backup": ("alknet.cli.backup:backup", "Write this node into one encrypted file."),
    "restore": ("alknet.cli.backup:restore", "Make this node from a backup."),
    "config": ("alknet.cli.config:config", "Check and show the configuration."),
    "doctor": ("alknet.cli.doctor:doctor", "Look for what could keep the node from working."),
    "service": ("alknet.cli.service:service", "Run the node under systemd."),
    "completion": ("alknet.cli.completion:completion", "Print a script that completes commands."),
    "version": ("alknet.cli.version:version", "Print the version."),
}


class _Commands(Group):
    """Finds commands in `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            from alknet.cli.names import did_you_mean

            near = did_you_mean(name, COMMANDS)
            ctx.fail(f"No such command {name!r}. {near[:1].upper()}{near[1:]}".rstrip())
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=_Commands,
    name="alknet",
    examples=[
        "alknet init                         make this node's keys and config",
        "alknet up                           run it",
        "alknet peer add bob alknet://…      know another node by its ticket",
        "alknet call @bob node/ping          call an operation of it",
    ],
)
def cli() -> None:
    """Run a node whose services are known by their ALPN and whose peers by their key.

    All commands take --home and --json. They exit with 0 (ok), 1 (failed), 2 (wrong usage),
    3 (denied), 4 (unreachable), 5 (timed out) or 130 (interrupted). Errors go to standard error.
    ALKNET_DEBUG=1 adds tracebacks.
    """


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; *args* are those of the process by default."""
    arguments = list(sys.argv[1:] if args is None else args)
    prepare_streams()
    try:
        _check_text(arguments)
        result = cli.main(arguments, prog_name="alknet", standalone_mode=False)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt, Interrupted, BaseExceptionGroup) as exc:  # noqa: BLE001
        # boundary: whatever goes wrong in a command becomes a message and an exit status.
        from alknet.cli.failures import report

        sys.exit(report(exc, arguments))
    sys.exit(result if isinstance(result, int) else 0)


def _check_text(arguments: Sequence[str]) -> None:
    try:
        "".join(arguments).encode()
    except UnicodeEncodeError:
        raise click.UsageError("an argument is not UTF-8 text") from None
