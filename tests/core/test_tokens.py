"""API tokens: their form, their hash, and that nothing but the text itself shows the secret."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.core.tokens import mint_token, token_hash, token_matches, token_prefix_untrusted
from alknet.errors import Malformed


def test_a_minted_token_is_recognised_by_prefix_and_hash() -> None:
    token = mint_token()
    assert token_prefix_untrusted(token.text) == token.prefix
    assert token.hash == hashlib.sha256(token.text.encode()).digest()
    assert token_matches(token.text, token.hash)
    assert not token_matches(mint_token().text, token.hash)


def test_the_secret_has_256_bits_and_is_new_each_time() -> None:
    first, second = mint_token(), mint_token()
    assert len(first.text.split("_")[2]) == 52
    assert first.text != second.text
    assert first.prefix != second.prefix


def test_the_repr_hides_the_secret() -> None:
    token = mint_token()
    assert token.text.split("_")[2] not in repr(token)
    assert token.hash.hex() not in repr(token)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:-1],
        lambda text: text + "y",
        lambda text: text + "\n",
        lambda text: text.upper(),
        lambda text: "owner",
        lambda text: text.replace("alk_", "alx_"),
        lambda text: text[:4] + "0" + text[5:],
    ],
)
def test_a_malformed_token_is_not_repeated_in_the_error(change: object) -> None:
    assert callable(change)
    text = change(mint_token().text)
    with pytest.raises(Malformed) as caught:
        token_prefix_untrusted(text)
    assert not text or text not in str(caught.value)


@given(st.text())
def test_any_text_is_a_token_or_malformed(text: str) -> None:
    try:
        token_prefix_untrusted(text)
    except Malformed:
        return
    assert len(text) == 65


def test_a_token_that_is_not_ascii_matches_nothing() -> None:
    assert not token_matches("é", token_hash("e"))
