"""Lines to and from a terminal or pipe that may stand still, without standing still ourselves."""

from __future__ import annotations

import io
import os
import queue
import threading
from typing import IO

__all__ = ["LineReader", "LineWriter"]

# What waits for the reader: about 2 MiB of log lines.
MAX_LINES = 10_000
# The longest line that is read: what a frame of calls can hold at most.
MAX_LINE_BYTES = 64 * 1024 * 1024
READ_BYTES = 64 * 1024
# How long the last lines may take when we end.
FLUSH_WITHIN_S = 1.0


class LineReader:
    """The lines of *stream*, read in a thread that nothing waits for at the end."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._pending = bytearray()
        self._has_ended = False

    async def next(self) -> str | None:
        """Return the next line without its end, or None after the last.

        Cancelled, what was being read is lost.

        Raises:
            ValueError: The line is over `MAX_LINE_BYTES`, or is not UTF-8.
        """
        searched = 0
        while (end := self._pending.find(b"\n", searched)) < 0 and not self._has_ended:
            searched = len(self._pending)
            if searched > MAX_LINE_BYTES:
                raise ValueError(f"a line of over {MAX_LINE_BYTES} bytes")
            await self._read()
        if end < 0 and not self._pending:
            return None
        end = len(self._pending) if end < 0 else end
        line = self._pending[:end].decode()
        del self._pending[: end + 1]
        return line

    async def _read(self) -> None:
        import trio

        data = await trio.to_thread.run_sync(_read_some, self._stream, abandon_on_cancel=True)
        self._pending += data
        self._has_ended = not data


def _read_some(stream: IO[str]) -> bytes:
    try:
        descriptor = stream.fileno()
    except OSError:  # no file: text in memory
        return stream.read(READ_BYTES).encode()
    # Past the stream's own buffer: a thread that is stuck in it would hang the exit.
    return os.read(descriptor, READ_BYTES)


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
