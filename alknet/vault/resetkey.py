"""The key of stateless resets on disk: it lets a node that comes back end its old connections.

It is no identity. Without it peers of a node that was killed wait for their idle time-outs; whoever
has it can end connections of that node, and nothing else.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from alknet.errors import LocalError
from alknet.vault.durable import replace_file, store_errors
from alknet.vault.keyfile import check_private

__all__ = ["RESET_KEY_BYTES", "RESET_KEY_FILE", "load_reset_key"]

RESET_KEY_FILE = "reset.key"
RESET_KEY_BYTES = 32


def load_reset_key(home: Path) -> bytes:
    """Return the home's key; the first time, make and store it. Hold the home meanwhile.

    Raises:
        LocalError: Others may read the file, or it holds something else.
        StoreError: It can be neither read nor written.
    """
    path = home / RESET_KEY_FILE
    with store_errors(f"cannot read {path}"):
        try:
            with path.open("rb") as file:
                check_private(path, os.fstat(file.fileno()))
                key = file.read(RESET_KEY_BYTES + 1)
        except FileNotFoundError:
            return _make(path)
    if len(key) != RESET_KEY_BYTES:
        raise LocalError(f"{path} is damaged: remove it, and the next start makes another")
    return key


def _make(path: Path) -> bytes:
    key = secrets.token_bytes(RESET_KEY_BYTES)
    with store_errors(f"cannot write {path}"):
        replace_file(path, key)
    return key
