"""The node's identity, straight from the words."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.vault.roles import KeyRole, path_of
from alknet.vault.slip10 import derive
from alknet.vault.words import seed_from_words

__all__ = ["IDENTITY_PATH", "identity_key"]

IDENTITY_PATH = path_of(KeyRole.IDENTITY)


def identity_key(words: str, passphrase: str = "", *, device: int = 0) -> Ed25519PrivateKey:
    """Return the key that is the node's identity, that of device 0 by default.

    Takes about a millisecond, for the stretching of BIP39.

    Raises:
        LocalError: The words are not valid, or there is no such device.
    """
    return derive(
        seed_from_words(words, passphrase), path_of(KeyRole.IDENTITY, device)
    ).private_key()
