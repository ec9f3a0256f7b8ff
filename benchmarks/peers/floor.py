"""The floor's protocol over anything that can send and receive bytes, whichever loop it runs on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from benchmarks.driver import Link
from benchmarks.frames import (
    CHUNK,
    DOWNLOAD,
    HEADER,
    UPLOAD,
    answers,
    bulk_header,
    parse_bulk_header,
    take_frames,
)

MAX_READ = 256 * 1024

Receive = Callable[[int], Awaitable[bytes | bytearray]]
"""Returns up to so many bytes; none at the end."""
Send = Callable[[bytes], Awaitable[object]]


async def serve(receive: Receive, send: Send, *, send_bulk: Send | None = None) -> None:
    """Serve frames or bulk, whichever comes first, until the end.

    Args:
        send_bulk: Instead of *send*, for bulk.
    """
    buffer = bytearray(await receive(MAX_READ))
    if bytes(buffer[:1]) in {DOWNLOAD, UPLOAD}:
        await _serve_bulk(receive, send_bulk or send, buffer)
        return
    while buffer:
        if found := answers(buffer):
            await send(found)
        data = await receive(MAX_READ)
        if not data:
            return
        buffer += data


async def read_answers(receive: Receive, settle: Callable[[str], object]) -> None:
    """Call *settle* with the id of each answer, until the end."""
    buffer = bytearray()
    while data := await receive(MAX_READ):
        buffer += data
        for frame in take_frames(buffer):
            settle(frame.id)


class BulkLink(Link):
    """Bulk on one stream."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send

    async def touch(self) -> None:
        await self.download(1)

    async def download(self, size: int) -> None:
        await self._send(bulk_header(DOWNLOAD, size))
        await _receive_bulk(self._receive, size)

    async def upload(self, size: int) -> None:
        await self._send(bulk_header(UPLOAD, size))
        await _send_bulk(self._send, size)
        await _receive_bulk(self._receive, 1)


async def _serve_bulk(receive: Receive, send: Send, buffer: bytearray) -> None:
    while True:
        while len(buffer) < HEADER:
            data = await receive(MAX_READ)
            if not data:
                return
            buffer += data
        letter, size = parse_bulk_header(bytes(buffer[:HEADER]))
        del buffer[:HEADER]
        if letter == DOWNLOAD:
            await _send_bulk(send, size)
        else:
            await _receive_bulk(receive, size - len(buffer))
            buffer.clear()
            await send(b".")


async def _send_bulk(send: Send, size: int) -> None:
    while size > 0:
        await send(CHUNK[:size])
        size -= len(CHUNK)


async def _receive_bulk(receive: Receive, size: int) -> None:
    while size > 0:
        data = await receive(MAX_READ)
        if not data:
            raise EOFError(f"{size} bytes are missing")
        size -= len(data)
