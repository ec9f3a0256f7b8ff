"""Lines to a terminal or pipe whose reader may stand still, without standing still ourselves."""

from __future__ import annotations

import io
import os
import queue
import threading
from typing import IO

__all__ = ["LineWriter"]

# What waits for the reader: about 2 MiB of log lines.
MAX_LINES = 10_000
# How long the last lines may take when we end.
FLUSH_WITHIN_S = 1.0


class LineWriter(io.TextIOBase):
    """A text stream that a thread copies to the file of *stream*; it never blocks its writer.

    A script that reads the first line of ``alknet up`` and no more, or a terminal stopped by
    Ctrl-S, would otherwise stop the node when the pipe is full. Beyond `MAX_LINES` lines are
    dropped, and a reader that went away is no error. As a context manager it flushes on exit,
    for at most a second.

    Attributes:
        dropped: How many writes were lost.
    """

    def __init__(self, stream: IO[str]) -> None:
        stream.flush()
        # Past the stream's own buffer: a thread that is stuck in it would hang the exit.
        self._descriptor = stream.fileno()
        self._queue: queue.Queue[str | None] = queue.Queue(MAX_LINES)
        self._thread = threading.Thread(target=self._copy, name="line writer", daemon=True)
        self._thread.start()
        self.dropped = 0

    def write(self, text: str) -> int:
        """Queue *text*."""
        try:
            self._queue.put_nowait(text)
        except queue.Full:
            self.dropped += 1
        return len(text)

    def writable(self) -> bool:
        """Say yes: it is for nothing else."""
        return True

    def close(self) -> None:
        """Give the reader a moment to take the rest. Idempotent; *stream* stays open."""
        if not self.closed:
            super().close()
            try:
                self._queue.put(None, timeout=FLUSH_WITHIN_S)
            except queue.Full:
                return
            self._thread.join(FLUSH_WITHIN_S)

    def _copy(self) -> None:
        is_gone = False
        while (text := self._queue.get()) is not None:
            if is_gone:
                continue
            try:
                self._write_all(text.encode(errors="backslashreplace"))
            except OSError:  # nobody reads any more; the node goes on
                is_gone = True

    def _write_all(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]
