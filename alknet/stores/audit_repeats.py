"""What may come many times a second, in the audit log: the first at once, its repeats as a count.

A program may sign or decrypt a thousand times a second, and fail as often. A row for each would
push all else out of the log within minutes, and cost a write to the disk each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import trio

from alknet.stores.audit import NOTED_WITHIN_S, Audit, Entry

__all__ = ["OTHERS", "TARGETS_NOTED", "AuditRepeats"]

# Within an hour, of one action by one identity. A program that works on more of them, or a flood
# of made-up names, leaves 34 rows an hour: it takes months to push out what else is in the log.
TARGETS_NOTED = 16
OTHERS = "…"
"""Stands for the targets beyond those."""

_Kind = tuple[str, str, str, tuple[tuple[str, str], ...]]


class AuditRepeats:
    """Notes things in an audit log, so that those that repeat do not fill it.

    The first of its kind (who, action, target, details) leaves a row before `note` returns. What
    is the same within the hour is counted, and leaves one row more at its end, or when the node
    stops, with ``repeated`` in its details. Killed in between, a node loses those counts.
    """

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._repeats: dict[_Kind, int] = {}
        self._targets: Counter[tuple[str, str]] = Counter()
        self._begun = trio.Event()
        self._is_counting = False

    async def note(
        self, who: str, action: str, target: str, details: Mapping[str, str] = {}
    ) -> None:
        """Record or count what *who* has done already; a cancel waits for it, as in `Audit.note`.

        Outside `run` nobody would tell of what is counted, so each leaves a row.
        """
        kind: _Kind = (who, action, target, tuple(sorted(details.items())))
        if self._is_counting:
            kind = self._noted_as(kind)
            if kind in self._repeats:
                self._repeats[kind] += 1
                return
            self._repeats[kind] = 0
            self._targets[who, action] += 1
            self._begun.set()
        await self._audit.note(who, action, kind[2], dict(kind[3]))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell of repeats, each hour in which there are some, and on the way out."""
        self._is_counting = True
        task_status.started()
        try:
            while True:
                await self._begun.wait()
                await trio.sleep(NOTED_WITHIN_S)
                await self._tell()
        finally:
            self._is_counting = False
            await self._tell()

    def _noted_as(self, kind: _Kind) -> _Kind:
        who, action = kind[:2]
        if kind in self._repeats or self._targets[who, action] < TARGETS_NOTED:
            return kind
        return who, action, OTHERS, ()

    async def _tell(self) -> None:
        repeats, self._repeats = self._repeats, {}
        self._targets.clear()
        self._begun = trio.Event()
        entries = [
            Entry(action, target, {**dict(details), "repeated": str(times)}, who)
            for (who, action, target, details), times in repeats.items()
            if times
        ]
        if entries:
            await self._audit.note_all(entries)
