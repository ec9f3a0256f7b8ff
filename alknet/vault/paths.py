"""What the paths of secrets look like."""

from __future__ import annotations

import re

from alknet.errors import LocalError

__all__ = ["IDENTITY_SECRET", "check_not_ours", "check_secret_path"]

IDENTITY_SECRET = "node/identity"  # noqa: S105  a path
"""Where an identity is that was made before there were vaults: no words lead to it."""

# Paths are typed by people and named in logs.
_PATH = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}(/[a-z0-9][a-z0-9._-]{0,62}){0,7}")


def check_secret_path(path: str) -> None:
    """Raise LocalError unless *path* is up to 8 names of at most 63 characters with slashes."""
    if not _PATH.fullmatch(path):
        raise LocalError(
            f"{path[:80]!r} is no path of a secret: up to 8 names of a-z, 0-9, '.', '_', '-' "
            "with '/' between them"
        )


def check_not_ours(path: str) -> None:
    """Raise LocalError if *path* is the node's own key."""
    if path == IDENTITY_SECRET:
        raise LocalError(f"{path} is the node's own key: it is neither shown nor changed by itself")
