"""``alknet service``: the node as a systemd unit."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from alknet.cli.failures import CommandError
from alknet.cli.options import Group, is_json, the_home
from alknet.cli.output import emit, note, say
from alknet.cli.unit import UNIT_NAME, unit_text

__all__ = ["service"]

F = TypeVar("F", bound=Callable[..., Any])

SYSTEM_UNITS = Path("/etc/systemd/system")


@click.group(
    cls=Group,
    examples=[
        "alknet service install --now        for your user, and start it",
        "sudo alknet --home /var/lib/alknet service install --system --user alknet",
        "alknet service print                look at the unit first",
    ],
)
def service() -> None:
    """Run the node under systemd.

    The unit tells systemd when the node is ready and that it still turns, lets it drain on stop,
    reloads it by SIGHUP, and takes from it what it does not need: new privileges, other address
    families, and as a system service also the file system outside its home.
    """


def unit_options(function: F) -> F:
    """Add the options that say which unit is meant."""
    for option in (
        click.option(
            "--unit-dir",
            metavar="DIR",
            type=click.Path(path_type=Path, file_okay=False),
            help="Where units lie, if not in systemd's usual place.",
        ),
        click.option("--user", metavar="NAME", help="With --system: run as this user."),
        click.option("--system", is_flag=True, help="A unit of the system, not of your user."),
    ):
        function = option(function)
    return function


@service.command("print", examples=["alknet service print --system --user alknet"])
@unit_options
def print_unit(system: bool, user: str | None, unit_dir: Path | None) -> None:
    """Print the unit."""
    text = _unit(system, user)
    if is_json():
        emit({"path": str(_path(system, unit_dir)), "unit": text})
    else:
        say(text.rstrip())


@service.command(
    examples=[
        "alknet service install",
        "alknet service install --now",
        "alknet service install --system",
    ]
)
@unit_options
@click.option("--now", is_flag=True, help="Enable and start it too.")
def install(system: bool, user: str | None, unit_dir: Path | None, now: bool) -> None:
    """Write the unit and tell systemd. An older unit of ours is replaced."""
    from alknet.cli.home import need_node
    from alknet.vault.durable import store_errors

    need_node()
    path, text = _path(system, unit_dir), _unit(system, user)
    with store_errors(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    told = _systemctl(system, "daemon-reload")
    if now:
        _need(told and _systemctl(system, "enable", "--now", UNIT_NAME), "start")
    if is_json():
        emit({"path": str(path), "installed": True, "started": now})
        return
    say(f"wrote {path}")
    if not now:
        say(f"Start it, now and at boot: {_shown(system)} enable --now alknet")
    if not system:
        say(
            f"To let it run while you are not logged in: loginctl enable-linger {getpass.getuser()}"
        )


@service.command(examples=["alknet service uninstall"])
@unit_options
def uninstall(system: bool, user: str | None, unit_dir: Path | None) -> None:
    """Stop and disable the unit and remove its file. The node's home stays."""
    from alknet.vault.durable import store_errors

    path = _path(system, unit_dir)
    if not path.exists():
        raise CommandError("NOT_FOUND", f"there is no {path}", hint="is it a --system unit?")
    _systemctl(system, "disable", "--now", UNIT_NAME)
    with store_errors(f"cannot remove {path}"):
        path.unlink(missing_ok=True)
    _systemctl(system, "daemon-reload")
    if is_json():
        emit({"path": str(path), "installed": False})
    else:
        say(f"removed {path}; the home {the_home()} stays")


def _unit(system: bool, user: str | None) -> str:
    if user is not None and not system:
        raise click.UsageError("--user goes with --system")
    return unit_text(program=_program(), home=the_home(), user=_user(user) if system else None)


def _program() -> Sequence[str]:
    """Say how to start alknet again: by its script if there is one, else by the interpreter."""
    script = Path(sys.executable).parent / "alknet"
    return [str(script)] if script.exists() else [sys.executable, "-m", "alknet"]


def _user(user: str | None) -> str:
    """Return whom a system unit runs as: as told, else whose home it is."""
    if user is None:
        home = the_home()
        uid = home.stat().st_uid if home.exists() else os.geteuid()
        return pwd.getpwuid(uid).pw_name
    try:
        return pwd.getpwnam(user).pw_name
    except KeyError:
        raise click.BadParameter(f"there is no user {user!r}", param_hint="--user") from None


def _path(system: bool, unit_dir: Path | None) -> Path:
    if unit_dir is not None:
        return unit_dir.absolute() / UNIT_NAME
    if system:
        return SYSTEM_UNITS / UNIT_NAME
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "systemd" / "user" / UNIT_NAME


def _systemctl(system: bool, *arguments: str) -> bool:
    """Run systemctl; say so and return False if that does not work."""
    program = shutil.which("systemctl")
    if program is None:
        note("there is no systemctl here: tell systemd yourself")
        return False
    command = [program, *([] if system else ["--user"]), *arguments]
    done = subprocess.run(  # noqa: S603  systemctl
        command, capture_output=True, text=True, check=False
    )
    if done.returncode:
        note(f"'{_shown(system)} {' '.join(arguments)}' failed: {done.stderr.strip()}")
    return done.returncode == 0


def _need(done: bool, what: str) -> None:
    if not done:
        raise CommandError("FAILED", f"systemd could not {what} the unit")


def _shown(system: bool) -> str:
    return "systemctl" if system else "systemctl --user"
