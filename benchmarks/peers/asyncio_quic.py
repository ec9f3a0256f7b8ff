"""aioquic's own asyncio driver, or qh3's, which has its shape: one long-lived stream.

Option: the package's name, and ``-bulk`` for bulk instead of frames. The server shows a
certificate that the client verifies; the client shows nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.driver import Link
from benchmarks.peers.asyncio_frames import FrameLink, bulk_link, serve_stream

RUNTIME = "asyncio"
ALPN = "bench/1"
IDLE_TIMEOUT_S = 600.0


@asynccontextmanager
async def serve(directory: str, option: str) -> AsyncGenerator[dict[str, Any]]:
    library = option.partition("-")[0]
    driver = import_module(f"{library}.asyncio")
    configuration = _configuration(library, is_client=False)
    configuration.load_cert_chain(Path(directory, "cert.pem"), Path(directory, "key.pem"))
    tasks: set[asyncio.Task[None]] = set()

    def serve_soon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve_stream(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await driver.serve(
        "127.0.0.1", 0, configuration=configuration, stream_handler=serve_soon
    )
    port = server._transport.get_extra_info("sockname")[1]  # noqa: SLF001  it has no other way
    yield {"port": port, "ca": str(Path(directory, "ca.pem"))}
    server.close()


@asynccontextmanager
async def dial(address: dict[str, Any], option: str) -> AsyncGenerator[Link]:
    library, _, is_bulk = option.partition("-")
    driver = import_module(f"{library}.asyncio")
    configuration = _configuration(library, is_client=True)
    configuration.load_verify_locations(address["ca"])
    configuration.server_name = "localhost"
    async with driver.connect(
        "127.0.0.1", address["port"], configuration=configuration
    ) as protocol:
        reader, writer = await protocol.create_stream()
        if is_bulk:
            yield bulk_link(reader, writer)
        else:
            link = FrameLink(reader, writer)
            yield link
            link.close()


def _configuration(library: str, *, is_client: bool) -> Any:
    module = import_module(f"{library}.quic.configuration")
    # Connections wait while other peers have their rounds.
    return module.QuicConfiguration(
        is_client=is_client, alpn_protocols=[ALPN], idle_timeout=IDLE_TIMEOUT_S
    )
