"""The floor's protocol over asyncio's readers and writers, and what its links share."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress

from benchmarks.driver import Link
from benchmarks.frames import pack, request
from benchmarks.peers.floor import BulkLink, Receive, read_answers, serve


async def serve_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve frames or bulk, whichever comes first, until the stream ends."""

    async def send(data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    with suppress(ConnectionError):
        await serve(reader.read, send, send_bulk=_bulk_sender(writer))


def bulk_link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> BulkLink:
    return BulkLink(reader.read, _bulk_sender(writer))


class AsyncioCalls(Link, ABC):
    """Calls in frames; those that wait for a write leave together."""

    def __init__(self, receive: Receive) -> None:
        self._pending: dict[str, asyncio.Future[None]] = {}
        self._outbox: list[bytes] = []
        self._serial = 0
        self._loop = asyncio.get_running_loop()
        self._reading = asyncio.create_task(read_answers(receive, self._settle))

    def close(self) -> None:
        self._reading.cancel()

    async def call(self) -> None:
        self._serial += 1
        envelope = request(self._serial)
        self._pending[envelope.id] = done = self._loop.create_future()
        self._outbox.append(pack(envelope))
        self._wake()
        await done

    @abstractmethod
    def _wake(self) -> None:
        """See to it that the outbox is sent."""

    def _take_outbox(self) -> bytes:
        data = b"".join(self._outbox)
        self._outbox.clear()
        return data

    def _settle(self, call_id: str) -> None:
        self._pending.pop(call_id).set_result(None)


class FrameLink(AsyncioCalls):
    """On one stream; the calls of one tick leave together."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader.read)
        self._writer = writer

    def _wake(self) -> None:
        if len(self._outbox) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._writer.write(self._take_outbox())


def _bulk_sender(writer: asyncio.StreamWriter) -> Callable[[bytes], Awaitable[None]]:
    async def send(data: bytes) -> None:
        writer.write(data)
        # The QUIC drivers have no back-pressure to wait for; qh3's fails when asked to.
        await asyncio.sleep(0)

    return send
