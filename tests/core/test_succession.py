"""A statement is believed only if both keys signed it and it leads from a known key."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from alknet.core.succession import (
    LAST_SECOND,
    MAX_STATEMENTS,
    STATEMENT_BYTES,
    Succession,
    chain_to,
    decode_succession_untrusted,
    follow_succession,
    sign_succession,
)
from alknet.errors import Denied, Malformed

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(1, 6)]
PUBLIC = [key.public_key().public_bytes_raw() for key in KEYS]


def chain(*numbers: int) -> list[Succession]:
    pairs = pairwise(numbers)
    return [sign_succession(KEYS[a], KEYS[b], now=100.9 + a) for a, b in pairs]


def test_a_statement_has_its_form() -> None:
    """The bytes of docs/reference/succession.md, signed here by hand."""
    body = PUBLIC[0] + PUBLIC[1] + (100).to_bytes(8, "big")
    by_old = KEYS[0].sign(b"alknet-succession-v1\0old\0" + body)
    by_new = KEYS[1].sign(b"alknet-succession-v1\0new\0" + body)
    (statement,) = chain(0, 1)
    assert statement.encode() == body + by_old + by_new
    assert len(statement.encode()) == STATEMENT_BYTES
    assert decode_succession_untrusted(statement.encode()) == statement


def test_several_rotations_are_followed_from_any_known_key() -> None:
    statements = chain(0, 1, 2, 3)
    for known in range(3):
        path = follow_succession(statements, {PUBLIC[known]}, PUBLIC[3])
        assert path == statements[known:]


@given(st.integers(0, STATEMENT_BYTES - 1), st.integers(1, 255))
def test_an_altered_statement_is_not_believed(at: int, change: int) -> None:
    data = bytearray(chain(0, 1)[0].encode())
    data[at] ^= change
    with pytest.raises((Denied, Malformed)):  # no calendar has the time that it may say now
        follow_succession([decode_succession_untrusted(bytes(data))], {PUBLIC[0]}, PUBLIC[1])


@pytest.mark.parametrize(
    ("statements", "known", "key"),
    [
        ([], 0, 1),
        (chain(0, 1), 2, 1),
        (chain(0, 1), 0, 2),
        (chain(0, 1), 0, 0),
        ([*chain(0, 1), *chain(2, 3)], 0, 3),
        (chain(0, 1) * (MAX_STATEMENTS + 1), 0, 1),
        ([sign_succession(KEYS[0], KEYS[0], now=1.0)], 0, 0),
    ],
    ids=["none", "unknown", "elsewhere", "back", "gap", "many", "itself"],
)
def test_statements_that_lead_elsewhere_are_not_believed(
    statements: list[Succession], known: int, key: int
) -> None:
    with pytest.raises(Denied):
        follow_succession(statements, {PUBLIC[known]}, PUBLIC[key])


def test_time_does_not_run_backwards() -> None:
    late = sign_succession(KEYS[0], KEYS[1], now=200.0)
    early = sign_succession(KEYS[1], KEYS[2], now=199.0)
    with pytest.raises(Denied):
        follow_succession([late, early], {PUBLIC[0]}, PUBLIC[2])


def test_nobody_signs_over_to_a_key_of_another() -> None:
    forged = sign_succession(KEYS[0], KEYS[1], now=1.0)
    forged = Succession(PUBLIC[0], PUBLIC[2], forged.signed_at, forged.by_old, forged.by_new)
    with pytest.raises(Denied):
        follow_succession([forged], {PUBLIC[0]}, PUBLIC[2])


def test_a_chain_ends_at_the_key_that_is_asked_for() -> None:
    statements = [*chain(0, 1, 2), *chain(3, 4)]
    assert chain_to(statements, PUBLIC[2]) == statements[:2]
    assert chain_to(statements, PUBLIC[1]) == statements[:1]
    assert chain_to(statements, PUBLIC[4]) == statements[2:]
    assert chain_to(statements, PUBLIC[0]) == []


def test_a_time_that_no_calendar_has_is_malformed() -> None:
    last = sign_succession(KEYS[0], KEYS[1], now=datetime.max.replace(tzinfo=UTC).timestamp() - 1)
    assert decode_succession_untrusted(last.encode()) == last
    for beyond in (LAST_SECOND + 1, 2**64 - 1):  # whoever has the old key can sign it all the same
        signed = sign_succession(KEYS[0], KEYS[1], now=beyond)
        with pytest.raises(Malformed):
            decode_succession_untrusted(signed.encode())


@given(st.binary(max_size=300))
def test_other_lengths_are_malformed(data: bytes) -> None:
    if len(data) != STATEMENT_BYTES:
        with pytest.raises(Malformed):
            decode_succession_untrusted(data)
