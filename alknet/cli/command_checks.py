"""The check of ``alknet doctor`` on commands: what confines programs here, and which are not."""

from __future__ import annotations

from typing import Literal, NamedTuple

from alknet.commands.sandbox import choose, look
from alknet.core.config import NodeConfig
from alknet.errors import LocalError

__all__ = ["CommandFinding", "examine_commands"]


class CommandFinding(NamedTuple):
    """See `alknet.cli.checks.Finding`."""

    level: Literal["ok", "warn", "fail"]
    message: str
    todo: str = ""


def examine_commands(config: NodeConfig) -> CommandFinding:
    """Say what confines the commands of *config*; blocks on a small program."""
    unconfined = []
    for command in config.commands:
        try:
            confinement = choose(command.table.sandbox, command.table.user)
        except LocalError as exc:
            return CommandFinding("fail", f"{command.where}: {command.name}: {exc}")
        if confinement.sandbox == "none":
            unconfined.append(command.name)
    if unconfined:
        message = f"nothing confines {', '.join(unconfined)}: they reach all that the node does"
        return CommandFinding("warn", message, 'give them another sandbox than "none"')
    found, gaps = look()
    if not found:
        todo = "install bubblewrap, or run Linux 6.2 or later with Landlock"
        return CommandFinding("warn", "nothing on this machine confines programs", todo)
    if gaps:
        return CommandFinding("warn", "; ".join(gaps), "run Linux 6.12 or later, or bubblewrap")
    number = len(config.commands)
    programs = f"{number} program{'' if number == 1 else 's'}"
    return CommandFinding("ok", f"{programs}; what can confine them: {', '.join(found)}")
