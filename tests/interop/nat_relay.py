"""A router that translates addresses, in user space: ``python -m tests.interop.nat_relay IN OUT``.

What comes from inside to IN (``host:port``, UDP and TCP) goes on to OUT from an address and port
of the router; answers go back to who has asked. Nobody outside can begin. Says ``"ready"`` when it
listens.
"""

from __future__ import annotations

import sys

import trio

# A mapping that nobody uses is forgotten, as by the NATs of homes.
FORGOTTEN_AFTER_S = 30.0


async def relay_udp(
    inside: tuple[str, int],
    outside: tuple[str, int],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    listener = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    await listener.bind(inside)
    task_status.started()
    mappings: dict[tuple[str, int], trio.socket.SocketType] = {}

    async def answer(client: tuple[str, int], mapped: trio.socket.SocketType) -> None:
        with mapped:
            while True:
                with trio.move_on_after(FORGOTTEN_AFTER_S) as idle:
                    try:
                        data = await mapped.recv(65_536)
                    except ConnectionError:
                        continue
                    await listener.sendto(data, client)
                if idle.cancelled_caught:
                    del mappings[client]
                    return

    async with trio.open_nursery() as nursery:
        while True:
            data, client = await listener.recvfrom(65_536)
            mapped = mappings.get(client)
            if mapped is None:
                mapped = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
                await mapped.connect(outside)
                mappings[client] = mapped
                nursery.start_soon(answer, client, mapped)
            try:
                await mapped.send(data)
            except ConnectionError:
                continue


async def relay_tcp(
    inside: tuple[str, int],
    outside: tuple[str, int],
    *,
    task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
) -> None:
    async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        async for data in source:
            await sink.send_all(data)
        await sink.send_eof()

    async def serve(client: trio.SocketStream) -> None:
        try:
            async with await trio.open_tcp_stream(*outside) as server, trio.open_nursery() as both:
                both.start_soon(pump, client, server)
                both.start_soon(pump, server, client)
        except* (OSError, trio.BrokenResourceError):
            pass

    await trio.serve_tcp(serve, inside[1], host=inside[0], task_status=task_status)


async def main(inside: tuple[str, int], outside: tuple[str, int]) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(relay_udp, inside, outside)
        await nursery.start(relay_tcp, inside, outside)
        print('"ready"', flush=True)  # noqa: T201


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    trio.run(main, _address(sys.argv[1]), _address(sys.argv[2]))
