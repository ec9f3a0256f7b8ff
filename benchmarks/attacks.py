"""Hostile clients at a fixed rate: ``CORE ATTACK HOST PORT RATE``, until standard input ends.

Each attack sends real packets from real sockets. What needs a handshake does an honest one with
stock aioquic, then seals frames by hand. Source addresses are many of 127.0.0.0/8, which is as
good as forging them: no answer is ever waited for. A line of JSON says when the attack is ready,
another at the end how much it has sent.
"""

# ruff: noqa: SLF001  aioquic has no other names for what a forger needs
from __future__ import annotations

import os
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle
from typing import Protocol

import msgspec
from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.tls import Epoch

ALPN = "alknet/call"
Address = tuple[str, int]
# Together far above the limit of connections per address, and of handshakes before Retry.
SOURCES = 250
INITIALS = 1_000
INITIAL_BYTES = 1_200
# Calls that a peer asks for in one packet.
REQUESTS = 12
# Bytes that the node lets us send on a stream before it has read any.
STREAM_WINDOW = 900_000
MAX_BURST = 256
TICK_S = 0.001
PING, ACK, RESET_STREAM, STREAM, CRYPTO = 0x01, 0x02, 0x04, 0x0A, 0x06


class Attack(Protocol):
    """What is done to a node."""

    def strike(self) -> None:
        """Send one packet, or one byte of a slow stream."""

    def close(self) -> None:
        """Leave, without a word."""


def varint(*numbers: int) -> bytes:
    """Write *numbers* as QUIC does."""
    buf = Buffer(capacity=8 * len(numbers))
    for number in numbers:
        buf.push_uint_var(number)
    return buf.data


