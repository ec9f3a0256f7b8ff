"""Words and shares give the entropy back, and wrong ones say what is wrong."""

from __future__ import annotations

from itertools import combinations

import pytest
import shamir_mnemonic

from alknet.errors import LocalError
from alknet.vault.locked import LockedBuffer
from alknet.vault.recovery import (
    combine_shares,
    entropy_from_words,
    shares_in,
    split_into_shares,
    words_from_entropy,
)

ENTROPY = bytes(range(32))


def test_words_and_entropy_are_one_another() -> None:
    words = words_from_entropy(memoryview(ENTROPY))
    with entropy_from_words(words.upper()) as entropy:
        assert bytes(entropy.view) == ENTROPY


def test_twelve_words_are_no_vault() -> None:
    with pytest.raises(LocalError, match="12 words, but a vault has 24"):
        entropy_from_words(
            "legal winner thank year wave sausage worth useful legal winner thank yellow"
        )


def test_any_two_of_three_shares_suffice() -> None:
    shares = split_into_shares(memoryview(ENTROPY), threshold=2, count=3)
    assert len(shares) == 3
    for pair in combinations(shares, 2):
        with combine_shares(pair) as entropy:
            assert bytes(entropy.view) == ENTROPY


def test_more_shares_than_needed_and_one_twice_are_no_mistake() -> None:
    shares = split_into_shares(memoryview(ENTROPY), threshold=2, count=3)
    for given in (shares, [shares[2], shares[2], shares[0]], [*shares, *shares]):
        with combine_shares(given) as entropy:
            assert bytes(entropy.view) == ENTROPY


def test_shares_of_two_groups_combine() -> None:
    groups = shamir_mnemonic.generate_mnemonics(2, [(1, 1), (2, 3), (2, 2)], ENTROPY)
    with combine_shares([*groups[1], *groups[0]]) as entropy:
        assert bytes(entropy.view) == ENTROPY
    with pytest.raises(LocalError, match="those of 2 groups are needed"):
        combine_shares([*groups[0], groups[1][0]])


@pytest.mark.parametrize("times", [0, 1, 2])
def test_too_few_shares_say_how_many_are_needed(times: int) -> None:
    share = split_into_shares(memoryview(ENTROPY), threshold=2, count=3)[0]
    with pytest.raises(
        LocalError, match="too few shares" + (": 2 are needed, 1 given" * bool(times))
    ):
        combine_shares([share] * times)


def test_shares_of_two_splits_do_not_go_together() -> None:
    first = second = split_into_shares(memoryview(ENTROPY), threshold=2, count=3)
    while split_of(second) == split_of(first):  # one in 32,768 has the same number
        second = split_into_shares(memoryview(ENTROPY), threshold=2, count=2)
    for given in ([first[0], second[0]], [first[0], second[0], first[1]]):
        with pytest.raises(LocalError, match="share 2 is of another split than share 1"):
            combine_shares(given)


def test_a_share_that_is_wrong_is_named_and_none_of_its_words() -> None:
    first, second = split_into_shares(memoryview(ENTROPY), threshold=2, count=2)
    words = second.split()
    other = next(word for word in ("academic", "acid") if word != words[9])
    for wrong in ([*words[:9], other, *words[10:]], words[:32], [*words, "acid"], []):
        with pytest.raises(LocalError) as caught:
            combine_shares([first, " ".join(wrong)])
        assert str(caught.value) == (
            f"share 2 is wrong: it has {len(wrong)} words, of which one is another word of the "
            "list, too much or missing, or two are swapped"
        )


def test_shares_in_one_text_are_told_apart_by_their_length() -> None:
    shares = split_into_shares(memoryview(ENTROPY), threshold=2, count=3)
    for separator in (" ", "\n", "\n\n"):
        assert shares_in(separator.join(shares)) == shares
    assert shares_in("\n".join(shares[0].split()) + "\n") == shares[:1]
    assert [len(one.split()) for one in shares_in(f"{shares[0]} acid")] == [33, 1]
    assert shares_in(" \n") == []


def test_a_misspelt_share_is_not_repeated() -> None:
    first, second = split_into_shares(memoryview(ENTROPY), threshold=2, count=2)
    words = second.split()
    words[5] = "secretword"
    with pytest.raises(LocalError) as caught:
        combine_shares([first, " ".join(words)])
    assert str(caught.value) == "word 6 of share 2 is not in the list of SLIP-39"


@pytest.mark.parametrize(("threshold", "count"), [(0, 1), (3, 2), (2, 17), (1, 2)])
def test_impossible_numbers_are_refused(threshold: int, count: int) -> None:
    with pytest.raises(LocalError):
        split_into_shares(memoryview(ENTROPY), threshold=threshold, count=count)


def test_shares_of_something_shorter_are_no_vault() -> None:
    shares = split_into_shares(memoryview(ENTROPY[:16]), threshold=2, count=2)
    with pytest.raises(LocalError, match="something else"):
        combine_shares(shares)


def test_a_closed_buffer_shows_zeros_to_those_who_hold_a_view() -> None:
    buffer = LockedBuffer.of(b"secret")
    view = buffer.view
    buffer.close()
    assert bytes(view) == bytes(6)
    assert "secret" not in repr(buffer)


def split_of(shares: list[str]) -> list[str]:
    """Return what the shares of one split begin with: 15 bits of chance, and how it was made."""
    return shares[0].split()[:2]
