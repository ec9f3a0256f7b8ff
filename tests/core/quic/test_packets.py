"""Headers from strangers, and answers that never say more than they may."""

from __future__ import annotations

import contextlib

from aioquic.quic.packet import QuicPacketType
from hypothesis import example, given
from hypothesis import strategies as st

from alknet.core.quic import packets
from alknet.core.quic.packets import Invariants
from alknet.errors import Malformed

V1 = b"\xc0\0\0\0\x01"


@given(st.binary(max_size=80))
@example(b"")
@example(b"\xf0\0\0\0\x01\x08" + bytes(9))
@example(V1 + b"\xff")
def test_any_bytes_are_a_header_or_malformed(data: bytes) -> None:
    for read in (packets.read_header_untrusted, packets.read_invariants_untrusted):
        with contextlib.suppress(Malformed):
            read(data)


@given(st.binary(max_size=60))
def test_version_1_layouts_are_a_header_or_malformed(data: bytes) -> None:
    for first in (0xC0, 0xD0, 0xE0, 0xF0):
        with contextlib.suppress(Malformed):
            packets.read_header_untrusted(bytes([first]) + V1[1:] + data)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2000), st.binary(max_size=255))
def test_version_negotiation_is_due_to_long_datagrams_of_other_versions(
    version: int, size: int, cid: bytes
) -> None:
    answer = packets.encode_version_negotiation(Invariants(version, cid, b"source"), size)
    is_due = version not in (0, *packets.VERSIONS) and size >= 1200
    assert (answer is not None) == is_due
    if answer is not None:
        assert len(answer) <= size
        invariants = packets.read_invariants_untrusted(answer)
        assert invariants == Invariants(0, b"source", cid)


def test_refusal_is_an_initial_packet_shorter_than_what_it_answers() -> None:
    header = packets.read_header_untrusted(V1 + b"\x08" + bytes(8) + b"\x04abcd\0\x10" + bytes(16))
    answer = packets.encode_refusal(header)
    assert len(answer) < 100
    parsed = packets.read_header_untrusted(answer)
    assert parsed.packet_type == QuicPacketType.INITIAL
    assert (parsed.destination_cid, parsed.source_cid) == (b"abcd", bytes(8))
