"""Keep strangers from filling the log: of events that they can cause at will, so many a minute.

The last record that a minute takes says that it is the last (``others_withheld_s``), and the first
one after it how many there were besides (``withheld``).
"""

from __future__ import annotations

import logging

__all__ = ["FloodFilter"]

WINDOW_S = 60.0
# Faults of peers: enough to see who and what it is. A bad stream costs its sender 50 bytes, the log
# four times as many, for ever; a node under attack would fill 10 GiB in an hour.
FAULTS_PER_WINDOW = 60
# Connections that are accepted and end: ten a second are more than anyone reads.
CONNECTIONS_PER_WINDOW = 600
MOST = {
    "call.protocol_fault": FAULTS_PER_WINDOW,
    "connection.refused": FAULTS_PER_WINDOW,
    "connection.too_many_failed_authentications": FAULTS_PER_WINDOW,
    "handler.protocol_error": FAULTS_PER_WINDOW,
    "handshake.failed": FAULTS_PER_WINDOW,
    "connection.accepted": CONNECTIONS_PER_WINDOW,
    "connection.ended": CONNECTIONS_PER_WINDOW,
}


class FloodFilter(logging.Filter):
    """Lets the first records of each event in `MOST` through, and counts the others."""

    def __init__(self) -> None:
        super().__init__()
        self._windows = {event: _Window() for event in MOST}

    def filter(self, record: logging.LogRecord) -> bool:
        window = self._windows.get(record.msg) if isinstance(record.msg, str) else None
        return window is None or window.admits(record, MOST[record.msg])


class _Window:
    """The records of one event in the minute that began with the first."""

    __slots__ = ("_count", "_ends_at")

    def __init__(self) -> None:
        self._ends_at = float("-inf")
        self._count = 0

    def admits(self, record: logging.LogRecord, most: int) -> bool:
        # A wall clock that was set back must not silence an event until it has caught up.
        if not self._ends_at - WINDOW_S <= record.created < self._ends_at:
            if self._count > most:
                record.withheld = self._count - most
            self._ends_at = record.created + WINDOW_S
            self._count = 0
        self._count += 1
        if self._count == most:
            record.others_withheld_s = round(self._ends_at - record.created)
        return self._count <= most
