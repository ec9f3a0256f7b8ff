"""What a first packet has to show before a connection is made for it."""

from __future__ import annotations

import contextlib
import os

import pytest
from aioquic.quic.crypto import CryptoPair
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from alknet.core.datagram import NetworkPath
from alknet.core.limits import Limits
from alknet.core.quic import packets
from alknet.core.quic.engine import client_engine
from alknet.core.quic.policy import client_policy
from alknet.errors import Malformed
from tests.core.quic.pairs import ALPN, Server
from tests.core.quic.worlds import exchange, world

STRANGER: NetworkPath = ("198.51.100.1", 999)
SIZE = 1_200
PADDING, PING, CRYPTO = b"\0", b"\x01", b"\x06\0\x01\x01"


def head(cid: bytes, size: int = SIZE) -> bytes:
    start = b"\xc1\0\0\0\x01\x08" + cid + b"\x04abcd\0"
    return start + (0x4000 | size - len(start) - 2).to_bytes(2) + b"\0\0"


def sealed(frames: bytes, *, cid: bytes | None = None) -> bytes:
    """An Initial that anyone can make, with *frames*."""
    cid = cid or os.urandom(8)
    keys = CryptoPair()
    keys.setup_initial(cid=cid, is_client=True, version=1)
    header = head(cid)
    packet: bytes = keys.encrypt_packet(header, frames.ljust(SIZE - 16 - len(header), PADDING), 0)
    return packet


def opens(datagram: bytes) -> bool:
    try:
        packets.open_first_untrusted(packets.read_header_untrusted(datagram), datagram)
    except Malformed:
        return False
    return True


@pytest.mark.parametrize("before", [b"", PADDING, PING, PING * 3 + PADDING * 9 + PING])
def test_a_crypto_frame_may_follow_padding_and_pings(before: bytes) -> None:
    assert opens(sealed(before + CRYPTO))


@pytest.mark.parametrize("frames", [b"", PING, b"\x1c\0\0\0", b"\x02\0\0\0\0"])
def test_a_first_packet_without_a_crypto_frame_begins_nothing(frames: bytes) -> None:
    assert not opens(sealed(frames))


@pytest.mark.parametrize("place", [0, 3, 7, 30, 600, SIZE - 1])
def test_a_packet_with_a_bit_changed_begins_nothing(place: int) -> None:
    data = bytearray(sealed(CRYPTO))
    data[place] ^= 4
    with contextlib.suppress(Malformed):
        assert not opens(bytes(data))


def test_a_packet_behind_the_first_one_is_not_looked_at() -> None:
    assert opens(sealed(CRYPTO) + os.urandom(100))


@given(st.binary(max_size=60))
def test_any_contents_open_or_are_malformed(contents: bytes) -> None:
    cid = bytes(8)
    data = head(cid, len(head(cid)) + len(contents)) + contents
    assert not opens(data)


async def test_nobody_is_asked_to_admit_what_does_not_open(autojump_clock: MockClock) -> None:
    asked: list[str] = []

    def admit(address: str) -> contextlib.AbstractContextManager[None]:
        asked.append(address)
        return contextlib.nullcontext()

    async with world(admit=admit) as here:
        endpoint = here.server.endpoint
        junk = [head(os.urandom(8)) + os.urandom(SIZE - len(head(bytes(8)))) for _ in range(20)]
        for datagram in [*junk, sealed(PING)]:
            endpoint._receive([(datagram, STRANGER)])
        assert endpoint.counters == {"undecryptable": 21}
        assert (asked, endpoint.connections) == ([], ())
        await here.connect()
        assert len(asked) == 1


async def test_a_first_packet_that_opens_begins_a_connection(autojump_clock: MockClock) -> None:
    async with world() as here:
        endpoint = here.server.endpoint
        endpoint._receive([(first_flight(here.server), STRANGER)])
        (connection,) = endpoint.connections
        assert connection.engine.has_begun
        assert connection.engine.first_keys is None  # it has taken them
        await exchange(*await here.connect(), b"hello")


def first_flight(server: Server) -> bytes:
    engine = client_engine(
        client_policy(server.trust, None), alpn=ALPN, server_name=None, limits=Limits()
    )
    engine.connect(server.address, 0.0)
    return engine.datagrams_to_send(0.0)[0][0]
