"""The vault's entropy as something to write down: 24 words, or shares of which some suffice.

Sources: BIP39; SLIP-0039 (https://github.com/satoshilabs/slips/blob/master/slip-0039.md). Both pass
through Python's ``str`` and ``bytes``, which cannot be wiped: for short-lived commands, never for
a node that runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import shamir_mnemonic
from mnemonic import Mnemonic

from alknet.errors import LocalError
from alknet.vault.derivation import ENTROPY_BYTES
from alknet.vault.locked import LockedBuffer
from alknet.vault.words import check_words

__all__ = ["combine_shares", "entropy_from_words", "split_into_shares", "words_from_entropy"]

# SLIP-0039 has four bits for each.
MAX_SHARES = 16


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
    """Return the entropy of enough shares of one split.

    Raises:
        LocalError: There are too few, a word is wrong, or they are of different splits.
    """
    try:
        entropy = shamir_mnemonic.combine_mnemonics([_one_form(share) for share in shares])
    except shamir_mnemonic.MnemonicError as exc:
        raise LocalError(f"the shares do not combine: {_reason(exc)}") from None
    if len(entropy) != ENTROPY_BYTES:
        raise LocalError("the shares are of something else than a vault")
    return LockedBuffer.of(entropy)


def _one_form(share: str) -> str:
    return " ".join(share.lower().split())


def _reason(exc: Exception) -> str:
    # The library's messages may repeat a word of a share.
    text = str(exc)
    return "a word is not in the list" if "word" in text.lower() else text.rstrip(".").lower()