def udp_socket(target: Address, source: str = "127.0.0.1") -> socket.socket:
    """Open a socket that never blocks, and never says that nobody listens."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((source, 0))
    sock.connect(target)
    return sock


def send(sock: socket.socket, data: bytes) -> None:
    """Send, or lose: an attacker does not mind."""
    with suppress(BlockingIOError, ConnectionRefusedError):
        sock.send(data)


# datagrams without a connection


class Replay:
    """The same datagrams again and again, each from another of *sources* addresses."""

    def __init__(self, target: Address, datagrams: list[bytes], sources: int = SOURCES) -> None:
        self._sockets = [udp_socket(target, f"127.7.0.{1 + n}") for n in range(sources)]
        self._next = cycle(self._sockets)
        self._datagrams = cycle(datagrams)

    def strike(self) -> None:
        send(next(self._next), next(self._datagrams))

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


def short_strays() -> list[bytes]:
    """Packets of connections that do not exist."""
    return [b"\x41" + os.urandom(20 + n % 1_200) for n in range(1_000)]


def unknown_versions() -> list[bytes]:
    """Packets that ask for a version negotiation."""
    head = b"\xc0\x1a\x2a\x3a\x4a\x08"
    return [head + os.urandom(8) + b"\x08" + os.urandom(1_186) for _ in range(500)]


def noise() -> list[bytes]:
    """Anything: of all lengths, with all first bytes."""
    return [os.urandom(n % 1_400) for n in range(1_400)] + [
        b"\xc0\x00\x00\x00\x01" + os.urandom(99)
    ]


def undecryptable_initials() -> list[bytes]:
    """Initials whose header is right and whose contents are random."""
    heads = [_head(os.urandom(8)) for _ in range(500)]
    return [head + os.urandom(INITIAL_BYTES - len(head)) for head in heads]


def initials(count: int = INITIALS, alpn: str = ALPN) -> list[bytes]:
    """First packets of so many clients that will never say another word."""
    hello = client_hello(alpn)
    return [initial(varint(CRYPTO, 0, len(hello)) + hello) for _ in range(count)]


def crumbled_initials() -> list[bytes]:
    """Initials with a handshake of single bytes, with a hole before each."""
    crumbs = b"".join(varint(CRYPTO, 2 * n + 1, 1) + b"x" for n in range(60))
    return [initial(crumbs) for _ in range(INITIALS)]


SOURCE_CID = b"attacker"


def client_hello(alpn: str) -> bytes:
    """Return the handshake message with which `SOURCE_CID` begins."""
    engine = _engine(alpn)
    engine._local_initial_source_connection_id = SOURCE_CID
    engine._host_cids[0].cid = SOURCE_CID
    engine.connect(("127.0.0.1", 1), 0.0)
    return bytes(engine._crypto_streams[Epoch.INITIAL].sender._buffer)


def initial(frames: bytes) -> bytes:
    """Seal *frames* as the first Initial packet of a new connection."""
    cid = os.urandom(8)
    crypto = CryptoPair()
    crypto.setup_initial(cid=cid, is_client=True, version=1)
    head = _head(cid)
    sealed = crypto.encrypt_packet(head, frames.ljust(INITIAL_BYTES - 16 - len(head), b"\0"), 0)
    assert isinstance(sealed, bytes)
    return sealed


def _head(cid: bytes) -> bytes:
    """Write the header of an Initial of `INITIAL_BYTES` with packet number 0."""
    start = b"\xc1\x00\x00\x00\x01\x08" + cid + b"\x08" + SOURCE_CID + b"\x00"
    length = INITIAL_BYTES - len(start) - 2
    return start + (0x4000 | length).to_bytes(2) + b"\x00\x00"


def _engine(alpn: str = ALPN) -> QuicConnection:
    configuration = QuicConfiguration(alpn_protocols=[alpn], verify_mode=ssl.CERT_NONE)
    return QuicConnection(configuration=configuration)


# connections


class Link:
    """A connection that a node has accepted, on which anything can be said."""

    def __init__(self, target: Address, source: str = "127.0.0.1") -> None:
        self._target = target
        self._socket = udp_socket(target, source)
        self.engine = _engine()
        self.engine.connect(target, time.monotonic())
        ends_at = time.monotonic() + 5
        while not self.engine._handshake_confirmed:
            if time.monotonic() > ends_at or self.is_over:
                self.close()
                raise ConnectionError("the node does not let us in")
            self.pump()
            select.select([self._socket], [], [], 0.02)

    @property
    def is_over(self) -> bool:
        """The node has closed it."""
        return self.engine._close_event is not None

    def pump(self) -> None:
        """Be honest for once: take what came, and answer it."""
        now = time.monotonic()
        with suppress(BlockingIOError, ConnectionRefusedError):
            while True:
                self.engine.receive_datagram(self._socket.recv(65_536), self._target, now)
        while self.engine.next_event() is not None:
            pass
        timer = self.engine.get_timer()
        if timer is not None and timer <= now:
            self.engine.handle_timer(now)
        for data, _ in self.engine.datagrams_to_send(now):
            send(self._socket, data)

    def say(self, frames: bytes) -> None:
        """Send a packet with *frames*."""
        engine = self.engine
        number = engine._packet_number
        engine._packet_number += 1
        head = b"\x41" + engine._peer_cid.cid + (number & 0xFFFF).to_bytes(2)
        sealed = engine._cryptos[Epoch.ONE_RTT].encrypt_packet(
            head, frames.ljust(20, b"\0"), number
        )
        send(self._socket, sealed)

    def rebind(self, source: str = "127.0.0.1") -> None:
        """Go on from another port, as behind a NAT that has forgotten us."""
        self._socket.close()
        self._socket = udp_socket(self._target, source)

    def close(self) -> None:
        self._socket.close()


class Flood:
    """Packets of frames from *source* on a connection; on a new one when the node has closed it.

    Args:
        pumps_each: Packets after which the answers are taken, or 0 for never.
    """

    def __init__(
        self, target: Address, frames: Callable[[Link], Iterator[bytes]], *, pumps_each: int = 64
    ) -> None:
        self._target = target
        self._frames = frames
        self._pumps_each = pumps_each
        self._sent = 0
        self._link: Link | None = None
        self._what: Iterator[bytes] = iter(())
        self.connections = 0
        self._begin()

    def _begin(self) -> None:
        self._link = None
        with suppress(ConnectionError):  # it is being attacked: try again
            self._link = Link(self._target, f"127.8.0.{1 + self.connections % 250}")
            self._what = self._frames(self._link)
        self.connections += 1

    def strike(self) -> None:
        self._sent += 1
        if self._link is None:
            self._begin()
            return
        if self._pumps_each and self._sent % self._pumps_each == 0:
            self._link.pump()
        found = None if self._link.is_over else next(self._what, None)
        if found is None:
            self._link.close()
            self._begin()
        elif found:
            self._link.say(found)

    def close(self) -> None:
        if self._link is not None:
            self._link.close()


def pings(_: Link) -> Iterator[bytes]:
    """Nothing but a wish for an answer."""
    return cycle([varint(PING)])


def moves(link: Link) -> Iterator[bytes]:
    """Each few packets from another port."""
    for number in range(1_000):
        if number % 16 == 15:
            link.rebind()
        yield varint(PING)


def acks(_: Link) -> Iterator[bytes]:
    """What was acknowledged long ago."""
    return cycle([varint(ACK, 0, 0, 0, 0)])


def resets(link: Link) -> Iterator[bytes]:
    """Streams that are opened and reset at once, as many as the node lets us."""
    for stream_id in _stream_ids(link):
        if stream_id is None:
            yield b""
        else:
            opened = varint(STREAM, stream_id, 4) + b"\0\0\0\x09"
            yield opened + varint(RESET_STREAM, stream_id, 7, 4)


def malformed(link: Link) -> Iterator[bytes]:
    """Call frames that are none, each on a stream of its own."""
    bad = (b"\0\0\0\0", b"\xff" * 8, b"\0\0\0\x05{{{{{", b"\0\0\0\x02{}", b"\0\0\0\x03\xff\xfe\xfd")
    for number, stream_id in enumerate(_stream_ids(link)):
        if stream_id is None:
            yield b""
        else:
            body = bad[number % len(bad)]
            yield (
                varint(STREAM, stream_id, len(body))
                + body
                + varint(RESET_STREAM, stream_id, 0, len(body))
            )


def _stream_ids(link: Link) -> Iterator[int | None]:
    """Yield IDs of new streams, None while the node's limit is reached."""
    number = 0
    while True:
        if number >= link.engine._remote_max_streams_bidi:
            link.pump()
            yield None
        else:
            link.engine._get_or_create_stream_for_send(4 * number)  # it is to expect an answer
            yield 4 * number
            number += 1


