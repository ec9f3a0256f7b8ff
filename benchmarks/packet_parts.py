"""What the steps of a packet of 1200 bytes cost: encryption, frames, sockets."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aioquic.quic.crypto import CryptoPair
from aioquic.quic.rangeset import RangeSet
from aioquic.tls import CipherSuite

from alknet.core.ancillary import can_segment, coalesce, segment_message
from alknet.core.quic.hotpath.frames import ack_frame, stream_head
from alknet.core.quic.hotpath.records import PlainPacket
from alknet.core.quic.hotpath.seal import Sealer

__all__ = ["parts"]

SIZE = 1_200
PAYLOAD = SIZE - 11 - 16
RUN = 32  # packets that leave in one system call with GSO
LOOPBACK = "127.0.0.1"
VERSION = 1


def parts(repeats: int) -> dict[str, float]:
    """Return the CPU microseconds of each step, each done *repeats* times ten."""
    count = 10 * repeats
    return {
        **{f"of it, {name}": _each(step, count) for name, step in _steps().items()},
        **_sockets(repeats),
    }


def _steps() -> dict[str, Callable[[], object]]:
    crypto = CryptoPair()
    for context in (crypto.send, crypto.recv):
        context.setup(
            cipher_suite=CipherSuite.AES_128_GCM_SHA256, secret=os.urandom(32), version=VERSION
        )
    aead, protection = crypto.send.aead, crypto.send.hp
    assert aead is not None
    assert protection is not None
    encrypt, mask = aead._aead.encrypt, protection._encryptor.update
    frames, header, nonce, sample = bytes(PAYLOAD), bytes(11), bytes(12), bytes(16)
    sealed = encrypt(nonce, frames, header)
    decrypt = aead._aead.decrypt
    sealer = Sealer(crypto, bytes(8))
    data = bytearray(64 * SIZE)
    received = RangeSet([range(1_000)])

    def frame() -> bytes:
        head = stream_head(0x0E, 4, 1_000_000, PAYLOAD - 8)
        return b"".join((head, data[7_000 : 7_000 + PAYLOAD - 8]))

    return {
        "AEAD, encrypting": lambda: encrypt(nonce, frames, header),
        "AEAD, decrypting": lambda: decrypt(nonce, sealed, header),
        "mask of header protection": lambda: mask(sample),
        "sealing: AEAD, header and its protection": lambda: sealer.seal(70_000, frames),
        "sealing as aioquic does": lambda: crypto.encrypt_packet(b"\x41" + header[1:], frames, 1),
        "a STREAM frame's bytes": frame,
        "an ACK frame's bytes": lambda: ack_frame(received, 100),
        "the record of a sent packet": lambda: PlainPacket(1, 1.0, SIZE, []),
    }


def _each(step: Callable[[], object], count: int) -> float:
    began_at = time.process_time_ns()
    for _ in range(count):
        step()
    return (time.process_time_ns() - began_at) / count / 1e3


def _sockets(repeats: int) -> dict[str, float]:
    """Return what the system's calls cost per packet, singly and in runs of 32."""
    costs = {}
    with _linked() as (sender, receiver):
        packet = bytes(SIZE)
        sent = received = 0
        for _ in range(repeats):
            sent += _timed(lambda: [sender.send(packet) for _ in range(RUN)])
            received += _timed(lambda: [receiver.recvfrom(65_535) for _ in range(RUN)])
        costs["socket, sending singly"] = sent / repeats / RUN / 1e3
        costs["socket, receiving singly"] = received / repeats / RUN / 1e3
        if can_segment(sender) and coalesce(receiver):
            run, ancillary = [packet] * RUN, [segment_message(SIZE)]
            sent = received = 0
            for _ in range(repeats):
                sent += _timed(lambda: sender.sendmsg(run, ancillary))
                received += _timed(lambda: receiver.recvmsg(65_535, 64))
            costs["socket, sending with GSO"] = sent / repeats / RUN / 1e3
            costs["socket, receiving with GRO"] = received / repeats / RUN / 1e3
    return costs


def _timed(action: Callable[[], object]) -> int:
    began_at = time.process_time_ns()
    action()
    return time.process_time_ns() - began_at


@contextmanager
def _linked() -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind((LOOPBACK, 0))
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        receiver.settimeout(5)
        sender.connect(receiver.getsockname())
        yield sender, receiver
