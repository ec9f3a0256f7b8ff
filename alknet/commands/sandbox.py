"""What this machine can confine a program with."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from typing import Literal, NamedTuple

from alknet.commands import landlock, seccomp
from alknet.errors import LocalError

__all__ = ["Confinement", "Sandbox", "available", "choose", "look"]

Sandbox = Literal["landlock", "bwrap", "user", "none"]

PROBE_WITHIN_S = 5.0
"""Bubblewrap needs 10 ms for nothing; a machine that needs longer is hardly alive."""


class Confinement(NamedTuple):
    """How a program is confined.

    Attributes:
        sandbox: By what.
        user: Whom it becomes (user, group); None for the node's own user.
        bwrap: Where bubblewrap is; empty if it is not used.
    """

    sandbox: Sandbox
    user: tuple[int, int] | None
    bwrap: str


def choose(wanted: str, user: str) -> Confinement:
    """Return what *wanted* (``auto`` or a sandbox) means here; blocks on a small program once.

    Raises:
        LocalError: It cannot be had, and what can.
    """
    ids = _ids(user) if os.geteuid() == 0 else None
    if wanted == "none":
        return Confinement("none", ids, "")
    for sandbox, program in available(ids):
        if wanted in {"auto", sandbox}:
            return Confinement(sandbox, ids, program)
    if wanted == "auto":
        raise LocalError(
            "nothing on this machine confines a program: Landlock needs Linux 6.2 on x86_64 or "
            'aarch64; install bubblewrap, or write sandbox = "none" to run it all the same'
        )
    has = ", ".join(sandbox for sandbox, _ in available(ids)) or "none"
    raise LocalError(f"the sandbox {wanted!r} cannot be had here; what can: {has}")


def available(ids: tuple[int, int] | None) -> Iterator[tuple[Sandbox, str]]:
    """Yield the sandboxes that work here, best first, each with the program that it needs."""
    if landlock.abi() >= landlock.NEEDED_ABI and seccomp.is_supported():
        yield "landlock", ""
    bwrap = shutil.which("bwrap", path=_SYSTEM_PATH)
    if bwrap is not None and _works(bwrap, ids):
        yield "bwrap", bwrap
    if ids is not None and ids[0] != 0:
        yield "user", ""


def look() -> tuple[dict[Sandbox, str], list[str]]:
    """Return the sandboxes that a node of this user has, and what they leave open here."""
    ids = None
    if os.geteuid() == 0:
        try:
            ids = _ids("nobody")
        except LocalError:
            ids = None
    found = dict(available(ids))
    gaps = []
    if "landlock" in found and ids is None and landlock.abi() < landlock.SIGNALS_ABI:
        gaps.append("before Linux 6.12, a command may send signals to the node")
    return found, gaps


def _works(bwrap: str, ids: tuple[int, int] | None) -> bool:
    """Whether bubblewrap may make namespaces: some systems forbid it to users."""
    if (bwrap, ids) in _WORKED:
        return True
    uid, gid = (None, None) if ids is None else ids
    probe = [bwrap, "--unshare-all", "--ro-bind", "/", "/", "--", "/bin/true"]
    try:
        done = subprocess.run(  # noqa: S603  fixed
            probe,
            user=uid,
            group=gid,
            extra_groups=None if ids is None else [],
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_WITHIN_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    if done.returncode == 0:
        _WORKED.add((bwrap, ids))
    return done.returncode == 0


def _ids(user: str) -> tuple[int, int]:
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError):
        raise LocalError(f"there is no user {user!r} to run it as") from None
    return entry.pw_uid, entry.pw_gid


# Not the node's: its programs are not looked for where its user can put some.
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
# What was tried out with success; a failure may have been mended since.
_WORKED: set[tuple[str, tuple[int, int] | None]] = set()
