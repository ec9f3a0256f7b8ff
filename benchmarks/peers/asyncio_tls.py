"""asyncio's own TLS streams: the floor of asyncio."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.driver import Link
from benchmarks.peers.asyncio_frames import FrameLink, serve_stream

RUNTIME = "asyncio"


@asynccontextmanager
async def serve(directory: str, _option: str) -> AsyncGenerator[dict[str, Any]]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(Path(directory, "cert.pem"), Path(directory, "key.pem"))
    server = await asyncio.start_server(serve_stream, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield {"port": port, "ca": str(Path(directory, "ca.pem"))}


@asynccontextmanager
async def dial(address: dict[str, Any], _option: str) -> AsyncGenerator[Link]:
    context = _client_context(address["ca"])
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", address["port"], ssl=context, server_hostname="localhost"
    )
    link = FrameLink(reader, writer)
    try:
        yield link
    finally:
        link.close()
        writer.transport.abort()


@cache
def _client_context(ca: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca)
