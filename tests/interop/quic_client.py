"""A stock client of aioquic or qh3, in a process of its own: both need asyncio.

It knows nothing of alknet. The only argument is JSON: library, port, alpn, ca, server_name, and
steps: ``get`` (asks for a page), ``echo`` (a stream of ``size`` bytes that must come back),
``update_keys``, ``migrate`` (goes on from another port). Prints a JSON list, an answer per step.
"""

from __future__ import annotations

import asyncio  # noqa: TID251  the libraries know no other
import hashlib
import json
import socket
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

STEP_S = 60.0
PATTERN = hashlib.sha256(b"interop").digest()


async def main(library: str, port: int, steps: list[str], **options: Any) -> list[Any]:
    driver = import_module(f"{library}.asyncio")
    configuration = import_module(f"{library}.quic.configuration").QuicConfiguration(
        is_client=True, alpn_protocols=[options["alpn"]], server_name=options["server_name"]
    )
    configuration.load_verify_locations(options["ca"])
    answers = []
    async with driver.connect(
        "127.0.0.1", port, configuration=configuration, create_protocol=_protocol(library)
    ) as protocol:
        for step in steps:
            name, _, argument = step.partition(" ")
            answers.append(await asyncio.wait_for(STEPS[name](protocol, argument), STEP_S))
    return answers


def _protocol(library: str) -> Any:
    """The library's protocol, which also reads HTTP/3 if `get` asks for it."""
    base: Any = import_module(f"{library}.asyncio").QuicConnectionProtocol
    http = import_module(f"{library}.h3.connection").H3Connection

    class Protocol(base):  # type: ignore[misc]
        http: Any = None
        answer: Any = None

        def begin_http(self) -> Any:
            self.http = self.http or http(self._quic)
            self.answer = asyncio.get_running_loop().create_future()
            self.seen: list[Any] = []
            return self.http

        def quic_event_received(self, event: Any) -> None:
            if self.http is None:
                super().quic_event_received(event)
                return
            for found in self.http.handle_event(event):
                self.seen.append(found)
                if getattr(found, "stream_ended", False):
                    self.answer.set_result(self.seen)

    return Protocol


async def get(protocol: Any, path: str) -> dict[str, str]:
    http = protocol.begin_http()
    stream_id = protocol._quic.get_next_available_stream_id()
    fields = {":method": "GET", ":scheme": "https", ":authority": "node.test", ":path": path}
    http.send_headers(
        stream_id, [(k.encode(), v.encode()) for k, v in fields.items()], end_stream=True
    )
    protocol.transmit()
    seen = await protocol.answer
    headers = [one.headers for one in seen if hasattr(one, "headers")]
    body = b"".join(bytes(one.data) for one in seen if hasattr(one, "data"))
    return {"status": dict(headers[0])[b":status"].decode(), "body": body.decode()}


async def echo(protocol: Any, size: str) -> str:
    reader, writer = await protocol.create_stream()
    sent = (PATTERN * (int(size) // len(PATTERN) + 1))[: int(size)]
    writer.write(sent)
    writer.write_eof()
    got = await reader.read()
    return "same" if got == sent else f"sent {len(sent)} bytes, got {len(got)} others"


async def update_keys(protocol: Any, _: str) -> None:
    protocol.request_key_update()
    await protocol.ping()


async def migrate(protocol: Any, _: str) -> int:
    """Return the number of the new port."""
    before = protocol._transport
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 0))
    await asyncio.get_running_loop().create_datagram_endpoint(lambda: protocol, sock=sock)
    before.close()
    protocol.change_connection_id()
    await protocol.ping()
    return int(sock.getsockname()[1])


STEPS: dict[str, Callable[[Any, str], Awaitable[Any]]] = {
    "get": get,
    "echo": echo,
    "update_keys": update_keys,
    "migrate": migrate,
}

if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(**json.loads(sys.argv[1])))))  # noqa: T201
