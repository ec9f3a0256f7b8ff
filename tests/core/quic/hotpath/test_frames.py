"""Frames and packets as bytes: what aioquic writes."""

from __future__ import annotations

import os
from random import Random  # noqa: TID251  seeded

import pytest
from aioquic._buffer import Buffer
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicProtocolVersion, push_ack_frame
from aioquic.quic.packet_builder import QuicPacketBuilderStop
from aioquic.quic.rangeset import RangeSet
from aioquic.tls import CipherSuite

from alknet.core.quic.hotpath.frames import (
    FrameWriter,
    ack_frame,
    stream_head,
    stream_overhead,
)
from alknet.core.quic.hotpath.records import AckPacket, Frames, Handlers, PlainPacket
from alknet.core.quic.hotpath.seal import Sealer

EDGES = [0, 1, 63, 64, 16_383, 16_384, (1 << 30) - 1, 1 << 30, (1 << 62) - 1]


@pytest.mark.parametrize("count", [0, 1, 1_000, 16_383])
@pytest.mark.parametrize("offset", EDGES)
@pytest.mark.parametrize("stream_id", EDGES)
def test_the_head_of_a_stream_frame_is_aioquics(stream_id: int, offset: int, count: int) -> None:
    buf = Buffer(capacity=32)
    buf.push_uint_var(0x0E)
    buf.push_uint_var(stream_id)
    if offset:
        buf.push_uint_var(offset)
    buf.push_uint16(count | 0x4000)
    assert stream_head(0x0E, stream_id, offset, count) == buf.data
    assert stream_overhead(stream_id, offset) == len(buf.data)


@pytest.mark.parametrize("offset", [0, 5, 70_000])
def test_a_length_that_two_bytes_cannot_hold_has_four(offset: int) -> None:
    head = stream_head(0x0E, 4, offset, 16_384)
    assert len(head) == stream_overhead(4, offset) + 2
    assert head.endswith(b"\x80\x00\x40\x00")


@pytest.mark.parametrize("seed", range(20))
def test_an_ack_frame_is_aioquics(seed: int) -> None:
    rng = Random(seed)
    received = RangeSet()
    for _ in range(rng.randrange(1, 65)):
        start = rng.randrange(1 << rng.choice((4, 10, 20, 40)))
        received.add(start, start + rng.choice((1, 2, 70, 20_000)))
    delay = rng.randrange(1 << rng.choice((5, 12, 20)))
    buf = Buffer(capacity=2_000)
    buf.push_uint_var(2)
    push_ack_frame(buf, received, delay, 1_999)
    assert ack_frame(received, delay) == buf.data


def test_a_writer_takes_what_fits() -> None:
    frames: Frames = []
    handlers: Handlers = []
    writer = FrameWriter(frames, handlers, 20)
    assert writer.start_frame(0x10, 17, print, ("x",)) is writer
    writer.push_uint_var(16_384)
    assert b"".join(frames) == b"\x10\x80\x00\x40\x00"
    assert handlers == [(print, ("x",))]
    assert writer.used == 5
    writer.start_frame(1, 15)
    assert handlers == [(print, ("x",))]
    with pytest.raises(QuicPacketBuilderStop):
        writer.start_frame(1, 15)
    assert b"".join(frames) == b"\x10\x80\x00\x40\x00\x01"


@pytest.mark.parametrize("version", QuicProtocolVersion)
@pytest.mark.parametrize("spin_bit", [False, True])
@pytest.mark.parametrize("suite", list(CipherSuite)[:3])
def test_packets_are_sealed_as_aioquic_does(
    suite: CipherSuite, spin_bit: bool, version: int
) -> None:
    crypto = CryptoPair()
    for context in (crypto.send, crypto.recv):
        context.setup(cipher_suite=suite, secret=os.urandom(48), version=version)
    cid = os.urandom(8)
    for phase in (0, 1):
        sealer = Sealer(crypto, cid)
        sealer.spin(spin_bit)
        assert sealer.aead is crypto.send.aead
        for number in (0, 255, 65_535, 65_536, 1 << 33):
            frames = os.urandom(30)
            header = bytes([0x41 | spin_bit << 5 | phase << 2]) + cid
            header += (number & 0xFFFF).to_bytes(2)
            assert sealer.header_bytes == len(header)
            assert sealer.seal(number, frames) == crypto.encrypt_packet(header, frames, number)
        crypto._update_key("local_update")


def test_records_are_what_recovery_asks_of_a_packet() -> None:
    plain, ack = PlainPacket(7, 1.5, 1_200, []), AckPacket(8, 2.5, 40, [])
    assert (plain.packet_number, plain.sent_time, plain.sent_bytes) == (7, 1.5, 1_200)
    assert plain.in_flight
    assert plain.is_ack_eliciting
    assert not ack.in_flight
    assert not ack.is_ack_eliciting
    assert not plain.is_crypto_packet
