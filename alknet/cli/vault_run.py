"""``alknet vault run``: a command with secrets in its environment."""

from __future__ import annotations

import base64
import errno
import os
import re
import shutil
import signal
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from alknet.cli.failures import CommandError
from alknet.cli.options import Command
from alknet.cli.unlocking import make_unlock, unlock_options
from alknet.cli.vault_access import Call, use_vault

__all__ = ["cannot_run", "run_command"]

# As a shell reports them.
NOT_THERE, NOT_EXECUTABLE = 127, 126

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@click.command(
    "run",
    cls=Command,
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
    examples=[
        "alknet vault run --secret PGPASSWORD=db/password -- psql",
        "alknet vault run --secret A=a --secret B=b -- sh -c 'echo $A $B'",
    ],
)
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="NAME=PATH",
    help="Put the secret at PATH into the variable NAME. Repeatable.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@unlock_options
def run_command(secrets: Sequence[str], command: Sequence[str], **options: Any) -> NoReturn:
    """Run COMMAND with the secrets that are named, and no others, in its environment.

    The command takes this one's place; 127 says that there is none, 126 that it cannot be run.
    Whoever may read its environment (its user, root) can read the secrets.
    """
    wanted = _wanted(secrets)

    async def fetch(call: Call) -> dict[str, str]:
        return {name: str((await call("get", path=path))["value"]) for name, path in wanted.items()}

    values = use_vault(fetch, make_unlock(**options)) if wanted else {}
    environment = {os.fsencode(name): os.fsencode(value) for name, value in os.environ.items()}
    for name, text in values.items():
        value = base64.b64decode(text)
        if b"\0" in value:
            raise CommandError(
                "INVALID_INPUT",
                f"{wanted[name]} has a zero byte, which no variable can hold",
                hint="give it to the command through a pipe: alknet vault get",
            )
        environment[name.encode()] = value
    # Python ignores them, and what is ignored stays so for the command.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), environment)  # noqa: S606  what was asked for
    except OSError as exc:
        raise cannot_run(command[0], exc) from exc


def cannot_run(program: str, exc: OSError) -> CommandError:
    """Return the error of a program that cannot be run; its status is what a shell makes of it."""
    # What refused may have been another entry of the path, one that we may not look into.
    is_nowhere = os.sep not in program and shutil.which(program, os.F_OK) is None
    if is_nowhere or isinstance(exc, FileNotFoundError):
        why, status = os.strerror(errno.ENOENT), NOT_THERE
    else:
        why, status = exc.strerror or str(exc), NOT_EXECUTABLE
    return CommandError("NOT_FOUND", f"cannot run {program}: {why.lower()}", status=status)


def _wanted(secrets: Sequence[str]) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for name, path in map(_parsed, secrets):
        if name in wanted:
            raise click.BadParameter(f"{name} is named twice", param_hint="--secret")
        wanted[name] = path
    return wanted


def _parsed(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not path or not _NAME.fullmatch(name):
        raise click.BadParameter(f"{text!r} is not NAME=PATH", param_hint="--secret")
    return name, path
