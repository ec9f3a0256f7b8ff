"""The 24 words from which every key of a node can be restored (BIP39, English).

Source: https://github.com/bitcoin/bips/blob/master/bip-0039.mediawiki
"""

from __future__ import annotations

import difflib
import functools
import unicodedata

from mnemonic import Mnemonic

from alknet.errors import LocalError

__all__ = ["check_words", "generate_words", "seed_from_words"]

WORD_COUNTS = (12, 15, 18, 21, 24)


def generate_words() -> str:
    """Return 24 new words (256 bits of the system's randomness), separated by single spaces."""
    return _list().generate(256)


def check_words(text: str) -> str:
    """Return *text* in its one form: NFKD, lower case, single spaces.

    Raises:
        LocalError: The number of words, one of them or the checksum is wrong. The message names
            a word that is not in the list, and never one that is.
    """
    words = unicodedata.normalize("NFKD", text).lower().split()
    if len(words) not in WORD_COUNTS:
        raise LocalError(f"{len(words)} words, expected {', '.join(map(str, WORD_COUNTS))}")
    known = set(_list().wordlist)
    for position, word in enumerate(words, start=1):
        if word not in known:
            raise LocalError(_unknown_word(position, word))
    joined = " ".join(words)
    if not _list().check(joined):
        raise LocalError(
            "the checksum of the words is wrong: one of them is another word of the list, "
            "or two are swapped"
        )
    return joined


def seed_from_words(words: str, passphrase: str = "") -> bytes:
    """Return the 64-byte seed of *words*, which are checked first.

    Args:
        passphrase: The "25th word"; each one gives another seed, so a typing error is not found.

    Raises:
        LocalError: The words are not valid, as in `check_words`.
    """
    return Mnemonic.to_seed(check_words(words), passphrase)


def _unknown_word(position: int, word: str) -> str:
    # Only what looks like a misspelt word is repeated: it may be a secret pasted by mistake.
    if not word.isalpha() or len(word) > 12:
        return f"word {position} is not in the BIP39 English list"
    message = f"word {position}, {word!r}, is not in the BIP39 English list"
    close = difflib.get_close_matches(word, _list().wordlist, n=1)
    return f"{message}; did you mean {close[0]!r}?" if close else message


@functools.cache
def _list() -> Mnemonic:
    return Mnemonic("english")
