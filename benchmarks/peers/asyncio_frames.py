"""The floor's protocol over asyncio's stream readers and writers."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from benchmarks.driver import Link
from benchmarks.frames import (
    CHUNK,
    DOWNLOAD,
    HEADER,
    UPLOAD,
    answers,
    bulk_header,
    pack,
    parse_bulk_header,
    request,
    take_frames,
)

MAX_READ = 256 * 1024


async def serve_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve frames or bulk, whichever comes first, until the stream ends."""
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        buffer = bytearray(await reader.read(MAX_READ))
        if bytes(buffer[:1]) in {DOWNLOAD, UPLOAD}:
            await _serve_bulk(reader, writer, buffer)
            return
        while buffer:
            found = answers(buffer)
            if found:
                writer.write(found)
                await writer.drain()
            data = await reader.read(MAX_READ)
            if not data:
                return
            buffer += data


async def _serve_bulk(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, buffer: bytearray
) -> None:
    while True:
        if len(buffer) < HEADER:
            buffer += await reader.readexactly(HEADER - len(buffer))
        letter, size = parse_bulk_header(bytes(buffer[:HEADER]))
        del buffer[:HEADER]
        if letter == DOWNLOAD:
            await _send_bulk(writer, size)
        else:
            await _receive_bulk(reader, size - len(buffer))
            buffer.clear()
            writer.write(b".")


async def _send_bulk(writer: asyncio.StreamWriter, size: int) -> None:
    while size > 0:
        writer.write(CHUNK[:size])
        size -= len(CHUNK)
        # The QUIC drivers have no back-pressure to wait for; qh3's fails when asked to.
        await asyncio.sleep(0)


async def _receive_bulk(reader: asyncio.StreamReader, size: int) -> None:
    while size > 0:
        data = await reader.read(MAX_READ)
        if not data:
            raise EOFError(f"{size} bytes are missing")
        size -= len(data)


class BulkLink(Link):
    """Bulk on one stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def touch(self) -> None:
        await self.download(1)

    async def download(self, size: int) -> None:
        self._writer.write(bulk_header(DOWNLOAD, size))
        await _receive_bulk(self._reader, size)

    async def upload(self, size: int) -> None:
        self._writer.write(bulk_header(UPLOAD, size))
        await _send_bulk(self._writer, size)
        await _receive_bulk(self._reader, 1)


class FrameLink(Link):
    """Calls in frames on one stream; those of one tick leave together."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._pending: dict[str, asyncio.Future[None]] = {}
        self._outbox: list[bytes] = []
        self._serial = 0
        self._loop = asyncio.get_running_loop()
        self._reading = asyncio.create_task(self._read(reader))

    def close(self) -> None:
        self._reading.cancel()

    async def call(self) -> None:
        self._serial += 1
        envelope = request(self._serial)
        self._pending[envelope.id] = done = self._loop.create_future()
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(pack(envelope))
        await done

    def _flush(self) -> None:
        self._writer.write(b"".join(self._outbox))
        self._outbox.clear()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        buffer = bytearray()
        while data := await reader.read(MAX_READ):
            buffer += data
            for frame in take_frames(buffer):
                self._pending.pop(frame.id).set_result(None)
