"""A new home, made beside its place and moved there when it is whole."""

from __future__ import annotations

import contextlib
import errno
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
        Conflict: Another process has made the home meanwhile.
        StoreError: The system refuses.
    """
    with store_errors(f"cannot create {home}"):
        home.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(home)
        building, held = _begun(home)
    try:
        yield building
        with store_errors(f"cannot make {home}"):
            sync_directory(building)
            _move_to(home, building)
            sync_directory(home.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(building)
        os.close(held)  # not before, or others would remove it at the same time


def _begun(home: Path) -> tuple[Path, int]:
    """Make a directory beside *home*, and hold it."""
    while True:
        building = home.with_name(f".{home.name}.{secrets.token_hex(SUFFIX_BYTES)}")
        try:
            create_home(building)
            held = _hold(building)
        except BaseException:  # raised again: nobody else knows the directory
            shutil.rmtree(building, ignore_errors=True)
            raise
        if held is not None:
            return building, held
        # Another process was faster, and takes it for an abandoned one.


def _hold(directory: Path) -> int | None:
    """Lock a directory until the descriptor is closed; None if another has it, or it is gone."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), directory.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _move_to(home: Path, building: Path) -> None:
    try:
        building.rename(home)  # also onto an empty directory, and onto no other
    except OSError as exc:
        if exc.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        raise Conflict(f"{home} was made by another process meanwhile") from exc


def _remove_abandoned(home: Path) -> None:
    for found in home.parent.glob(f".{glob.escape(home.name)}.*"):
        # Whoever makes a home at the same time moves it away, or removes it.
        with contextlib.suppress(FileNotFoundError):
            if _SUFFIX.fullmatch(found.name.removeprefix(f".{home.name}")) and _is_a_home(found):
                _remove_if_free(found)


def _remove_if_free(directory: Path) -> None:
    held = _hold(directory)
    if held is not None:
        try:
            shutil.rmtree(directory)
        finally:
            os.close(held)


def _is_a_home(path: Path) -> bool:
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        return False
    names = {entry.name for entry in path.iterdir()}
    return not names or not names.isdisjoint(_OURS)
