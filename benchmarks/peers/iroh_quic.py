"""iroh through its Python binding: loopback alone, no relay. Option ``bulk``: not frames.

Its binding copies bytes one by one on their way out, so bulk says little about iroh itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from typing import Any

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

RUNTIME = "asyncio"
ALPN = b"bench/1"
MAX_READ = 256 * 1024
iroh = import_module("iroh")


async def _bind() -> Any:
    return await iroh.Endpoint.bind(
        iroh.EndpointOptions(
            preset=iroh.preset_minimal(),
            relay_mode=iroh.RelayMode.disabled(),
            bind_addr="127.0.0.1:0",
            alpns=[ALPN],
        )
    )


@asynccontextmanager
async def serve(_directory: str, _option: str) -> AsyncGenerator[dict[str, Any]]:
    endpoint = await _bind()
    tasks: set[asyncio.Task[None]] = set()

    async def accept() -> None:
        while incoming := await endpoint.accept_next():
            connection = await (await incoming.accept()).connect()
            task = asyncio.ensure_future(_serve(connection))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    accepting = asyncio.ensure_future(accept())
    yield {"id": str(endpoint.id()), "at": endpoint.bound_sockets()[0]}
    accepting.cancel()


async def _serve(connection: Any) -> None:
    with suppress(iroh.IrohError):
        stream = await connection.accept_bi()
        send, receive = stream.send(), stream.recv()
        buffer = bytearray(await receive.read(MAX_READ))
        if bytes(buffer[:1]) in {DOWNLOAD, UPLOAD}:
            await _serve_bulk(send, receive, buffer)
        while buffer:
            found = answers(buffer)
            if found:
                await send.write_all(found)
            data = await receive.read(MAX_READ)
            if not data:
                return
            buffer += data


async def _serve_bulk(send: Any, receive: Any, buffer: bytearray) -> None:
    while True:
        if len(buffer) < HEADER:
            buffer += await receive.read_exact(HEADER - len(buffer))
        letter, size = parse_bulk_header(bytes(buffer[:HEADER]))
        del buffer[:HEADER]
        if letter == DOWNLOAD:
            await _send_bulk(send, size)
        else:
            await _receive_bulk(receive, size - len(buffer))
            buffer.clear()
            await send.write_all(b".")


async def _send_bulk(send: Any, size: int) -> None:
    while size > 0:
        await send.write_all(CHUNK[:size])
        size -= len(CHUNK)


async def _receive_bulk(receive: Any, size: int) -> None:
    while size > 0:
        data = await receive.read(MAX_READ)
        if not data:
            raise EOFError(f"{size} bytes are missing")
        size -= len(data)


@asynccontextmanager
async def dial(address: dict[str, Any], option: str) -> AsyncGenerator[Link]:
    endpoint = await _bind()
    target = iroh.EndpointAddr(iroh.EndpointId.from_string(address["id"]), None, [address["at"]])
    connection = await endpoint.connect(target, ALPN)
    stream = await connection.open_bi()
    if option == "bulk":
        yield BulkLink(stream)
    else:
        link = FrameLink(stream)
        yield link
        link.close()
    connection.close(0, b"")


class BulkLink(Link):
    """Bulk on one stream."""

    def __init__(self, stream: Any) -> None:
        self._send, self._receive = stream.send(), stream.recv()

    async def touch(self) -> None:
        await self.download(1)

    async def download(self, size: int) -> None:
        await self._send.write_all(bulk_header(DOWNLOAD, size))
        await _receive_bulk(self._receive, size)

    async def upload(self, size: int) -> None:
        await self._send.write_all(bulk_header(UPLOAD, size))
        await _send_bulk(self._send, size)
        await _receive_bulk(self._receive, 1)


class FrameLink(Link):
    """Calls in frames on one stream; those that wait for a write leave together."""

    def __init__(self, stream: Any) -> None:
        self._send, self._receive = stream.send(), stream.recv()
        self._pending: dict[str, asyncio.Future[None]] = {}
        self._outbox: list[bytes] = []
        self._wanted = asyncio.Event()
        self._serial = 0
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def call(self) -> None:
        self._serial += 1
        envelope = request(self._serial)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending[envelope.id] = done
        self._outbox.append(pack(envelope))
        self._wanted.set()
        await done

    async def _write(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            data = b"".join(self._outbox)
            self._outbox.clear()
            await self._send.write_all(data)

    async def _read(self) -> None:
        buffer = bytearray()
        while data := await self._receive.read(MAX_READ):
            buffer += data
            for frame in take_frames(buffer):
                self._pending.pop(frame.id).set_result(None)
