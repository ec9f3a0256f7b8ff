"""How a command hands the vault's entropy to the running node: through a pipe in the home.

Not through the control socket, where it would be text in JSON and stay in memory that nobody can
wipe. The command opens a slot itself, makes a FIFO of mode 0600 with a random name, fills it, and
tells the node its name; the node reads the 32 bytes straight into locked memory.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from alknet.errors import LocalError, NotFound, Unavailable
from alknet.vault.derivation import ENTROPY_BYTES
from alknet.vault.durable import store_errors
from alknet.vault.locked import LockedBuffer, read_exactly

__all__ = ["offer_entropy", "receive_entropy", "remove_stale_pipes"]

PREFIX = "unlock."
# The bytes are in the pipe before the node hears of it.
READ_WITHIN_S = 2.0


@contextmanager
def offer_entropy(home: Path, entropy: memoryview) -> Iterator[str]:
    """Give the name of a pipe that holds *entropy* while the block runs; then it is gone.

    Raises:
        StoreError: The pipe cannot be made.
    """
    path = home / f"{PREFIX}{secrets.token_hex(8)}"
    with store_errors(f"cannot make {path}"):
        os.mkfifo(path, 0o600)
    try:
        # A reader of our own first: opening the writing end would wait for one.
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.writev(writer, [entropy])
                yield path.name
            finally:
                os.close(writer)
        finally:
            os.close(reader)
    finally:
        path.unlink(missing_ok=True)


async def receive_entropy(home: Path, name: str) -> LockedBuffer:
    """Return what `offer_entropy` put into the pipe *name* of *home*; the caller closes it.

    Cancelled, the pipe may be empty.

    Raises:
        NotFound: There is no such pipe.
        LocalError: It is something else than a pipe of our user, or others may write to it.
        Unavailable: It did not bring enough in time.
    """
    try:
        descriptor = os.open(
            home / name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        )
    except OSError:
        raise NotFound(f"no pipe {name} in {home}") from None
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISFIFO(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
            raise LocalError(f"{home / name} is no pipe of this user alone")
        return await _read(descriptor)
    finally:
        os.close(descriptor)


async def _read(descriptor: int) -> LockedBuffer:
    entropy = LockedBuffer(ENTROPY_BYTES)
    try:
        with trio.fail_after(READ_WITHIN_S):
            # A pipe is filled by one write: either all is there, or nobody writes.
            await trio.lowlevel.wait_readable(descriptor)
        read_exactly(descriptor, entropy.view)
    except (trio.TooSlowError, EOFError, BlockingIOError):
        entropy.close()
        raise Unavailable("the pipe did not bring what unlocks the vault") from None
    except BaseException:
        entropy.close()
        raise
    return entropy


def remove_stale_pipes(home: Path) -> None:
    """Remove pipes of commands that were killed; their content died with them."""
    for path in home.glob(f"{PREFIX}*"):
        if path.is_fifo():
            path.unlink(missing_ok=True)
