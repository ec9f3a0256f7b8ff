"""``alknet audit``: who changed what."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING

import click

from alknet.cli.failures import CommandError
from alknet.cli.options import Command, Duration, is_json
from alknet.cli.output import emit, fields, note, say, table
from alknet.cli.table import printable

if TYPE_CHECKING:
    from alknet.stores.audit import Verdict
    from alknet.stores.tables import AuditRow

__all__ = ["audit"]

HASH = re.compile(r"[0-9a-f]{64}")
# How many rows are shown when nothing else is asked for.
NEWEST_ROWS = 50


@click.command(
    cls=Command,
    examples=[
        "alknet audit                     the newest rows",
        "alknet audit --since 7d          those of the last week",
        "alknet audit --follow --json     go on as things happen, a line of JSON each",
        "alknet audit --verify            has any row been altered?",
        "alknet audit --noted 5c58a8…     and is the row there whose hash I noted last week?",
    ],
)
@click.option("--follow", is_flag=True, help="Go on with what happens until interrupted.")
@click.option("--verify", is_flag=True, help="Verify the chain of hashes instead.")
@click.option(
    "--noted",
    metavar="HASH",
    help="Verify, and miss the row of this hash, which --verify printed at an earlier time.",
)
@click.option(
    "--since",
    type=Duration(),
    metavar="TIME",
    help="Show what happened in the last 90s, 12h, 30d … instead of the newest 50 rows.",
)
def audit(follow: bool, verify: bool, noted: str | None, since: float | None) -> None:
    """Show who did what to peers, tokens, invitations, credentials and the vault.

    The newest row is the last. --verify exits with 1 if a row was altered, removed or inserted, and
    names the first. It prints the hash of the newest row: note it elsewhere, for who can write the
    whole store can also cut off its newest rows, and only --noted with that hash shows it.
    """
    from alknet.cli.home import open_store
    from alknet.cli.running import run

    verify = verify or noted is not None
    if verify and (follow or since is not None):
        raise click.UsageError("--verify stands alone")
    if noted is not None and not HASH.fullmatch(noted):
        raise click.BadParameter("a hash has 64 digits 0-9 a-f", param_hint="--noted")

    async def verdict() -> Verdict:
        async with open_store() as identities:
            return await identities.audit.verify(noted)

    if verify:
        _show_verdict(run(verdict))
    elif follow:
        run(lambda: _follow(since))
    else:
        _show(run(lambda: _rows(since)))


async def _rows(since: float | None) -> list[AuditRow]:
    """Return the rows to show, oldest first."""
    from alknet.cli.home import open_store

    async with open_store() as identities:
        if since is None:
            return await identities.audit.newest(NEWEST_ROWS)
        return await identities.audit.newest(None, since_ms=_begin_ms(since))


async def _follow(since: float | None) -> None:
    from contextlib import aclosing

    from alknet.cli.home import open_store

    async with open_store() as identities:
        begin_ms = None if since is None else _begin_ms(since)
        shown = await identities.audit.newest(10 if since is None else None, since_ms=begin_ms)
        for row in shown:
            _show_line(row)
        after = shown[-1].number if shown else await identities.audit.last_number()
        async with aclosing(identities.audit.follow(after)) as rows:
            async for row in rows:
                _show_line(row)


def _begin_ms(since: float) -> int:
    from alknet.core.clock import wall_clock

    return int((wall_clock() - since) * 1000)


def _show(rows: list[AuditRow]) -> None:
    if is_json():
        for row in rows:
            emit(row)
        return
    cells = [
        (row.number, _time(row), row.who, row.action, row.target, _details(row)) for row in rows
    ]
    table(("number", "time", "who", "action", "target", "details"), cells, empty="nothing yet")


def _show_line(row: AuditRow) -> None:
    if is_json():
        emit(row)
        return
    parts = (str(row.number), _time(row), row.who, row.action, row.target, _details(row))
    say("  ".join(printable(part) for part in parts))


def _show_verdict(verdict: Verdict) -> None:
    if is_json():
        emit(verdict)
    elif verdict.broken_at is None:
        fields(
            {"verified": f"{verdict.rows} rows, from {verdict.first}", "last hash": verdict.hash}
        )
    if verdict.broken_at is not None:
        if not is_json():
            note(f"{verdict.rows} rows before it are as they were written.")
        raise CommandError(
            "FAILED", f"the audit log is broken at row {verdict.broken_at}: {verdict.reason}"
        )
    if verdict.has_noted is False:
        raise CommandError(
            "FAILED",
            "no row of the audit log has the hash that was noted: rows were cut off, or all were "
            "written anew",
            hint=f"or the row is older than number {verdict.first}, and was trimmed",
        )


def _time(row: AuditRow) -> str:
    return datetime.fromtimestamp(row.at_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _details(row: AuditRow) -> str:
    return ", ".join(f"{key} {value or '-'}" for key, value in row.details.items())
