"""What commands did to a home without asking its node, in the audit log of its store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alknet.cli.options import the_home
from alknet.cli.output import note

if TYPE_CHECKING:
    from alknet.stores.audit import Audit

__all__ = [
    "Done",
    "command_name",
    "on_behalf_of",
    "record_done",
    "record_failed_unlock",
    "record_unlock",
]

Done = tuple[str, str]
"""An action, as ``vault.put``, and what it was done to."""

# Another process may hold the store, or its server be out of reach; the command has done its work.
LONGEST_S = 5.0
_COMMAND = "alknet.command"


def record_done(*done: Done) -> None:
    """Write a row for each; where that fails, say so on standard error, for it is done anyway."""
    from alknet.cli.running import run
    from alknet.stores.audit import Entry

    if not done:
        return
    entries = [Entry(action, target) for action, target in done]
    why = run(partial(_failure_of, lambda audit: audit.write((), *entries), the_home()))
    if why:
        actions = ", ".join(action for action, _ in done)
        note(f"It is done, but the audit log lacks it ({actions}): {why}")


def record_unlock(by: str) -> None:
    """Write a row that says what this command, which goes on with it, has opened the vault with."""
    from alknet.stores.audit import Entry

    entry = Entry("vault.unlock", "", {"by": by, "command": command_name()})
    _record_apart(lambda audit: audit.record(entry))


def record_failed_unlock(code: str, *tried: str) -> None:
    """Write a row for an unlock that failed, unless there are many already.

    Args:
        code: That of the error.
        tried: The kinds of what was given; none for a refusal to go on without.
    """
    from alknet.stores.audit import Entry

    details = {"code": code, "tried": ", ".join(tried), "command": command_name()}
    entry = Entry("vault.unlock.failed", "", details)
    _record_apart(lambda audit: audit.record_failure(entry))


def command_name() -> str:
    """Return the command that the user typed, as ``alknet vault get``."""
    context = click.get_current_context()
    return str(context.meta.get(_COMMAND) or context.command_path)


def on_behalf_of(command: str) -> None:
    """Let `command_name` be *command*, for which this process was started."""
    click.get_current_context().meta[_COMMAND] = command


def _record_apart(write: Callable[[Audit], Awaitable[None]]) -> None:
    """Write in a thread: some commands unlock inside Trio, and Ctrl-C shall not leave it out."""
    import trio

    with ThreadPoolExecutor(1) as thread:
        why = thread.submit(trio.run, _failure_of, write, the_home()).result()
    if why:
        note(f"The audit log lacks that: {why}")


async def _failure_of(write: Callable[[Audit], Awaitable[None]], home: Path) -> str:
    """Return why *write* could not write into the log of *home*, or nothing."""
    import trio

    from alknet.errors import AlknetError

    try:
        with trio.fail_after(LONGEST_S):
            await _write(write, home)
    except trio.TooSlowError:
        return f"the store did not answer within {LONGEST_S:g} s"
    except (AlknetError, OSError) as exc:
        return str(exc)
    return ""


async def _write(write: Callable[[Audit], Awaitable[None]], home: Path) -> None:
    from alknet.core.config import load_config
    from alknet.core.home import CONFIG_FILE
    from alknet.stores.audit import Audit
    from alknet.stores.home import HomeStore

    async with HomeStore(home, load_config(home / CONFIG_FILE)).open() as store:
        await write(Audit(store))
