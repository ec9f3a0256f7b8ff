"""Stock iroh in a process of its own: commands on stdin, answers on stdout, JSON by line.

It knows nothing of alknet. iroh's Python binding needs asyncio, which is why it is apart. Byte
strings travel as hex. ``{"do": NAME, ...}`` runs the function NAME below with the other keys;
the answer is ``{"ok": RESULT}`` or ``{"error": TEXT}``.
"""

from __future__ import annotations

import asyncio  # noqa: TID251  iroh's binding has no other
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import iroh

MAX_READ = 64 * 1024 * 1024


class Peer:
    """One iroh endpoint with at most one connection."""

    endpoint: iroh.Endpoint
    connection: iroh.Connection

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def bind(self, alpns: list[str]) -> dict[str, str]:
        self.endpoint = await iroh.Endpoint.bind(
            iroh.EndpointOptions(
                preset=iroh.preset_minimal(),
                relay_mode=iroh.RelayMode.disabled(),
                bind_addr="127.0.0.1:0",
                alpns=[alpn.encode() for alpn in alpns],
            )
        )
        return {"id": str(self.endpoint.id()), "address": self.endpoint.bound_sockets()[0]}

    # the dialling side

    async def connect(self, id: str, address: str, alpn: str) -> dict[str, Any]:  # noqa: A002
        target = iroh.EndpointAddr(iroh.EndpointId.from_string(id), None, [address])
        self.connection = await self.endpoint.connect(target, alpn.encode())
        return {
            "remote_id": str(self.connection.remote_id()),
            "max_datagram": self.connection.max_datagram_size(),
        }

    async def exchange(self, messages: list[str]) -> list[str]:
        """Open one stream for each message, all at once; write, finish, read to the end."""
        return list(await asyncio.gather(*map(self._exchange_one, messages)))

    async def _exchange_one(self, message: str) -> str:
        stream = await self.connection.open_bi()
        send, receive = stream.send(), stream.recv()

        async def write() -> None:
            await send.write_all(bytes.fromhex(message))
            await send.finish()

        _, answer = await asyncio.gather(write(), receive.read_to_end(MAX_READ))
        return bytes(answer).hex()

    async def send_uni(self, data: str) -> None:
        stream = await self.connection.open_uni()
        await stream.write_all(bytes.fromhex(data))
        await stream.finish()

    async def accept_uni(self) -> str:
        stream = await self.connection.accept_uni()
        return bytes(await stream.read_to_end(MAX_READ)).hex()

    async def open_and_reset(self, code: int) -> None:
        stream = await self.connection.open_bi()
        await stream.send().write_all(b"never mind")
        await stream.send().reset(code)

    async def open_and_read_reset(self, data: str) -> int | None:
        """Send, and wait until the other side resets its sending side."""
        stream = await self.connection.open_bi()
        await stream.send().write_all(bytes.fromhex(data))
        return await stream.recv().received_reset()

    async def longest_datagram(self) -> int | None:
        """Return how long one may be, as far as the path is known: more, as time passes."""
        return self.connection.max_datagram_size()

    async def exchange_datagram(self, data: str) -> str:
        self.connection.send_datagram(bytes.fromhex(data))
        return bytes(await self.connection.read_datagram()).hex()

    async def send_datagrams(self, data: str, count: int) -> None:
        """Send *data* so often, as fast as the connection takes it."""
        for _ in range(count):
            await self.connection.send_datagram_wait(bytes.fromhex(data))

    async def close(self, code: int, reason: str) -> None:
        self.connection.close(code, reason.encode())

    async def closed(self) -> str:
        return await self.connection.closed()

    # the accepting side

    async def accept_and_echo(self) -> dict[str, str]:
        """Wait for a connection; from then on echo its streams and datagrams."""
        incoming = await self.endpoint.accept_next()
        assert incoming is not None
        self.connection = await (await incoming.accept()).connect()
        self._start(self._echo_streams())
        self._start(self._echo_datagrams())
        return {"remote_id": str(self.connection.remote_id())}

    async def accept_fails(self) -> str:
        """Wait for a connection that must not come about; return why."""
        incoming = await self.endpoint.accept_next()
        assert incoming is not None
        try:
            await (await incoming.accept()).connect()
        except iroh.IrohError as error:
            return error.message()
        raise AssertionError("the handshake succeeded")

    async def _echo_streams(self) -> None:
        while True:
            try:
                stream = await self.connection.accept_bi()
            except iroh.IrohError:
                return
            self._start(self._echo(stream))

    async def _echo(self, stream: iroh.BiStream) -> None:
        data = await stream.recv().read_to_end(MAX_READ)
        await stream.send().write_all(bytes(data))
        await stream.send().finish()

    async def _echo_datagrams(self) -> None:
        while True:
            try:
                data = await self.connection.read_datagram()
            except iroh.IrohError:
                return
            # It may be longer than what iroh knows yet that the path takes.
            with suppress(iroh.IrohError):
                self.connection.send_datagram(data)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def main() -> None:
    peer = Peer()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        run: Callable[..., Awaitable[Any]] = getattr(peer, command.pop("do"))
        try:
            answer = {"ok": await run(**command)}
        except iroh.IrohError as error:
            answer = {"error": f"{error.message()} | {error.debug_message()}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
