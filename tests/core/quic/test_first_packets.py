"""What a first packet has to show before a connection is made for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import pytest
from aioquic._buffer import Buffer
from aioquic.buffer import encode_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import pull_quic_header
from aioquic.tls import CipherSuite
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from alknet.core.datagram import Address, NetworkPath
from alknet.core.limits import Limits
from alknet.core.quic import packets
from alknet.core.quic.endpoint import QuicEndpoint
from alknet.core.quic.engine import client_engine
from alknet.core.quic.policy import client_policy
from alknet.core.tls.trust import AnyKey, Trust
from alknet.errors import Malformed
from tests.core.quic.pairs import ALPN, Server
from tests.core.quic.worlds import exchange, world

STRANGER: NetworkPath = ("198.51.100.1", 999)
SIZE = 1_200
PADDING, PING, CRYPTO = b"\0", b"\x01", b"\x06\0\x01\x01"
CRYPTO_TYPE = b"\x06"


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
            take_in(endpoint, datagram)
        assert endpoint.counters == {"undecryptable": 21}
        assert (asked, endpoint.connections) == ([], ())
        await here.connect()
        assert len(asked) == 1


async def test_a_first_packet_that_opens_begins_a_connection(autojump_clock: MockClock) -> None:
    async with world() as here:
        endpoint = here.server.endpoint
        take_in(endpoint, first_flight(here.server))
        (connection,) = endpoint.connections
        assert connection.engine.has_begun
        assert connection.engine.first_keys is None  # it has taken them
        await exchange(*await here.connect(), b"hello")


def take_in(endpoint: QuicEndpoint, datagram: bytes) -> None:
    """Receive *datagram*, and let it have its turn."""
    endpoint._receive([(datagram, STRANGER)])
    endpoint._receive_waiting()


def first_flight(server: Server) -> bytes:
    return first_flight_to(server.address, server.trust)


def first_flight_to(address: Address, trust: Trust) -> bytes:
    engine = client_engine(client_policy(trust, None), alpn=ALPN, server_name=None, limits=Limits())
    engine.connect(address, 0.0)
    return engine.datagrams_to_send(0.0)[0][0]


def crypto(offset: int, piece: bytes) -> bytes:
    return CRYPTO_TYPE + encode_uint_var(offset) + encode_uint_var(len(piece)) + piece


def hello_of_ours() -> bytes:
    return hello_in(first_flight_to(("192.0.2.1", 4433), AnyKey()))


def hello_of_aioquic(suites: list[CipherSuite] | None = None) -> bytes:
    configuration = QuicConfiguration(alpn_protocols=["h3"], server_name="node.example")
    configuration.cipher_suites = suites
    client = QuicConnection(configuration=configuration)
    client.connect(("192.0.2.1", 443), now=0.0)
    return hello_in(client.datagrams_to_send(now=0.0)[0][0])


def hello_in(datagram: bytes) -> bytes:
    """The ClientHello of clients that put it at the head of one packet."""
    header = packets.read_header_untrusted(datagram)
    keys = packets.open_first_untrusted(header, datagram)
    buf = Buffer(data=datagram)
    pull_quic_header(buf, host_cid_length=8)
    _, plain, _ = keys.decrypt_packet(datagram[: header.packet_length], buf.tell(), 0)
    buf = Buffer(data=plain)
    assert (buf.pull_uint8(), buf.pull_uint_var()) == (6, 0)
    return buf.pull_bytes(buf.pull_uint_var())


HELLOS = [
    hello_of_ours,
    hello_of_aioquic,
    lambda: hello_of_aioquic([CipherSuite.CHACHA20_POLY1305_SHA256]),
]


@pytest.mark.parametrize("hello", HELLOS, ids=["ours", "aioquic", "one suite"])
def test_a_client_hello_in_any_piece_begins_a_connection(hello: Callable[[], bytes]) -> None:
    data = hello()
    for stop in (*range(12), len(data) // 2, len(data)):
        assert opens(sealed(crypto(0, data[:stop])))
    for start in (1, 2, 5, len(data) - 1):
        assert opens(sealed(crypto(start, data[start:]) + crypto(0, data[:start])))
    # The longest that the bounds on handshake bytes let through.
    longest = data[:1] + b"\0\xff\xff" + data[4:]
    assert opens(sealed(crypto(0, longest)))


@given(st.binary(min_size=1, max_size=300), st.integers(0, 5))
def test_what_begins_like_no_client_hello_begins_nothing(noise: bytes, at: int) -> None:
    data = hello_of_ours()
    good = data[at] if at not in {2, 3} else None
    altered = data[:at] + noise[:1] + data[at + 1 :]
    assert opens(sealed(crypto(0, altered))) == (good is None or noise[0] == good)


@pytest.mark.parametrize(
    "frame", [b"\x06", b"\x06\0", b"\x06\x40", b"\x06\0\x7f\xff\x01\0", b"\x06\0\x44\xff\x01"]
)
def test_a_crypto_frame_that_is_cut_off_begins_nothing(frame: bytes) -> None:
    assert not opens(sealed(PING * (SIZE - 16 - len(head(bytes(8))) - len(frame)) + frame))


async def test_noise_in_a_crypto_frame_makes_no_engine(autojump_clock: MockClock) -> None:
    async with world() as here:
        endpoint = here.server.endpoint
        for number in range(20):
            noise = crypto(0, bytes([number + 2]) * 200)
            take_in(endpoint, sealed(noise))
        assert endpoint.counters == {"undecryptable": 20}
        assert endpoint.connections == ()
        await exchange(*await here.connect(), b"hello")
