"""A NATS queue group: services of which a nats-server gives each request to one, over TLS.

The first service's process (option ``0``) starts the server; its children's CPU time counts too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.driver import Link
from benchmarks.peers import nats_service

RUNTIME = "asyncio"
QUEUE = "workers"


@asynccontextmanager
async def serve(directory: str, option: str) -> AsyncGenerator[dict[str, Any]]:
    if option == "0":
        async with nats_service.nats_server(Path(directory)) as address:
            _place(directory).write_bytes(msgspec.json.encode(address))
            async with nats_service.service(address, QUEUE):
                yield address
        return
    address = await _found(_place(directory))
    async with nats_service.service(address, QUEUE):
        yield address


@asynccontextmanager
async def dial(address: dict[str, Any], option: str) -> AsyncGenerator[Link]:
    async with nats_service.dial(address["workers"][0], option) as link:
        yield link


def _place(directory: str) -> Path:
    return Path(directory, "nats.json")


async def _found(place: Path) -> dict[str, Any]:
    async with asyncio.timeout(nats_service.START_S):
        while (address := _read(place)) is None:  # noqa: ASYNC110  a file
            await asyncio.sleep(nats_service.POLL_S)
    return address


def _read(place: Path) -> dict[str, Any] | None:
    data = place.read_bytes() if place.exists() else b""
    return msgspec.json.decode(data, type=dict[str, Any]) if data.endswith(b"}") else None
