"""Answers to packets of no connection: version negotiation, Retry, refusal. Sans-IO.

An answer is never longer than what it answers allows (RFC 9000 sec. 8.1), and packets that deserve
none get None: they are counted, never raised.
"""

from __future__ import annotations

from dataclasses import dataclass

from aioquic._buffer import Buffer
from aioquic._crypto import CryptoError
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.connection import TRANSPORT_CLOSE_FRAME_CAPACITY
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.retry import QuicRetryTokenHandler

from alknet.core.datagram import Address
from alknet.core.quic.cids import CID_LENGTH
from alknet.core.quic.memory import InitialPair
from alknet.errors import Malformed

__all__ = [
    "VERSIONS",
    "Invariants",
    "encode_refusal",
    "encode_retry",
    "encode_version_negotiation",
    "is_acceptable_initial",
    "open_first_untrusted",
    "read_header_untrusted",
    "read_invariants_untrusted",
]

VERSIONS = tuple(QuicConfiguration().supported_versions)
PADDING_AND_PING = bytes((QuicFrameType.PADDING, QuicFrameType.PING))
CRYPTO = bytes((QuicFrameType.CRYPTO,))
# A handshake message has a type, a length of three bytes, of which the first is 0 up to 64 KiB
# (more is refused anyway), and a ClientHello then the version of TLS 1.2 (RFC 8446 sec. 4.1.2).
CLIENT_HELLO = b"\x01"
LEGACY_VERSION = b"\x03\x03"


@dataclass(frozen=True)
class Invariants:
    """What long headers of every version, also of those to come, have in common (RFC 8999)."""

    version: int
    destination_cid: bytes
    source_cid: bytes


def read_invariants_untrusted(datagram: bytes) -> Invariants:
    """Parse the part of a long header that does not depend on the version.

    Raises:
        Malformed: It is too short.
    """
    buf = Buffer(data=datagram)
    try:
        buf.pull_uint8()
        return Invariants(
            version=buf.pull_uint32(),
            destination_cid=buf.pull_bytes(buf.pull_uint8()),
            source_cid=buf.pull_bytes(buf.pull_uint8()),
        )
    except ValueError as exc:
        raise Malformed(f"not a QUIC packet: {exc}") from exc


def read_header_untrusted(datagram: bytes) -> QuicHeader:
    """Parse the first packet's header, of a version that we speak.

    Raises:
        Malformed: It is no such packet.
    """
    try:
        return pull_quic_header(Buffer(data=datagram), host_cid_length=CID_LENGTH)
    except ValueError as exc:
        raise Malformed(f"not a QUIC packet: {exc}") from exc


def is_acceptable_initial(header: QuicHeader, size: int) -> bool:
    """Whether the packet may begin a connection: padded as RFC 9000 sec. 14.1 wants."""
    return (
        header.packet_type == QuicPacketType.INITIAL
        and size >= SMALLEST_MAX_DATAGRAM_SIZE
        and len(header.destination_cid) >= 8
    )


def open_first_untrusted(header: QuicHeader, datagram: bytes) -> InitialPair:
    """Check that the Initial at the head of *datagram* opens and brings a ClientHello's bytes.

    Anyone can seal such a packet, but who sends noise, or a copy with a bit changed, has not; this
    costs a tenth of what a connection does.

    Returns:
        The keys that have opened it, for the connection.

    Raises:
        Malformed: It does not open, or holds no CRYPTO frame, as first packets must
            (RFC 9000 sec. 17.2.2), or one that begins with something else than a ClientHello.
    """
    if header.packet_type != QuicPacketType.INITIAL or header.version is None:
        raise Malformed("not an Initial packet")
    keys = InitialPair()
    keys.setup_initial(cid=header.destination_cid, is_client=False, version=header.version)
    buf = Buffer(data=datagram)
    pull_quic_header(buf, host_cid_length=CID_LENGTH)
    try:
        plain = keys.open_first(datagram[: header.packet_length], buf.tell())
    except CryptoError as exc:
        raise Malformed(f"an Initial packet that does not decrypt: {exc}") from exc
    frames = plain.lstrip(PADDING_AND_PING)
    if not frames.startswith(CRYPTO):
        raise Malformed("a first packet without a CRYPTO frame")
    _check_hello_untrusted(frames)
    return keys


def _check_hello_untrusted(frames: bytes) -> None:
    """Check that the CRYPTO frame at the head of *frames* begins a ClientHello, as far as it goes.

    Clients may cut their hello in any way and send the pieces in any order: what does not begin at
    0 tells nothing, and a piece may be a byte long.
    """
    buf = Buffer(data=frames)
    try:
        buf.pull_uint8()
        offset = buf.pull_uint_var()
        piece = buf.pull_bytes(buf.pull_uint_var())
    except ValueError as exc:
        raise Malformed(f"a CRYPTO frame that is cut off: {exc}") from exc
    if offset:
        return
    is_hello = piece[:1] in {b"", CLIENT_HELLO} and piece[1:2] in {b"", b"\0"}
    if not is_hello or not LEGACY_VERSION.startswith(piece[4:6]):
        raise Malformed("a first packet without a ClientHello")


def encode_version_negotiation(header: Invariants, size: int) -> bytes | None:
    """Answer a long header of a version that we do not speak, or None if none is due.

    Version Negotiation packets and short datagrams get no answer: two nodes would talk for ever,
    and a forged source address would be hit by more than was sent.
    """
    if header.version == QuicProtocolVersion.NEGOTIATION or header.version in VERSIONS:
        return None
    if size < SMALLEST_MAX_DATAGRAM_SIZE:
        return None
    return encode_quic_version_negotiation(
        source_cid=header.destination_cid,
        destination_cid=header.source_cid,
        supported_versions=list(VERSIONS),
    )


def encode_refusal(header: QuicHeader, code: int = QuicErrorCode.CONNECTION_REFUSED) -> bytes:
    """Make the Initial packet that refuses a connection (RFC 9000 sec. 5.2.2)."""
    assert header.version is not None
    crypto = CryptoPair()
    crypto.setup_initial(cid=header.destination_cid, is_client=False, version=header.version)
    builder = QuicPacketBuilder(
        host_cid=header.destination_cid,
        is_client=False,
        max_datagram_size=SMALLEST_MAX_DATAGRAM_SIZE,
        peer_cid=header.source_cid,
        version=header.version,
    )
    builder.start_packet(QuicPacketType.INITIAL, crypto)
    buf = builder.start_frame(
        QuicFrameType.TRANSPORT_CLOSE, capacity=TRANSPORT_CLOSE_FRAME_CAPACITY
    )
    buf.push_uint_var(code)
    buf.push_uint_var(QuicFrameType.PADDING)
    buf.push_uint_var(0)
    datagrams, _ = builder.flush()
    return datagrams[0]


def encode_retry(
    header: QuicHeader,
    address: Address,
    tokens: QuicRetryTokenHandler,
    source_cid: bytes,
    now: float,
) -> bytes:
    """Make the Retry that has a client prove its address (RFC 9000 sec. 8.1.2).

    Args:
        source_cid: A new one of ours: the client's next packets go there.
    """
    assert header.version is not None
    token = tokens.create_token(
        address=address,
        original_destination_connection_id=header.destination_cid,
        retry_source_connection_id=source_cid,
        now=now,
    )
    return encode_quic_retry(
        version=header.version,
        source_cid=source_cid,
        destination_cid=header.source_cid,
        original_destination_cid=header.destination_cid,
        retry_token=token,
    )
