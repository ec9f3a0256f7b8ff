"""The floor's protocol over any Trio stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

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


async def serve_stream(stream: trio.abc.HalfCloseableStream | trio.abc.Stream) -> None:
    """Serve frames or bulk, whichever comes first, until the stream ends."""
    try:
        buffer = bytearray(await stream.receive_some(MAX_READ))
        if bytes(buffer[:1]) in {DOWNLOAD, UPLOAD}:
            await _serve_bulk(stream, buffer)
            return
        while buffer:
            found = answers(buffer)
            if found:
                await stream.send_all(found)
            data = await stream.receive_some(MAX_READ)
            if not data:
                return
            buffer += data
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return


async def _serve_bulk(stream: trio.abc.Stream, buffer: bytearray) -> None:
    while True:
        while len(buffer) < HEADER:
            data = await stream.receive_some(MAX_READ)
            if not data:
                return
            buffer += data
        letter, size = parse_bulk_header(bytes(buffer[:HEADER]))
        del buffer[:HEADER]
        if letter == DOWNLOAD:
            await send_bulk(stream, size)
        else:
            await receive_bulk(stream, size - len(buffer))
            buffer.clear()
            await stream.send_all(b".")


async def send_bulk(stream: trio.abc.SendStream, size: int) -> None:
    for _ in range(size // len(CHUNK)):
        await stream.send_all(CHUNK)
    if size % len(CHUNK):
        await stream.send_all(CHUNK[: size % len(CHUNK)])


async def receive_bulk(stream: trio.abc.ReceiveStream, size: int) -> None:
    while size > 0:
        data = await stream.receive_some(MAX_READ)
        if not data:
            raise EOFError(f"{size} bytes are missing")
        size -= len(data)


class BulkLink(Link):
    """Bulk on one stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def touch(self) -> None:
        await self.download(1)

    async def download(self, size: int) -> None:
        await self._stream.send_all(bulk_header(DOWNLOAD, size))
        await receive_bulk(self._stream, size)

    async def upload(self, size: int) -> None:
        await self._stream.send_all(bulk_header(UPLOAD, size))
        await send_bulk(self._stream, size)
        await receive_bulk(self._stream, 1)


class FrameLink(Link):
    """Calls in frames on one stream; those of one tick leave together."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._pending: dict[str, trio.Event] = {}
        self._outbox: list[bytes] = []
        self._wanted = trio.Event()
        self._serial = 0

    async def call(self) -> None:
        self._serial += 1
        envelope = request(self._serial)
        self._outbox.append(pack(envelope))
        self._pending[envelope.id] = done = trio.Event()
        self._wanted.set()
        await done.wait()

    async def write(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            data = b"".join(self._outbox)
            self._outbox.clear()
            await self._stream.send_all(data)

    async def read(self) -> None:
        buffer = bytearray()
        async for chunk in self._stream:
            buffer += chunk
            for frame in take_frames(buffer):
                self._pending.pop(frame.id).set()


@asynccontextmanager
async def open_frame_link(stream: trio.abc.Stream) -> AsyncGenerator[FrameLink]:
    link = FrameLink(stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.write)
        nursery.start_soon(link.read)
        yield link
        nursery.cancel_scope.cancel()
