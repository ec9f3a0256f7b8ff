"""What SQLite's errors mean to a caller: what was tried, what happened, what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from alknet.errors import AlknetError, StoreError, Unavailable

__all__ = ["explain", "explained"]

# A writer holds the lock for milliseconds; one that was stopped may hold it for ever.
RETRY_AFTER_S = 1.0

_FULL = "the disk is full: free some space and try again"
_MEANING: tuple[tuple[type[apsw.Error], str], ...] = (
    (apsw.FullError, _FULL),
    (apsw.ReadOnlyError, "the file or its disk is read-only: make it writable"),
    (apsw.CantOpenError, "it cannot be opened: check that it and its directory are yours"),
    (apsw.PermissionsError, "access is denied: check that it and its directory are yours"),
    (apsw.IOError, "the disk failed: look into the system's log"),
    (apsw.NoMemError, "memory is exhausted"),
)


def explain(exc: apsw.Error, verb: str, path: Path) -> AlknetError:
    """Return the error to raise for *exc*, which happened when we wanted to *verb* the database."""
    what = f"cannot {verb} {path}"
    if isinstance(exc, apsw.BusyError | apsw.LockedError):
        return Unavailable(f"{what}: another process holds its lock", retry_after_s=RETRY_AFTER_S)
    if isinstance(exc, apsw.NotADBError | apsw.CorruptError):
        return StoreError(
            f"{what}: it is damaged ({exc}): it is left as it is; stop the node and put a backup "
            "in its place"
        )
    # Of the files beside the database it does not say what a write to the database would.
    if getattr(exc, "extendedresult", 0) == apsw.SQLITE_IOERR_SHMSIZE:
        return StoreError(f"{what}: {_FULL} ({exc})")
    for kind, meaning in _MEANING:
        if isinstance(exc, kind):
            return StoreError(f"{what}: {meaning} ({exc})")
    return StoreError(f"{what}: {exc}")


@contextmanager
def explained(verb: str, path: Path) -> Iterator[None]:
    """Turn SQLite's errors of the block into ours; see `explain`."""
    try:
        yield
    except apsw.Error as exc:
        raise explain(exc, verb, path) from exc
