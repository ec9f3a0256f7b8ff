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
from benchmarks.peers import floor
from benchmarks.peers.asyncio_frames import AsyncioCalls

RUNTIME = "asyncio"
ALPN = b"bench/1"
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
        await floor.serve(stream.recv().read, stream.send().write_all)


@asynccontextmanager
async def dial(address: dict[str, Any], option: str) -> AsyncGenerator[Link]:
    endpoint = await _bind()
    target = iroh.EndpointAddr(iroh.EndpointId.from_string(address["id"]), None, [address["at"]])
    connection = await endpoint.connect(target, ALPN)
    stream = await connection.open_bi()
    if option == "bulk":
        yield floor.BulkLink(stream.recv().read, stream.send().write_all)
    else:
        link = FrameLink(stream)
        yield link
        link.close()
    connection.close(0, b"")


class FrameLink(AsyncioCalls):
    """Calls in frames on one stream; those that wait for a write leave together."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream.recv().read)
        self._send = stream.send()
        self._wanted = asyncio.Event()
        self._writing = asyncio.create_task(self._write())

    def close(self) -> None:
        super().close()
        self._writing.cancel()

    def _wake(self) -> None:
        self._wanted.set()

    async def _write(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._send.write_all(self._take_outbox())
