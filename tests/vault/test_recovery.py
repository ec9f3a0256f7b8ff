"""Words and shares give the entropy back, and wrong ones say what is wrong."""

from __future__ import annotations

from itertools import combinations

import pytest

from alknet.errors import LocalError
from alknet.vault.locked import LockedBuffer
from alknet.vault.recovery import (
    combine_shares,
    entropy_from_words,
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


def test_one_of_two_needed_shares_is_too_few() -> None:
    shares = split_into_shares(memoryview(ENTROPY), threshold=2, count=3)
    with pytest.raises(LocalError, match="do not combine"):
        combine_shares(shares[:1])


def test_shares_of_two_splits_do_not_go_together() -> None:
    first = split_into_shares(memoryview(ENTROPY), threshold=2, count=2)
    second = split_into_shares(memoryview(ENTROPY), threshold=2, count=2)
    with pytest.raises(LocalError, match="do not combine"):
        combine_shares([first[0], second[0]])


def test_a_misspelt_share_is_not_repeated() -> None:
    shares = split_into_shares(memoryview(ENTROPY), threshold=2, count=2)
    with pytest.raises(LocalError) as caught:
        combine_shares([shares[0], shares[1].replace(shares[1].split()[5], "secretword")])
    assert "secretword" not in str(caught.value)


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
