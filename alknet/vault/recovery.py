"""The vault's entropy as something to write down: 24 words, or shares of which some suffice.

Sources: BIP39; SLIP-0039 (https://github.com/satoshilabs/slips/blob/master/slip-0039.md). Both pass
through Python's ``str`` and ``bytes``, which cannot be wiped: for short-lived commands, never for
a node that runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import shamir_mnemonic
from mnemonic import Mnemonic
from shamir_mnemonic.share import Share
from shamir_mnemonic.wordlist import WORD_INDEX_MAP

from alknet.errors import LocalError
from alknet.vault.derivation import ENTROPY_BYTES
from alknet.vault.locked import LockedBuffer
from alknet.vault.words import check_words

__all__ = [
    "combine_shares",
    "entropy_from_words",
    "shares_in",
    "split_into_shares",
    "words_from_entropy",
]

# SLIP-0039 has four bits for each.
MAX_SHARES = 16
# Of 32 bytes.
SHARE_WORDS = 33


def entropy_from_words(text: str) -> LockedBuffer:
    """Return the entropy of 24 words.

    Raises:
        LocalError: They are not valid, or fewer: a vault has 32 bytes.
    """
    words = check_words(text)
    entropy = Mnemonic("english").to_entropy(words)
    try:
        if len(entropy) != ENTROPY_BYTES:
            raise LocalError(f"{len(words.split())} words, but a vault has 24")
        return LockedBuffer.of(entropy)
    finally:
        entropy[:] = bytes(len(entropy))


def words_from_entropy(entropy: memoryview) -> str:
    """Return the 24 words of a vault's entropy."""
    return Mnemonic("english").to_mnemonic(bytes(entropy))


def split_into_shares(entropy: memoryview, *, threshold: int, count: int) -> list[str]:
    """Return *count* shares of 33 words, any *threshold* of which give the entropy back.

    Each split is of its own: shares of two splits do not go together.

    Raises:
        LocalError: The numbers are not 1 ≤ threshold ≤ count ≤ 16, or threshold is 1 of several.
    """
    if not 1 <= threshold <= count <= MAX_SHARES:
        raise LocalError(f"{threshold} of {count} shares: expected 1 ≤ threshold ≤ count ≤ 16")
    if threshold == 1 and count > 1:
        raise LocalError("with a threshold of 1 every share is the whole: make one and copy it")
    groups = shamir_mnemonic.generate_mnemonics(1, [(threshold, count)], bytes(entropy))
    return list(groups[0])


def combine_shares(shares: Sequence[str]) -> LockedBuffer:
    """Return the entropy of enough shares of one split; more than enough, or one twice, is as good.

    Raises:
        LocalError: There are too few, a word is wrong, or they are of different splits. The
            message names a share by its place among *shares*, and none of its words.
    """
    parsed = [_share(number, text) for number, text in enumerate(shares, start=1)]
    _check_one_split(parsed)
    try:
        entropy = shamir_mnemonic.combine_mnemonics([one.mnemonic() for one in _needed(parsed)])
    except shamir_mnemonic.MnemonicError:  # of words that fit, but not together
        raise LocalError("the shares do not combine: one of them was altered") from None
    if len(entropy) != ENTROPY_BYTES:
        raise LocalError("the shares are of something else than a vault")
    return LockedBuffer.of(entropy)


def shares_in(text: str) -> list[str]:
    """Return the shares in *text*, of 33 words each, however its lines are broken.

    What is left over at the end is a share of its own, which `combine_shares` will not take.
    """
    words = text.split()
    return [" ".join(words[at : at + SHARE_WORDS]) for at in range(0, len(words), SHARE_WORDS)]


def _share(number: int, text: str) -> Share:
    words = text.lower().split()
    if unknown := [at for at, word in enumerate(words, start=1) if word not in WORD_INDEX_MAP]:
        raise LocalError(f"word {unknown[0]} of share {number} is not in the list of SLIP-39")
    try:
        return Share.from_mnemonic(" ".join(words))
    except shamir_mnemonic.MnemonicError:  # its message has words of the share
        raise LocalError(
            f"share {number} is wrong: it has {len(words)} words, of which one is another word of "
            "the list, too much or missing, or two are swapped"
        ) from None


def _check_one_split(shares: Sequence[Share]) -> None:
    for number, one in enumerate(shares, start=1):
        if one.common_parameters() != shares[0].common_parameters():
            raise LocalError(
                f"share {number} is of another split than share 1: shares of two splits do not go "
                "together, even of one vault"
            )


def _needed(shares: Sequence[Share]) -> list[Share]:
    """Leave out those beyond the threshold, which the library would take for a mistake."""
    groups: dict[int, dict[int, Share]] = {}
    for one in shares:
        groups.setdefault(one.group_index, {})[one.index] = one
    whole = [found for found in groups.values() if len(found) >= _threshold(found)]
    needed = shares[0].group_threshold if shares else 1
    if len(whole) < needed:
        raise LocalError(_too_few(list(groups.values()), needed))
    return [one for found in whole[:needed] for one in list(found.values())[: _threshold(found)]]


def _threshold(group: dict[int, Share]) -> int:
    return int(next(iter(group.values())).member_threshold)


def _too_few(groups: list[dict[int, Share]], needed: int) -> str:
    if len(groups) == 1 and needed == 1:
        return f"too few shares: {_threshold(groups[0])} are needed, {len(groups[0])} given"
    return f"too few shares: those of {needed} groups are needed"
