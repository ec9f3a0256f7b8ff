"""Homes with a vault, made without the commands that make them."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.core.config import default_config_text
from alknet.core.home import CONFIG_FILE
from alknet.vault.durable import write_private
from alknet.vault.homevault import create_home_vault, open_home_vault, unlock_home_vault
from alknet.vault.keyfile import create_home
from alknet.vault.locked import LockedBuffer
from alknet.vault.recovery import words_from_entropy
from alknet.vault.vault import Vault

ENTROPY = bytes(range(32))
WORDS = words_from_entropy(memoryview(ENTROPY))


def make_vault_home(home: Path, *, entropy: bytes = ENTROPY) -> Ed25519PrivateKey:
    """Make a home whose vault its key file opens; return its identity."""
    create_home(home)
    write_private(home / CONFIG_FILE, default_config_text().encode())
    vault, key = create_home_vault(home, LockedBuffer.of(entropy), now=1.0)
    vault.lock()
    return key


def open_vault(home: Path) -> Vault:
    """Return the home's vault, unlocked by its key file."""
    vault = open_home_vault(home)
    unlock_home_vault(vault, home)
    return vault
