"""qlog: what each QUIC connection does, in a file that qvis and other tools read.

One file per connection, ``<odcid>_<server|client>.sqlog``, in JSON-SEQ: records that begin with
0x1E, the first a header (draft-ietf-quic-qlog-main-schema-02, which calls itself 0.3). aioquic
makes the events; its own logger keeps them all in memory until the connection ends. Here they are
encoded at once and written by a thread, so that neither memory nor the disk can stop the node:
what cannot be written is left out, and the file says so.

Secrets are left out: reset tokens, address tokens. Payloads were never in.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import msgspec
import trio
from aioquic.quic.logger import QuicLogger, QuicLoggerTrace
from aioquic.quic.packet import QuicTransportParameters

from alknet.core.clock import WallClock, wall_clock
from alknet.errors import LocalError

__all__ = ["MAX_FILES", "MAX_FILE_BYTES", "MAX_UNWRITTEN_BYTES", "QlogDirectory"]

log = logging.getLogger(__name__)

# qvis keeps a file in the memory of a browser several times over.
MAX_FILE_BYTES = 64 * 1024 * 1024
# As many as a node has connections at most: a flood of handshakes fills no disk.
MAX_FILES = 10_000
# Encoded records that wait for a slow disk, of all connections: seconds of a busy node.
MAX_UNWRITTEN_BYTES = 16 * 1024 * 1024
# Records of one connection are written together, when there are so many bytes of them …
CHUNK_BYTES = 16 * 1024
# … or after this time, so that a file can be read while its connection lives.
FLUSH_S = 1.0

QLOG_VERSION = "0.3"
RECORD_SEPARATOR = b"\x1e"
# All that aioquic's connections log; those of HTTP would hold the values of header fields.
CATEGORIES = frozenset({"connectivity", "recovery", "security", "transport"})
# Events by which the packet before is done with: aioquic logs a received packet first, and adds to
# its list of frames as it goes through them.
FIRST_OF_PACKET = frozenset(
    {"datagrams_received", "datagrams_sent", "packet_received", "packet_sent"}
)

_Clock = Callable[[], float]


class QlogDirectory(QuicLogger):
    """Gives each connection a trace (it is aioquic's ``QuicConfiguration.quic_logger``).

    `run` writes; what `close` finds unwritten it writes at once. A disk that fails is logged
    once and ends the logging, not the connections.
    """

    def __init__(
        self, path: Path, *, clock: _Clock = trio.current_time, wall_clock: WallClock = wall_clock
    ) -> None:
        """Take *path*, made with mode 0700 if it does not exist.

        Raises:
            LocalError: Files cannot be made there.
        """
        super().__init__()
        self.path = path
        self.clock = clock
        self.wall_clock = wall_clock
        self._writer = _Writer()
        self._live: WeakSet[QlogTrace] = WeakSet()
        self._files = 0
        _check_writable(path)

    @property
    def is_stopped(self) -> bool:
        """The disk has failed, or there are too many files: nothing more is written."""
        return self._writer.is_stopped

    def start_trace(self, is_client: bool, odcid: bytes) -> QuicLoggerTrace:
        """Begin the trace of one connection, with the destination CID of its first packet."""
        trace = QlogTrace(self, is_client=is_client, odcid=odcid)
        self._live.add(trace)
        return trace

    def end_trace(self, trace: QuicLoggerTrace) -> None:
        """Write what is left of *trace*. Idempotent."""
        trace = cast(QlogTrace, trace)
        trace.flush()
        self._live.discard(trace)

    def write(self, trace: QlogTrace, data: bytes) -> bool:
        """Have *data* appended to the trace's file; False if it was dropped."""
        if trace.file is None:
            if self._files >= MAX_FILES:
                self._writer.stop(f"there are {MAX_FILES} files already")
                return False
            self._files += 1
            trace.file = self._new_file(trace)
        return self._writer.put(trace.file, data)

    async def run(self) -> None:
        """Write until cancelled; `close` writes the rest."""
        while True:
            with trio.move_on_after(FLUSH_S):
                await self._writer.wanted.wait()
            for trace in list(self._live):
                trace.flush()
            await self._writer.write_queued()

    def close(self) -> None:
        """Write all that is left, in this thread. Idempotent."""
        for trace in list(self._live):
            self.end_trace(trace)
        self._writer.write_rest()

    def _new_file(self, trace: QlogTrace) -> Path:
        # The client chooses the name of a server's file, perhaps one that there was before.
        stem = f"{trace.odcid.hex()}_{trace.side}"
        number = 1
        while (file := self.path / _numbered(stem, number)) in self._writer.named or file.exists():
            number += 1
        self._writer.named.add(file)
        return file


class QlogTrace(QuicLoggerTrace):
    """One connection's events, encoded as they come.

    Attributes:
        file: Where they are written, once some are.
    """

    def __init__(self, directory: QlogDirectory, *, is_client: bool, odcid: bytes) -> None:
        super().__init__(is_client=is_client, odcid=odcid)
        self.odcid = odcid
        self.side = "client" if is_client else "server"
        self.file: Path | None = None
        self._directory = directory
        self._started_at = directory.clock()
        self._written = 0
        self._dropped = 0
        self._is_full = False
        # A server's trace that has seen nothing but noise is not worth a file.
        self._has_begun = is_client
        self._pending: list[dict[str, Any]] = []
        self._buffer = bytearray(_record(self._header()))

    def log_event(self, *, category: str, event: str, data: dict[str, Any]) -> None:
        """Take one event; called by aioquic."""
        if event in FIRST_OF_PACKET:
            self._encode()
            if len(self._buffer) >= CHUNK_BYTES:
                self._hand_over()
        if self._is_full or category not in CATEGORIES or self._directory.is_stopped:
            return
        if event == "packet_received":
            self._has_begun = True
        self._append(f"{category}:{event}", _as_in_draft_02(event, data))

    def flush(self) -> None:
        """Hand over what there is for writing; not amid the processing of a packet."""
        self._encode()
        self._hand_over()

    def _hand_over(self) -> None:
        if not self._buffer or not self._has_begun:
            return
        data = bytes(self._buffer)
        self._buffer.clear()
        if self._directory.write(self, data):
            self._written += len(data)
        else:
            self._note_dropped(len(data))
        if self._written >= MAX_FILE_BYTES and not self._is_full:
            self._append("generic:info", {"message": f"the end: {MAX_FILE_BYTES} bytes are full"})
            self._is_full = True

    def _note_dropped(self, count: int) -> None:
        self._dropped += count
        if not self._written:  # the header must be first all the same
            self._buffer += _record(self._header())
        message = f"{self._dropped} bytes of records are missing: the disk was too slow"
        self._append("generic:info", {"message": message})

    def _append(self, name: str, data: dict[str, Any]) -> None:
        passed_ms = round((self._directory.clock() - self._started_at) * 1000, 3)
        self._pending.append({"time": passed_ms, "name": name, "data": data})

    def _encode(self) -> None:
        for event in self._pending:
            self._buffer += _record(event)
        self._pending.clear()

    def _header(self) -> dict[str, Any]:
        return {
            "qlog_format": "JSON-SEQ",
            "qlog_version": QLOG_VERSION,
            "title": "alknet",
            "trace": {
                "vantage_point": {"name": "alknet", "type": self.side},
                "common_fields": {
                    "ODCID": self.odcid.hex(),
                    "protocol_type": ["QUIC"],
                    "time_format": "relative",
                    "reference_time": round(self._directory.wall_clock() * 1000, 3),
                },
            },
        }

    # What would let others reset the connection, or pass for its client, stays out.

    def encode_new_connection_id_frame(
        self,
        connection_id: bytes,
        retire_prior_to: int,
        sequence_number: int,
        stateless_reset_token: bytes,
    ) -> dict[str, Any]:
        """Describe the frame without its reset token."""
        frame = super().encode_new_connection_id_frame(
            connection_id, retire_prior_to, sequence_number, b""
        )
        del frame["reset_token"]
        return frame

    def encode_new_token_frame(self, token: bytes) -> dict[str, Any]:
        """Describe the frame by its length."""
        return {"frame_type": "new_token", "length": len(token)}

    def encode_transport_parameters(
        self, owner: str, parameters: QuicTransportParameters
    ) -> dict[str, Any]:
        """Describe the parameters without the reset token."""
        data = super().encode_transport_parameters(owner, parameters)
        data.pop("stateless_reset_token", None)
        return data


class _Writer:
    """A queue of chunks, and the thread that appends them to their files.

    Attributes:
        is_stopped: Nothing more is written.
        named: Files that are being written, or soon will be.
        wanted: Set when there is something to write.
    """

    def __init__(self) -> None:
        self.named: set[Path] = set()
        self.wanted = trio.Event()
        self._queue: list[tuple[Path, bytes]] = []
        self._queued_bytes = 0
        self.is_stopped = False
        self._limiter = trio.CapacityLimiter(1)

    def put(self, file: Path, data: bytes) -> bool:
        """Queue *data*, unless too much waits or the disk has failed."""
        if self.is_stopped or self._queued_bytes + len(data) > MAX_UNWRITTEN_BYTES:
            return False
        self._queue.append((file, data))
        self._queued_bytes += len(data)
        self.wanted.set()
        return True

    def stop(self, reason: str) -> None:
        """Write nothing more, and say so once."""
        if not self.is_stopped:
            self.is_stopped = True
            log.warning("qlog.stopped", extra={"reason": reason})

    async def write_queued(self) -> None:
        """Write what is queued now. Cancelled before it has begun, all stays queued."""
        self.wanted = trio.Event()
        chunks = self._queue[:]
        if chunks:
            failure = await trio.to_thread.run_sync(_append_all, chunks, limiter=self._limiter)
            self._take(chunks, failure)

    def write_rest(self) -> None:
        """Write what is queued, here and now."""
        chunks = self._queue[:]
        self._take(chunks, _append_all(chunks))

    def _take(self, chunks: list[tuple[Path, bytes]], failure: str | None) -> None:
        del self._queue[: len(chunks)]
        self._queued_bytes -= sum(len(data) for _, data in chunks)
        if failure is not None:
            self.stop(failure)


def _append_all(chunks: list[tuple[Path, bytes]]) -> str | None:
    """Append each chunk to its file; return what went wrong, which ends it."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    for path, data in chunks:
        try:
            with open(os.open(path, flags, 0o600), "wb", buffering=0) as file:  # noqa: PTH123  flags
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
        except OSError as exc:
            return f"cannot write {path}: {exc.strerror}"
    return None


def _check_writable(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as exc:
        raise LocalError(
            f"cannot write qlog files to {path}: {exc.strerror}; choose another directory"
        ) from exc


def _numbered(stem: str, number: int) -> str:
    return f"{stem}.sqlog" if number == 1 else f"{stem}.{number}.sqlog"


def _record(value: dict[str, Any]) -> bytes:
    return RECORD_SEPARATOR + msgspec.json.encode(value) + b"\n"


def _as_in_draft_02(event: str, data: dict[str, Any]) -> dict[str, Any]:
    """Rename what aioquic calls by names of earlier drafts."""
    if event == "metrics_updated" and "cwnd" in data:
        return {"congestion_window" if k == "cwnd" else k: v for k, v in data.items()}
    if event == "packet_lost":
        header = {"packet_type": data["type"], "packet_number": data["packet_number"]}
        return {"header": header}
    return data
