"""What commands did to a home without asking its node, in the audit log of its store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alknet.cli.output import note

if TYPE_CHECKING:
    from alknet.stores.audit import Entry

__all__ = ["Done", "record_done"]

Done = tuple[str, str]
"""An action, as ``vault.put``, and what it was done to."""

# Another process may hold the store, or its server be out of reach; the command has done its work.
LONGEST_S = 5.0


def record_done(*done: Done) -> None:
    """Write a row for each; where that fails, say so on standard error, for it is done anyway."""
    from alknet.cli.running import run
    from alknet.stores.audit import Entry

    if not done:
        return
    entries = [Entry(action, target) for action, target in done]
    why = run(lambda: _failure_of_writing(entries))
    if why:
        actions = ", ".join(action for action, _ in done)
        note(f"It is done, but the audit log lacks it ({actions}): {why}")


async def _failure_of_writing(entries: Sequence[Entry]) -> str:
    import trio

    from alknet.errors import AlknetError

    try:
        with trio.fail_after(LONGEST_S):
            await _write(entries)
    except trio.TooSlowError:
        return f"the store did not answer within {LONGEST_S:g} s"
    except (AlknetError, OSError) as exc:
        return str(exc)
    return ""


async def _write(entries: Sequence[Entry]) -> None:
    from alknet.cli.home import load_home_config
    from alknet.cli.options import the_home
    from alknet.stores.audit import Audit
    from alknet.stores.home import HomeStore

    async with HomeStore(the_home(), load_home_config()).open() as store:
        audit = Audit(store)
        for entry in entries:
            await audit.record(entry)
