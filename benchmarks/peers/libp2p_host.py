"""py-libp2p over TCP with noise and yamux: one long-lived stream. Both ends prove their keys.

It runs in a virtual environment of its own (`Peer.venv`): it wants other packages than we do.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any, cast

import trio

from benchmarks.driver import Link
from benchmarks.peers.trio_frames import open_frame_link, serve_stream

RUNTIME = "trio"
PROTOCOL = "/bench/1"
libp2p = import_module("libp2p")
multiaddr = import_module("multiaddr")


class Stream(trio.abc.Stream):
    """libp2p's stream as Trio has them."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def send_all(self, data: Any) -> None:
        await self._stream.write(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return bytes(await self._stream.read(max_bytes or 65_536))
        except Exception as exc:
            if type(exc).__name__ in {"StreamEOF", "StreamReset", "StreamError", "MuxedStreamEOF"}:
                return b""
            raise

    async def aclose(self) -> None:
        await self._stream.reset()


@asynccontextmanager
async def _host() -> AsyncGenerator[Any]:
    keys = import_module("libp2p.crypto.ed25519").create_new_key_pair()
    host = libp2p.new_host(key_pair=keys, muxer_preference="YAMUX")
    async with host.run(listen_addrs=[multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        yield host


@asynccontextmanager
async def serve(_directory: str, _option: str) -> AsyncGenerator[dict[str, Any]]:
    async def on_stream(stream: Any) -> None:
        await serve_stream(Stream(stream))

    async with _host() as host:
        host.set_stream_handler(PROTOCOL, on_stream)
        yield {"address": str(host.get_addrs()[0])}


@asynccontextmanager
async def dial(address: dict[str, Any], _option: str) -> AsyncGenerator[Link]:
    info = import_module("libp2p.peer.peerinfo").info_from_p2p_addr(
        multiaddr.Multiaddr(address["address"])
    )
    async with _host() as host:
        await host.connect(info)
        stream = Stream(await host.new_stream(info.peer_id, [PROTOCOL]))
        async with open_frame_link(cast("trio.abc.Stream", stream)) as link:
            yield link
