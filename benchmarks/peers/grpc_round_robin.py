"""grpc.aio with its own load balancing, round robin, over the servers of `grpc_aio`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.driver import Link
from benchmarks.peers import grpc_aio

RUNTIME = "asyncio"
serve = grpc_aio.serve
POLICY = '{"loadBalancingConfig": [{"round_robin": {}}]}'


@asynccontextmanager
async def dial(address: dict[str, Any], _option: str) -> AsyncGenerator[Link]:
    workers = address["workers"]
    target = "ipv4:" + ",".join(f"127.0.0.1:{one['port']}" for one in workers)
    credentials = grpc_aio.client_credentials(Path(workers[0]["ca"]))
    options = [
        ("grpc.ssl_target_name_override", "localhost"),
        ("grpc.service_config", POLICY),
    ]
    async with grpc_aio.aio.secure_channel(target, credentials, options=options) as channel:
        yield grpc_aio.GrpcLink(channel)
