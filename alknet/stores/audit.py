"""The audit log: who did what, in a chain of hashes, written with the change that it tells of.

The hash of a row is SHA-256 over ``"alknet-audit-v1"``, a zero byte, and the JSON array
``[previous, number, at_ms, who, action, target, details]`` in UTF-8 without blanks, where
*previous* is the hash of the row before in hex and *details* an object with sorted keys. Before
the first row stand 64 zeros. Whoever alters, removes or inserts a row breaks the chain there.
Whoever can write the whole store can also make a new chain, or cut the newest rows off and say so
in the head: only a hash that was noted elsewhere (`Verdict.hash`) and is missed shows that.

The log keeps `ROWS_KEPT` rows. What is older is removed, and the hash of the newest row removed
stays as the anchor from which the chain is verified.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec
import trio

from alknet.core.clock import WallClock, wall_clock
from alknet.core.storage import ABSENT, Delete, Op, Put, Row, RowConflict, Store
from alknet.errors import AlknetError, StoreError, Unavailable
from alknet.stores.tables import AUDIT, AUDIT_HEADS, AuditHead, AuditRow

__all__ = [
    "FAILURES_NOTED",
    "NOTED_WITHIN_S",
    "ROWS_KEPT",
    "Audit",
    "Entry",
    "Verdict",
    "acting_as",
    "row_hash",
]

log = logging.getLogger(__name__)

# Years of a busy administrator, and some 30 MB.
ROWS_KEPT = 100_000
# Removed at once, so that trimming is rare and each time short.
TRIM_ROWS = 1_000
# Other processes append too; each attempt lets one of them win.
ATTEMPTS = 100
PAGE_ROWS = 1_000
# A store that is out of reach must not hold up whoever has done something, or the node's end.
NOTE_WITHIN_S = 5.0
# Text of others (names, paths) is cut: a log is no store.
LONGEST_TEXT = 1_024
# Of failures of one kind so many leave a row within an hour: enough to see that somebody tries, and
# 480 a day, so that it takes months of trying to push out what else is in the log.
FAILURES_NOTED = 20
NOTED_WITHIN_S = 3600.0

HEAD = "head"
BEGINNING = "0" * 64
NO_HEAD = AuditHead(number=0, hash=BEGINNING, first=1, anchor=BEGINNING)

_actor: ContextVar[str] = ContextVar("audit actor", default="owner")


class Entry(msgspec.Struct, frozen=True):
    """What happened; see `AuditRow`. Without *who* it was done by whom `acting_as` names."""

    action: str
    target: str
    details: Mapping[str, str] = {}
    who: str | None = None


class Verdict(msgspec.Struct, frozen=True):
    """Whether the chain holds.

    Attributes:
        rows: How many were verified.
        first: The number of the oldest row.
        hash: Of the newest row: note it elsewhere, and no earlier row can change unseen.
        broken_at: The number of the first row that does not fit; None if all do.
        reason: What is wrong with it.
        has_noted: Whether the row whose hash was noted is there, or is the last of those that were
            trimmed; None if none was asked for.
    """

    rows: int
    first: int
    hash: str
    broken_at: int | None = None
    reason: str = ""
    has_noted: bool | None = None


class _Broken(Exception):
    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number


class _Noted:
    """Looks for a hash among those that come by."""

    def __init__(self, noted: str | None) -> None:
        self._noted = noted
        self.verdict = None if noted is None else False

    def meet(self, found: str) -> None:
        if found == self._noted:
            self.verdict = True


@contextmanager
def acting_as(who: str) -> Iterator[None]:
    """Let what is written inside the block be done by the identity *who*; else it is ``owner``."""
    token = _actor.set(who)
    try:
        yield
    finally:
        _actor.reset(token)


def row_hash(row: AuditRow) -> str:
    """Return the hash that *row* must have, in hex."""
    details = dict(sorted(row.details.items()))
    fields = [row.previous, row.number, row.at_ms, row.who, row.action, row.target, details]
    return hashlib.sha256(b"alknet-audit-v1\0" + msgspec.json.encode(fields)).hexdigest()


class Audit:
    """The log of a store."""

    def __init__(self, store: Store, *, clock: WallClock = wall_clock) -> None:
        self._store = store
        self._clock = clock
        # Of one process one appends at a time; against others the head's version decides.
        self._turn = trio.Lock()

    async def record(self, entry: Entry) -> None:
        """Append *entry* for what happened outside the store. Cancelled, it is there or not."""
        await self.write((), entry)

    async def record_failure(self, entry: Entry) -> None:
        """Append *entry* unless `FAILURES_NOTED` of its action are in the log within the hour.

        The last of them says that there may be more. Cancelled, it is there or not.
        """
        since_ms = int((self._clock() - NOTED_WITHIN_S) * 1000)
        # Where so much else was written, a few rows more do not matter.
        rows = await self.newest(PAGE_ROWS, since_ms=since_ms)
        room = FAILURES_NOTED - sum(row.action == entry.action for row in rows)
        if room == 1:
            details = {**entry.details, "more": "left out for an hour"}
            entry = msgspec.structs.replace(entry, details=details)
        if room > 0:
            await self.record(entry)

    async def note(
        self, who: str, action: str, target: str, details: Mapping[str, str] = {}
    ) -> None:
        """Record what *who* has done already; see `note_all`."""
        await self.note_all([Entry(action, target, details, who)])

    async def note_all(self, entries: Sequence[Entry]) -> None:
        """Record what was done already; where that fails, the log of the program has it.

        A cancel waits for it: what was done must not be without its row because a caller left.
        """
        error = f"the store did not answer within {NOTE_WITHIN_S:g} s"
        with trio.move_on_after(NOTE_WITHIN_S, shield=True):
            try:
                await self.write((), *entries)
            except AlknetError as exc:
                error = str(exc)
            else:
                return
        for entry in entries:
            about = msgspec.to_builtins(entry)
            log.error("audit.failed", extra={**about, "error": error})

    async def write(self, ops: Sequence[Op], *entries: Entry) -> None:
        """Do *ops* and append *entries*, together or not at all; raises like `Store.write`.

        Cancelled, all was done or nothing.

        Raises:
            Unavailable: Others append without a pause.
        """
        async with self._turn:
            head = self._store.get(AUDIT_HEADS, HEAD)
            for _ in range(ATTEMPTS):
                appended = await self._appended(head, entries)
                try:
                    await self._store.write([*ops, *appended])
                except RowConflict as exc:
                    if exc.table != AUDIT_HEADS.name:
                        raise
                    head = await self._store.fetch(AUDIT_HEADS, HEAD)
                else:
                    return
        raise Unavailable("the audit log is busy", retry_after_s=1.0)

    async def verify(self, noted: str | None = None) -> Verdict:
        """Verify all rows, as many as there are now. Cancelled, no effect.

        Args:
            noted: The hash of a row, noted at an earlier time, that must be there still.

        Raises:
            StoreError: The store cannot be read.
            Unavailable: The store is busy or out of reach.
        """
        head = await self._head()
        while True:
            seen = _Noted(noted)
            try:
                await self._verify_to(head, seen)
                await self._look_for_strays(head)
            except _Broken as exc:
                now = await self._head()
                if now.first == head.first:
                    verified = min(max(exc.number - head.first, 0), head.number - head.first + 1)
                    return Verdict(
                        verified, head.first, head.hash, exc.number, str(exc), seen.verdict
                    )
                head = now  # trimmed while we read
            else:
                rows = head.number - head.first + 1
                return Verdict(rows, head.first, head.hash, has_noted=seen.verdict)

    async def newest(self, limit: int | None, *, since_ms: int | None = None) -> list[AuditRow]:
        """Return the newest rows, oldest first, up to *limit* and back to *since_ms*.

        Cancelled, no effect. Raises like `Store.scan`.
        """
        found: list[AuditRow] = []
        before = ""
        while limit is None or len(found) < limit:
            size = PAGE_ROWS if limit is None else min(PAGE_ROWS, limit - len(found))
            page = await self._store.scan(AUDIT, after=before, limit=size, newest_first=True)
            recent = [row.value for row in page if since_ms is None or row.value.at_ms >= since_ms]
            found += recent
            if len(recent) < size:
                break
            before = page[-1].key
        return found[::-1]

    async def last_number(self) -> int:
        """Return the number of the newest row, 0 if there is none. Raises like `Store.fetch`."""
        return (await self._head()).number

    async def follow(self, after: int = 0) -> AsyncGenerator[AuditRow]:
        """Yield the rows after the number *after*, and go on with what is appended.

        Nothing is lost by a cancel. Raises like `Store.scan`.
        """
        while True:
            version = self._store.version
            page = await self._store.scan(AUDIT, after=_key(after), limit=PAGE_ROWS)
            for row in page:
                yield row.value
                after = row.value.number
            if not page:
                await self._store.wait_changed(version)

    async def _head(self) -> AuditHead:
        row = await self._store.fetch(AUDIT_HEADS, HEAD)
        return NO_HEAD if row is None else row.value

    async def _appended(self, head: Row[AuditHead] | None, entries: Sequence[Entry]) -> list[Op]:
        value = NO_HEAD if head is None else head.value
        ops: list[Op] = []
        if value.number - value.first + 1 >= ROWS_KEPT + TRIM_ROWS:
            trimmed, ops = await self._trimmed(value)
            if trimmed is not None:
                done = Entry("audit.trim", "audit", {"rows": f"{value.first}-{trimmed.first - 1}"})
                value, more = self._append(trimmed, done)
                ops += more
        for entry in entries:
            value, more = self._append(value, entry)
            ops += more
        expected = ABSENT if head is None else head.version
        return [*ops, Put(AUDIT_HEADS, HEAD, value, expected)]

    def _append(self, head: AuditHead, entry: Entry) -> tuple[AuditHead, list[Op]]:
        row = AuditRow(
            number=head.number + 1,
            at_ms=int(self._clock() * 1000),
            who=_actor.get() if entry.who is None else entry.who,
            action=entry.action,
            target=entry.target[:LONGEST_TEXT],
            details={key: text[:LONGEST_TEXT] for key, text in sorted(entry.details.items())},
            previous=head.hash,
            hash="",
        )
        row = msgspec.structs.replace(row, hash=row_hash(row))
        head = msgspec.structs.replace(head, number=row.number, hash=row.hash)
        return head, [Put(AUDIT, _key(row.number), row)]

    async def _trimmed(self, head: AuditHead) -> tuple[AuditHead | None, list[Op]]:
        """Return the head after the oldest rows are gone, and the ops that remove them."""
        last = head.first + TRIM_ROWS - 1
        row = await self._store.fetch(AUDIT, _key(last))
        if row is None:  # somebody broke the chain: that must stay visible
            return None, []
        numbers = range(head.first, last + 1)
        head = msgspec.structs.replace(head, first=last + 1, anchor=row.value.hash)
        return head, [Delete(AUDIT, _key(number)) for number in numbers]

    async def _verify_to(self, head: AuditHead, seen: _Noted) -> None:
        number, previous = head.first, head.anchor
        seen.meet(previous)
        while number <= head.number:
            page = await self._page(number, min(PAGE_ROWS, head.number - number + 1))
            for row in page:
                _check(row, number, previous)
                seen.meet(row.hash)
                number, previous = number + 1, row.hash
            if not page:
                raise _Broken(number, "it is missing")
        if previous != head.hash:
            raise _Broken(head.number, "it is not the row that was written last")

    async def _look_for_strays(self, head: AuditHead) -> None:
        """Find rows that were put before or after the chain, where `newest` would show them."""
        for row in await self._store.scan(AUDIT, after="", limit=1):
            if row.key < _key(head.first):
                raise _Broken(row.value.number, "it is before the first one")
        for row in await self._store.scan(AUDIT, after=_key(head.number), limit=1):
            if (await self._head()).number == head.number:  # else it was appended meanwhile
                raise _Broken(row.value.number, "it is after the one that was written last")

    async def _page(self, first: int, limit: int) -> Sequence[AuditRow]:
        try:
            found = await self._store.scan(AUDIT, after=_key(first - 1), limit=limit)
        except StoreError:
            if limit == 1:
                raise _Broken(first, "it cannot be read") from None
            return await self._page(first, max(limit // 2, 1))
        return [row.value for row in found]


def _check(row: AuditRow, number: int, previous: str) -> None:
    if row.number != number:
        raise _Broken(number, "it is missing")
    if row.previous != previous:
        raise _Broken(number, "it does not follow the row before")
    if row.hash != row_hash(row):
        raise _Broken(number, "it was altered")


def _key(number: int) -> str:
    return f"{number:016d}"
