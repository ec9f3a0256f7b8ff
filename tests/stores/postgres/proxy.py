"""A network between store and server that fails as a test says."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from alknet.core.scopes import open_background

__all__ = ["Proxy", "open_proxy"]

CHUNK = 65_536


class Proxy:
    """Forwards TCP connections to the server's socket.

    Attributes:
        cut_at: When a client's bytes hold this, its connection ends.
        is_cut_after: That happens once the server has them and has answered, not before; the
            answer is not passed on.
        cuts: How often that happened.
    """

    def __init__(self, target: Path) -> None:
        self.port = 0
        self.cut_at: bytes | None = None
        self.is_cut_after = False
        self.cuts = 0
        self._target = target
        self._open = trio.Event()
        self._open.set()

    def url(self, database: str, **more: str) -> str:
        options = "&".join(f"{name}={value}" for name, value in more.items())
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}?{options}"

    def pause(self) -> None:
        """Forward nothing more, of old connections or new ones, and close none."""
        self._open = trio.Event()

    def resume(self) -> None:
        """Forward what came meanwhile, and go on."""
        self._open.set()

    async def serve(self, client: trio.SocketStream) -> None:
        server = await trio.open_unix_socket(str(self._target))
        async with client, server, trio.open_nursery() as nursery:
            cut, answered = trio.Event(), trio.Event()
            ends = (cut, answered, nursery.cancel_scope)
            nursery.start_soon(self._forward_requests, client, server, *ends)
            nursery.start_soon(self._forward_answers, server, client, *ends)

    async def _forward_requests(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        cut: trio.Event,
        answered: trio.Event,
        scope: trio.CancelScope,
    ) -> None:
        while data := await _receive(source):
            await self._open.wait()
            if self.cut_at is not None and self.cut_at in data:
                self.cut_at = None
                self.cuts += 1
                if self.is_cut_after:
                    cut.set()
                    await sink.send_all(data)
                    await answered.wait()
                break
            await sink.send_all(data)
        scope.cancel()

    async def _forward_answers(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        cut: trio.Event,
        answered: trio.Event,
        scope: trio.CancelScope,
    ) -> None:
        while data := await _receive(source):
            await self._open.wait()
            if cut.is_set():
                answered.set()
                await trio.sleep_forever()
            try:
                await sink.send_all(data)
            except trio.BrokenResourceError:
                break
        scope.cancel()


async def _receive(stream: trio.SocketStream) -> bytes:
    """Return what comes next; nothing at the end, however that came about."""
    try:
        return bytes(await stream.receive_some(CHUNK))
    except trio.BrokenResourceError:
        return b""


@asynccontextmanager
async def open_proxy(target: Path) -> AsyncGenerator[Proxy]:
    proxy = Proxy(target)
    async with open_background() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, proxy.serve, listeners)
        yield proxy
