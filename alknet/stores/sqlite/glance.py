"""A short look on the event loop: what others just wrote, where it is little.

To ask the reader's thread takes two switches between threads, more than all the rest of the way
from another process's commit. What was committed a moment ago lies in the kernel's memory, and a
reader of WAL waits for nobody; so a few small rows are read at once, by one statement that takes
some 20 us. Whatever is more, or unclear, is left to the thread.
"""

from __future__ import annotations

import apsw

from alknet.core.storage import Changed
from alknet.stores.resident import Delta, RowChange
from alknet.stores.sqlite.place import Place
from alknet.stores.sqlite.reading import Tables, decoded
from alknet.stores.sqlite.schema import layout_of

__all__ = ["Glance"]

# Together at most a millisecond of the loop: a few dozen rows, and none long.
MOST_CHANGES = 32
LONGEST_BYTES = 4_096
FLAGS = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI

_QUERY = f"""
    SELECT change.seq, change.tab, change.key, row.version,
        iif(octet_length(row.value) <= {LONGEST_BYTES}, row.value, NULL),
        (SELECT min(seq) FROM change)
    FROM change LEFT JOIN row ON row.tab = change.tab AND row.key = change.key
    WHERE change.seq > ? ORDER BY change.seq LIMIT {MOST_CHANGES + 1}
"""  # noqa: S608  numbers of ours


class Glance:
    """A connection of the event loop's own, which never waits for a lock.

    Attributes:
        layout: The layout for which *tables* are.

    Raises:
        apsw.Error: The database cannot be opened.
    """

    def __init__(self, place: Place, tables: Tables, layout: int, vfs: str | None = None) -> None:
        self._tables = tables
        self.layout = layout
        self._connection = apsw.Connection(place.uri, flags=FLAGS, vfs=vfs)
        self._connection.set_busy_timeout(0)

    def news(self, cursor: int) -> Delta | None:
        """Return what changed after *cursor*; None if that is nothing, much, or unclear."""
        try:
            found = self._connection.execute(_QUERY, (cursor,)).fetchall()
            layout = layout_of(self._connection)  # it only grows, so that of the rows is no other
        except apsw.Error:
            return None  # the thread will say what it is
        if not 1 <= len(found) <= MOST_CHANGES or layout != self.layout:
            return None
        changes = []
        for seq, tab, key, version, value, oldest in found:
            table = self._tables.get(str(tab))
            is_gone = version is None
            if int(oldest or 0) > cursor + 1:
                return None
            change = Changed(int(seq or 0), str(tab), str(key), gone=is_gone)
            if is_gone or table is None or not table.is_resident:
                changes.append(RowChange(change, None))
            elif value is None:
                return None
            else:
                row = decoded(table, change.key, int(version or 0), str(value))
                changes.append(RowChange(change, row))
        return Delta(changes[-1].change.version, changes)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close(force=True)
