"""The home of a node, and the key in it as it was kept before there were vaults.

That is one PKCS#8 PEM file, readable by its user alone; it is read to be put into a vault.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from alknet.errors import LocalError, NotFound
from alknet.vault.durable import store_errors, sync_directory

__all__ = ["KEY_FILE", "check_private", "create_home", "read_key"]

KEY_FILE = "node.key"
# An Ed25519 key takes 119 bytes; whatever is much longer is another file.
MAX_PEM_BYTES = 16 * 1024


def create_home(path: Path) -> None:
    """Make the directory that holds all of a node, for its user alone (mode 0700).

    An existing one is taken if it is private already, and made private if it is empty.

    Raises:
        LocalError: It exists and others may enter it, or it belongs to another user.
        StoreError: The system refuses.
    """
    with store_errors(f"cannot create {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            _check_home(path)
        else:
            sync_directory(path.parent)


def read_key(home: Path) -> Ed25519PrivateKey:
    """Return the node's key.

    Raises:
        NotFound: The home has none.
        LocalError: Others may read the file, it belongs to another user, or holds something else.
        StoreError: The file could not be read.
    """
    path = home / KEY_FILE
    with store_errors(f"cannot read {path}"):
        try:
            with path.open("rb") as file:
                check_private(path, os.fstat(file.fileno()))
                pem = file.read(MAX_PEM_BYTES)
        except FileNotFoundError:
            raise NotFound(f"no key in {home}: run 'alknet init' first") from None
    return _load(path, pem)


def _load(path: Path, pem: bytes) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as exc:
        raise LocalError(f"{path} is not an unencrypted PKCS#8 PEM key") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise LocalError(f"{path} holds another kind of key than Ed25519")
    return key


def _check_home(path: Path) -> None:
    if not path.is_dir():
        raise LocalError(f"{path} exists and is not a directory")
    info = path.stat()
    if info.st_uid != os.geteuid():
        raise LocalError(f"{path} belongs to another user (uid {info.st_uid})")
    if stat.S_IMODE(info.st_mode) & 0o077:
        if any(path.iterdir()):
            raise LocalError(f"others may enter {path}: run 'chmod 700 {path}'")
        path.chmod(0o700)


def check_private(path: Path, info: os.stat_result) -> None:
    """Check that an open file is its user's alone; *path* is for the message.

    Raises:
        LocalError: Others may read it, it belongs to another user, or is no regular file.
    """
    if not stat.S_ISREG(info.st_mode):
        raise LocalError(f"{path} is not a regular file")
    if info.st_uid not in {0, os.geteuid()}:
        raise LocalError(f"{path} belongs to another user (uid {info.st_uid})")
    if stat.S_IMODE(info.st_mode) & 0o077:
        raise LocalError(f"others may read {path}: run 'chmod 600 {path}'")
