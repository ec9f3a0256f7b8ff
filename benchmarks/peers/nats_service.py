"""nats-py: a service that answers requests, behind a nats-server with TLS.

The server's process starts the nats-server, which runs on the same core; its CPU time is not
among the server's. Each link is a client's connection; the service has one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import ssl
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.driver import Link
from benchmarks.frames import ANSWER, Envelope, request

RUNTIME = "asyncio"
SUBJECT = "bench.call"
START_S = 10.0
POLL_S = 0.02
nats = import_module("nats")
# nats-py's protocol asks for something that TLS has not, at the end of each connection.
logging.getLogger("asyncio").setLevel(logging.ERROR)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Envelope).decode


@asynccontextmanager
async def serve(directory: str, _option: str) -> AsyncGenerator[dict[str, Any]]:
    async with nats_server(Path(directory)) as address, service(address):
        yield address


@asynccontextmanager
async def nats_server(directory: Path) -> AsyncGenerator[dict[str, Any]]:
    """Run a nats-server; gives what is needed to connect to it."""
    process = _start(directory)
    try:
        port = await _port(directory, process.pid)
        yield {"ca": str(directory / "ca.pem"), "port": port}
    finally:
        process.terminate()
        process.wait()


@asynccontextmanager
async def service(address: dict[str, Any], queue: str = "") -> AsyncGenerator[None]:
    """Answer requests, those alone that *queue* gives us if it is named."""
    connection = await _connect(address)

    async def answer(message: Any) -> None:
        frame = _decode(message.data)
        await message.respond(_encode(Envelope("call.responded", frame.id, ANSWER)))

    await connection.subscribe(SUBJECT, queue, cb=answer)
    await connection.flush()
    yield
    await connection.close()


@asynccontextmanager
async def dial(address: dict[str, Any], _option: str) -> AsyncGenerator[Link]:
    connection = await _connect(address)
    yield NatsLink(connection)
    await connection.close()


class NatsLink(Link):
    """Requests on one connection."""

    def __init__(self, connection: Any) -> None:
        self._request = connection.request
        self._serial = 0

    async def call(self) -> None:
        self._serial += 1
        answer = await self._request(SUBJECT, _encode(request(self._serial)), timeout=10)
        _decode(answer.data)


async def _connect(address: dict[str, Any]) -> Any:
    return await nats.connect(
        f"tls://127.0.0.1:{address['port']}",
        tls=ssl.create_default_context(cafile=address["ca"]),
        tls_hostname="localhost",
    )


def _start(directory: Path) -> subprocess.Popen[bytes]:
    program = shutil.which("nats-server")
    assert program is not None
    ports = ["--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir", str(directory)]
    files = ["--tlscert", str(directory / "cert.pem"), "--tlskey", str(directory / "key.pem")]
    return subprocess.Popen([program, *ports, "--tls", *files], stderr=subprocess.DEVNULL)


async def _port(directory: Path, pid: int) -> int:
    """Wait until the server has written down its port."""
    file = directory / f"nats-server_{pid}.ports"
    async with asyncio.timeout(START_S):
        while not (file.exists() and file.read_bytes().endswith(b"}")):  # noqa: ASYNC110  a file
            await asyncio.sleep(POLL_S)
    return int(json.loads(file.read_bytes())["nats"][0].rpartition(":")[2])
