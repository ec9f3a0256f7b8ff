"""The floor's protocol over any Trio stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import trio

from benchmarks.driver import Link
from benchmarks.frames import pack, request
from benchmarks.peers.floor import BulkLink, read_answers, serve


async def serve_stream(stream: trio.abc.Stream) -> None:
    """Serve frames or bulk, whichever comes first, until the stream ends."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await serve(stream.receive_some, stream.send_all)


def bulk_link(stream: trio.abc.Stream) -> BulkLink:
    return BulkLink(stream.receive_some, stream.send_all)


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
        await read_answers(
            self._stream.receive_some, lambda call_id: self._pending.pop(call_id).set()
        )


@asynccontextmanager
async def open_frame_link(stream: trio.abc.Stream) -> AsyncGenerator[FrameLink]:
    link = FrameLink(stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.write)
        nursery.start_soon(link.read)
        yield link
        nursery.cancel_scope.cancel()
