"""grpc.aio over TLS, with the floor's JSON in its messages instead of protobuf."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.driver import Link
from benchmarks.frames import ANSWER, Envelope, request

RUNTIME = "asyncio"
grpc = import_module("grpc")
aio = import_module("grpc.aio")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Envelope).decode


async def answer(data: bytes, _context: object) -> bytes:
    return _encode(Envelope("call.responded", _decode(data).id, ANSWER))


@asynccontextmanager
async def serve(directory: str, _option: str) -> AsyncGenerator[dict[str, Any]]:
    server = aio.server()
    methods = {"Call": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bench", methods),))
    port = server.add_secure_port("127.0.0.1:0", _server_credentials(Path(directory)))
    await server.start()
    yield {"port": port, "ca": str(Path(directory, "ca.pem"))}
    await server.stop(0)


@asynccontextmanager
async def dial(address: dict[str, Any], _option: str) -> AsyncGenerator[Link]:
    credentials = client_credentials(Path(address["ca"]))
    options = [
        ("grpc.ssl_target_name_override", "localhost"),
        # Without it, all channels of a process share one connection.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with aio.secure_channel(
        f"127.0.0.1:{address['port']}", credentials, options=options
    ) as channel:
        yield GrpcLink(channel)


class GrpcLink(Link):
    """Calls on one channel."""

    def __init__(self, channel: Any) -> None:
        self._call = channel.unary_unary("/Bench/Call")
        self._serial = 0

    async def call(self) -> None:
        self._serial += 1
        _decode(await self._call(_encode(request(self._serial))))


def _server_credentials(directory: Path) -> Any:
    key, certificate = ((directory / name).read_bytes() for name in ("key.pem", "cert.pem"))
    return grpc.ssl_server_credentials([(key, certificate)])


def client_credentials(ca: Path) -> Any:
    return grpc.ssl_channel_credentials(ca.read_bytes())
