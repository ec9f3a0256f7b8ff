"""Unary calls: alknet over QUIC and TCP beside the floor, msgspec frames over Trio's own TLS.

The floor has no operations, no access check, no deadlines and no identities: it decodes a frame,
builds the same answer and sends it. What lies between the two is what the framework costs.
Server and client run in two processes; rounds of all peers alternate.
"""

from __future__ import annotations

import argparse
import multiprocessing
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import msgspec
import trio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from alknet.client import open_session
from alknet.core.limits import Limits
from alknet.core.tls.x509 import self_signed_web_certificate
from alknet.testing.nodes import open_node
from benchmarks.table import RESULTS, Row, as_json, markdown

REFERENCE = "trio.SSLStream + msgspec frames"
# The client is one stranger; nothing of what is measured is about limits.
LIMITS = Limits(calls_per_connection=10_000)
FLOOR_ANSWER = {"id": "x" * 52, "time": 0.0}

Call = Callable[[], Awaitable[object]]


class Envelope(msgspec.Struct):
    """As alknet's."""

    type: str
    id: str
    payload: dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer calls and rounds")
    parser.add_argument("--json", metavar="FILE", help="also write one JSON object there")
    options = parser.parse_args()
    rows = measure(calls=500 if options.quick else 4_000, rounds=2 if options.quick else 5)
    table = markdown("Unary calls", REFERENCE, rows)
    sys.stdout.write(table)
    if options.json:
        Path(options.json).write_text(as_json("call", rows))
    elif not options.quick:
        RESULTS.write_text(f"# Results\n\nMade by `make bench`.\n\n{table}")


def measure(*, calls: int, rounds: int) -> list[Row]:
    """Alternate rounds of all peers and return their medians."""
    with tempfile.TemporaryDirectory() as directory:
        parent, child = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve, args=(child, directory), daemon=True)
        server.start()
        ticket, floor_port = parent.recv()
        rates = trio.run(run_client, ticket, floor_port, directory, calls, rounds)
        parent.send("stop")
        server.join()
    rows = []
    for (peer, case), values in rates.items():
        value = statistics.median(values)
        rows.append(
            Row(peer, case, value, "calls/s", value / statistics.median(rates[REFERENCE, case]))
        )
    return rows


def serve(pipe: Pipe, directory: str) -> None:
    trio.run(run_servers, pipe, directory)


async def run_servers(pipe: Pipe, directory: str) -> None:
    certificate, key = self_signed_web_certificate()
    pem = trio.Path(directory, "cert.pem")
    await pem.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    async with open_node(limits=LIMITS) as node, trio.open_nursery() as nursery:
        (tcp,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve_floor, [trio.SSLListener(tcp, context)])
        pipe.send((str(node.ticket), tcp.socket.getsockname()[1]))
        await trio.to_thread.run_sync(pipe.recv)
        nursery.cancel_scope.cancel()


async def serve_floor(stream: trio.SSLStream[trio.SocketStream]) -> None:
    """Answer all frames of one read with one write."""
    decoder, encoder = msgspec.json.Decoder(Envelope), msgspec.json.Encoder()
    buffer = bytearray()
    async for chunk in stream:
        buffer += chunk
        answers = []
        for frame in take_frames(buffer):
            request = decoder.decode(frame)
            answer = Envelope("call.responded", request.id, {"output": FLOOR_ANSWER})
            answers.append(pack(encoder.encode(answer)))
        if answers:
            await stream.send_all(b"".join(answers))


def take_frames(buffer: bytearray) -> list[bytes]:
    frames, at = [], 0
    while len(buffer) >= at + 4:
        end = at + 4 + int.from_bytes(buffer[at : at + 4], "big")
        if len(buffer) < end:
            break
        frames.append(bytes(buffer[at + 4 : end]))
        at = end
    del buffer[:at]
    return frames


def pack(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


async def run_client(
    ticket: str, floor_port: int, directory: str, calls: int, rounds: int
) -> dict[tuple[str, str], list[float]]:
    rates: dict[tuple[str, str], list[float]] = {}
    async with (
        open_floor(floor_port, directory) as floor,
        open_session(ticket, transports=["quic"], limits=LIMITS) as quic,
        open_session(ticket, transports=["tcp"], limits=LIMITS) as tcp,
    ):
        peers: dict[str, Call] = {
            REFERENCE: floor,
            "alknet over QUIC": lambda: quic.call("node/ping", {}),
            "alknet over TCP": lambda: tcp.call("node/ping", {}),
        }
        for _ in range(rounds):
            for in_flight in (1, 64):
                for peer, call in peers.items():
                    rate = await timed(call, calls, in_flight)
                    rates.setdefault((peer, f"{in_flight} in flight"), []).append(rate)
    return rates


async def timed(call: Call, calls: int, in_flight: int) -> float:
    async def worker() -> None:
        for _ in range(calls // in_flight):
            await call()

    started_at = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(in_flight):
            nursery.start_soon(worker)
    return calls / (time.perf_counter() - started_at)


@asynccontextmanager
async def open_floor(port: int, directory: str) -> AsyncGenerator[Call]:
    """Connect to `serve_floor`; yields a function that makes one call."""
    context = ssl.create_default_context(cafile=str(Path(directory, "cert.pem")))
    stream = await open_tls(port, context)
    pending: dict[str, trio.Event] = {}
    outbox: list[bytes] = []
    wanted = trio.Event()
    encoder, decoder = msgspec.json.Encoder(), msgspec.json.Decoder(Envelope)
    serial = 0

    async def call() -> None:
        nonlocal serial, wanted
        serial += 1
        request = Envelope("call.requested", f"d{serial}", {"operationId": "/node/ping"})
        outbox.append(pack(encoder.encode(request)))
        pending[request.id] = done = trio.Event()
        wanted.set()
        await done.wait()

    async def write() -> None:
        nonlocal wanted
        while True:
            await wanted.wait()
            wanted = trio.Event()
            data = b"".join(outbox)
            outbox.clear()
            await stream.send_all(data)

    async def read() -> None:
        buffer = bytearray()
        async for chunk in stream:
            buffer += chunk
            for frame in take_frames(buffer):
                pending.pop(decoder.decode(frame).id).set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        nursery.start_soon(read)
        yield call
        nursery.cancel_scope.cancel()


async def open_tls(port: int, context: ssl.SSLContext) -> trio.SSLStream[trio.SocketStream]:
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    stream = trio.SSLStream(tcp, context, server_hostname="localhost")
    await stream.do_handshake()
    return stream


if __name__ == "__main__":
    main()
