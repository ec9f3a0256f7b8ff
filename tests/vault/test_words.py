"""BIP39: the official English vectors, and what a person who mistypes is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mnemonic import Mnemonic

from alknet.errors import LocalError
from alknet.vault.words import check_words, generate_words, seed_from_words

FILE = json.loads((Path(__file__).parent.parent / "vectors" / "bip39.json").read_text())
ABOUT = "abandon " * 11 + "about"


def test_all_official_vectors_are_here() -> None:
    assert len(FILE["vectors"]) == 24


@pytest.mark.parametrize("vector", FILE["vectors"], ids=lambda v: v["entropy"][:16])
def test_official_vectors(vector: dict[str, str]) -> None:
    assert check_words(vector["words"]) == vector["words"]
    assert bytes(Mnemonic("english").to_entropy(vector["words"])).hex() == vector["entropy"]
    assert seed_from_words(vector["words"], FILE["passphrase"]).hex() == vector["seed"]


def test_new_words_are_24_valid_and_new() -> None:
    words = generate_words()
    assert len(words.split()) == 24
    assert check_words(words) == words
    assert generate_words() != words


def test_blanks_case_and_full_width_letters_do_not_matter() -> None:
    typed = "\n  " + ABOUT.upper().replace(" ", " \t ") + " \n"
    assert check_words(typed) == ABOUT
    assert seed_from_words(typed) == seed_from_words(ABOUT)
    assert check_words(ABOUT.replace("about", "\uff41bout")) == ABOUT


def test_a_passphrase_is_normalised_and_matters() -> None:
    assert seed_from_words(ABOUT, "\u00e9") == seed_from_words(ABOUT, "e\u0301")
    assert seed_from_words(ABOUT, "a") != seed_from_words(ABOUT)


def test_a_misspelt_word_is_named_with_a_close_match_and_no_other_word() -> None:
    with pytest.raises(LocalError) as caught:
        check_words(ABOUT.replace("about", "abuot"))
    message = str(caught.value)
    assert message == "word 12, 'abuot', is not in the BIP39 English list; did you mean 'about'?"


def test_a_word_like_no_other_gets_no_hint() -> None:
    with pytest.raises(LocalError, match=r"word 1, 'qqqqqq', is not in the BIP39 English list$"):
        check_words(ABOUT.replace("abandon", "qqqqqq", 1))


@pytest.mark.parametrize("secret", ["alk_sekrit", "x" * 13, "correct-horse"])
def test_what_is_not_a_misspelt_word_is_not_repeated(secret: str) -> None:
    with pytest.raises(LocalError) as caught:
        check_words(ABOUT.replace("about", secret))
    assert secret not in str(caught.value)
    assert "word 12 " in str(caught.value)


@pytest.mark.parametrize("count", [0, 1, 11, 13, 23, 25])
def test_a_wrong_number_of_words_is_said(count: int) -> None:
    with pytest.raises(LocalError, match=f"{count} words, expected 12, 15, 18, 21, 24"):
        check_words("abandon " * count)


def test_a_wrong_checksum_is_refused_and_tells_no_word() -> None:
    with pytest.raises(LocalError, match="checksum") as caught:
        seed_from_words("abandon " * 12)
    assert "abandon" not in str(caught.value)
