"""``alknet doctor``: what could keep the node from working, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from alknet.cli.failures import CommandError
from alknet.cli.options import Command, is_json, the_home
from alknet.cli.output import emit, paint, say
from alknet.cli.table import printable

if TYPE_CHECKING:
    from alknet.cli.checks import Finding

__all__ = ["doctor"]

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command(cls=Command, examples=["alknet doctor", "alknet doctor --json"])
def doctor() -> None:
    """Look for what could keep the node from working.

    Checks the home, the vault, the configuration, what confines programs, the clock, the ports, the
    system's buffers and IPv6; and if the node runs, that it is reached over QUIC and over TCP.
    Changes nothing. Exits with 1 if a check fails; warnings do not count.
    """
    from alknet.cli.checks import examine
    from alknet.cli.running import run

    home = the_home()
    findings = run(lambda: examine(home))
    failed = [one for one in findings if one.level == "fail"]
    if is_json():
        emit({"ok": not failed, "checks": findings})
    else:
        for one in findings:
            _show(one)
    if failed:
        number = f"{len(failed)} check{'s' if len(failed) > 1 else ''}"
        raise CommandError("FAILED", f"{number} failed: {', '.join(one.check for one in failed)}")


def _show(one: Finding) -> None:
    level = paint(f"{one.level:<4}", fg=COLOURS[one.level])
    say(f"{level}  {one.check:<8}  {printable(one.message)}")
    if one.todo:
        say(f"{'':16}{printable(one.todo)}")
