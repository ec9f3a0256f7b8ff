"""A new home, made beside its place and moved there when it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from alknet.errors import Conflict
from alknet.vault.durable import store_errors, sync_directory
from alknet.vault.keyfile import create_home

__all__ = ["building_home"]

SUFFIX_BYTES = 4
_SUFFIX = re.compile(r"\.[0-9a-f]{8}")
# A directory with one of them is a home begun; another one of such a name is not ours to remove.
_OURS = frozenset(
    {
        "vault.alk",
        "vault.key",
        "node.toml",
        "node.db",
        "known_nodes.json",
        "state.json",
        "succession.json",
    }
)


@contextlib.contextmanager
def building_home(home: Path) -> Iterator[Path]:
    """Give a private directory beside *home* that takes its place when the block ends well.

    *home* is not there yet, or is empty. If the block fails, nothing stays behind; and what one
    that was killed left behind, keys among it, is removed by the next for the same home.

    Raises:
        Conflict: Another process took the directory for an abandoned one.
        StoreError: The system refuses.
    """
    with store_errors(f"cannot create {home}"):
        home.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(home)
    building = home.with_name(f".{home.name}.{secrets.token_hex(SUFFIX_BYTES)}")
    try:
        create_home(building)
        with _held(building) as is_ours:
            if not is_ours:
                raise Conflict(f"{home} is being made by another process")
            yield building
            with store_errors(f"cannot make {home}"):
                sync_directory(building)
                building.rename(home)  # also onto an empty directory, and onto no other
                sync_directory(home.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(building)


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[bool]:
    """Hold a directory while the block runs; gives False if another process does."""
    with store_errors(f"cannot lock {directory}"):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield _is_free(descriptor)
    finally:
        os.close(descriptor)


def _is_free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_abandoned(home: Path) -> None:
    for found in home.parent.glob(f".{glob.escape(home.name)}.*"):
        if _SUFFIX.fullmatch(found.name.removeprefix(f".{home.name}")) and _is_a_home(found):
            with _held(found) as is_abandoned:
                if is_abandoned:
                    shutil.rmtree(found)


def _is_a_home(path: Path) -> bool:
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        return False
    names = {entry.name for entry in path.iterdir()}
    return not names or not names.isdisjoint(_OURS)
