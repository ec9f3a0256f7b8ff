"""Ray: a driver that calls four actors in turn, which decode the request and build the answer.

Ray has no TLS here and knows no identities. Its processes (GCS, raylet, actors) are put on the
core of the others' servers, the driver stays on that of the clients.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.driver import Link
from benchmarks.frames import ANSWER, Envelope, request
from benchmarks.processes import descendants

RUNTIME = "asyncio"
ray = import_module("ray")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Envelope).decode


class Worker:
    """What an actor runs."""

    async def answer(self, data: bytes) -> bytes:
        return _encode(Envelope("call.responded", _decode(data).id, ANSWER))


@asynccontextmanager
async def serve(_directory: str, _option: str) -> AsyncGenerator[dict[str, Any]]:
    yield {}  # the head starts its workers


@asynccontextmanager
async def dial(address: dict[str, Any], _option: str) -> AsyncGenerator[Link]:
    path = str(Path(__file__).parents[2])
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    try:
        made = ray.remote(Worker).options(num_cpus=0, max_concurrency=1_000)
        actors = [made.remote() for _ in address["workers"]]
        link = RayLink(actors)
        for _ in actors:
            await link.call()
        _move_to(address["core"])
        yield link
    finally:
        ray.shutdown()


def _move_to(core: int) -> None:
    """Put all that Ray has started on *core*."""
    for pid in descendants(os.getpid()):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


class RayLink(Link):
    """Calls of the actors in turn."""

    def __init__(self, actors: list[Any]) -> None:
        self._actors = cycle(actors)
        self._serial = 0

    async def call(self) -> None:
        self._serial += 1
        actor = next(self._actors)
        _decode(await actor.answer.remote(_encode(request(self._serial))))