def unread(_: Link) -> Iterator[bytes]:
    """Calls without end on one stream, whose answers nobody takes, until the window is full."""
    asked = b"".join(request(n) for n in range(REQUESTS))
    for offset in range(0, STREAM_WINDOW, len(asked)):
        yield varint(STREAM | 4, 0, offset, len(asked)) + asked


def request(number: int) -> bytes:
    """Write a call of ``node/ping`` as a frame. The same ids come again once they are settled."""
    body = msgspec.json.encode(
        {"type": "call.requested", "id": f"n{number}", "payload": {"operationId": "/node/ping"}}
    )
    return len(body).to_bytes(4) + body


# TCP


class SlowLoris:
    """TLS handshakes that get on by a byte at a time; of *count* at once."""

    HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)

    def __init__(self, target: Address, count: int = 200) -> None:
        self._target = target
        self._open: list[tuple[socket.socket, Iterator[int]]] = []
        self._at = 0
        for number in range(count):
            self._open.append(self._dial(number))

    def _dial(self, number: int) -> tuple[socket.socket, Iterator[int]]:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.bind((f"127.9.0.{1 + number % 250}", 0))
        sock.setblocking(False)
        with suppress(BlockingIOError):
            sock.connect(self._target)
        return sock, iter(self.HELLO)

    def strike(self) -> None:
        self._at = (self._at + 1) % len(self._open)
        sock, rest = self._open[self._at]
        try:
            sock.send(bytes([next(rest)]))
        except BlockingIOError:
            pass
        except (OSError, StopIteration):
            sock.close()
            self._open[self._at] = self._dial(self._at)

    def close(self) -> None:
        for sock, _ in self._open:
            sock.close()


ATTACKS: dict[str, Callable[[Address], Attack]] = {
    "noise": lambda target: Replay(target, noise()),
    "strays with short headers": lambda target: Replay(target, short_strays()),
    "unknown versions": lambda target: Replay(target, unknown_versions()),
    "Initials that do not decrypt": lambda target: Replay(target, undecryptable_initials()),
    "Initials from forged addresses": lambda target: Replay(target, initials()),
    "one Initial, replayed": lambda target: Replay(target, initials(1), sources=1),
    "handshakes in crumbs": lambda target: Replay(target, crumbled_initials()),
    "TLS byte by byte": SlowLoris,
    "PINGs": lambda target: Flood(target, pings),
    "PINGs from ever new ports": lambda target: Flood(target, moves, pumps_each=8),
    "acknowledgements": lambda target: Flood(target, acks),
    "streams opened and reset": lambda target: Flood(target, resets),
    "malformed call frames": lambda target: Flood(target, malformed),
    "calls whose answers nobody reads": lambda target: Flood(target, unread, pumps_each=0),
}


def run(attack: Attack, rate: float, is_over: Callable[[], bool]) -> dict[str, float]:
    """Strike *rate* times a second until *is_over*; what one falls behind by is not made up."""
    sent, began_at = 0, time.monotonic()
    due, last_at = 1.0, began_at
    while not sent or not is_over():
        now = time.monotonic()
        due = min(MAX_BURST, due + (now - last_at) * rate)
        last_at = now
        for _ in range(int(due)):
            attack.strike()
        sent += int(due)
        due -= int(due)
        time.sleep(TICK_S)
    return {"packets": sent, "seconds": time.monotonic() - began_at}


def main() -> None:
    core, name, host, port, rate = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    attack = ATTACKS[name]((host, int(port)))

    def is_over() -> bool:
        return bool(select.select([sys.stdin], [], [], 0)[0])

    _say({"ready": True})
    _say(run(attack, float(rate), is_over))
    attack.close()


def _say(what: dict[str, float]) -> None:
    sys.stdout.write(msgspec.json.encode(what).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
