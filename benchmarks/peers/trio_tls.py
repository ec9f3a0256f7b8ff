"""trio.SSLStream: the floor under everything that Trio carries. Option ``bulk``: not frames."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import trio

from benchmarks.driver import Link
from benchmarks.peers.trio_frames import bulk_link, open_frame_link, serve_stream

RUNTIME = "trio"


@asynccontextmanager
async def serve(directory: str, _option: str) -> AsyncGenerator[dict[str, Any]]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(Path(directory, "cert.pem"), Path(directory, "key.pem"))
    (tcp,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        listener = trio.SSLListener(tcp, context)
        nursery.start_soon(trio.serve_listeners, _serve, [listener])
        yield {"port": tcp.socket.getsockname()[1], "ca": str(Path(directory, "ca.pem"))}
        nursery.cancel_scope.cancel()


async def _serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
    await serve_stream(stream)
    await trio.aclose_forcefully(stream)


@asynccontextmanager
async def dial(address: dict[str, Any], option: str) -> AsyncGenerator[Link]:
    context = _client_context(address["ca"])
    tcp = await trio.open_tcp_stream("127.0.0.1", address["port"])
    stream = trio.SSLStream(tcp, context, server_hostname="localhost")
    await stream.do_handshake()
    try:
        if option == "bulk":
            yield bulk_link(stream)
        else:
            async with open_frame_link(stream) as link:
                yield link
    finally:
        await trio.aclose_forcefully(stream)


@cache
def _client_context(ca: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca)
