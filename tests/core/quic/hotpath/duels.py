"""What the tests of receiving share: a duel whose next packets are plain."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from aioquic.tls import CipherSuite

from alknet.core.limits import Limits
from tests.core.quic.hostile import varint
from tests.core.quic.hotpath.differential import Duel, Twins, random_bytes

PING = b"\x01"
SMALL = Limits(stream_receive_window_bytes=2_000, connection_receive_window_bytes=3_000)
# A packet number of four bytes: then any frames, none too, are long enough for a packet.
ANY_LENGTH = 0x43


def stream(stream_id: int, offset: int, data: bytes, kind: int = 0x0E) -> bytes:
    head = varint(kind, stream_id)
    if kind & 4:
        head += varint(offset)
    if kind & 2:
        head += varint(len(data))
    return head + data


def ready(limits: Limits | None = None, suite: CipherSuite | None = None) -> Duel:
    """A duel whose next packets are plain: streams 0, 2, 1 and 3 carry five bytes each."""
    duel = Duel(limits=limits, suite=suite or CipherSuite.AES_128_GCM_SHA256)
    for side, stream_ids in ((duel.client, (0, 2)), (duel.server, (1, 3))):
        # No packet number is left out, by chance: tests acknowledge packets by their numbers.
        side.set(lambda engine: setattr(engine, "_skip_at", 1 << 40))
        for stream_id in stream_ids:
            opened = side.do(
                lambda engine, i=stream_id: engine.open_stream(unidirectional=bool(i & 2))  # type: ignore[misc]
            )
            assert opened == stream_id
            side.do(lambda engine, i=opened: engine.send_stream_data(i, b"hello"))  # type: ignore[misc]
    duel.run(0.1)
    return duel


@cache
def ready_once() -> Duel:
    with random_bytes(0):  # whichever test is the first
        return ready()


def forked() -> Duel:
    """`ready`, made once."""
    duel = Duel.__new__(Duel)
    duel.__dict__ |= ready_once().__dict__
    duel.client, duel.server = duel.client.fork(), duel.server.fork()
    return duel


def is_short(side: Twins, act: Callable[[], object]) -> bool:
    """Do *act*; return whether *side* then took the short way."""
    before = side.hot._hot_inbound
    act()
    return before is not None and side.hot._hot_inbound is before


def hear(duel: Duel, side: Twins, frames: bytes, **header: int) -> bool:
    """Let *side* receive exactly these frames; return whether the short way was taken."""
    data = duel.other(side).seal(frames, **{"first": ANY_LENGTH, **header})
    return is_short(side, lambda: duel.deliver(data, side))


FRAMES = {
    "ack": varint(2, 3, 10, 0, 1),
    "ack of two ranges": varint(2, 5, 1000, 1, 0, 1, 1),
    "ack with counts": varint(3, 3, 10, 0, 1, 1, 2, 100_000),
    "stream with all": stream(0, 5, b"more", 0x0F),
    "stream of a large offset": stream(0, 70_000, b"x"),
    "stream of another": stream(400, 0, b"more than that" * 10),
    "stream to the end": stream(0, 5, b"more", 0x0C),
    "crypto": varint(6, 70, 4) + b"more",
    "reset stream": varint(4, 0, 7, 5),
    "stop sending": varint(5, 0, 7),
    "new token": varint(7, 3) + b"tok",
    "max data": varint(0x10, 2**30),
    "max stream data": varint(0x11, 0, 2**30),
    "max streams": varint(0x12, 1000),
    "max streams, one way": varint(0x13, 1000),
    "data blocked": varint(0x14, 1000),
    "stream data blocked": varint(0x15, 0, 1000),
    "streams blocked": varint(0x16, 1000),
    "streams blocked, one way": varint(0x17, 1000),
    "new connection id": varint(0x18, 8, 1) + b"\x08" + bytes(24),
    "retire connection id": varint(0x19, 1),
    "path challenge": b"\x1a" + bytes(8),
    "path response": b"\x1b" + bytes(8),
    "transport close": varint(0x1C, 1, 2, 3) + b"why",
    "application close": varint(0x1D, 1, 3) + b"why",
    "handshake done": b"\x1e",
    "datagram": varint(0x31, 4) + b"data",
    "datagram to the end": b"\x30data",
    "padding": bytes(3),
    "ping": PING,
    "unknown": varint(0x1F),
    "unknown, long": varint(0x4000),
    "ping in two bytes": b"\x40\x01",
    "stream in two bytes": b"\x40" + stream(0, 5, b"more"),
    "padding in two bytes": b"\x40\x00",
}
