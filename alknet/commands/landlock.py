"""Landlock: which files a process and all that it starts may touch (man 7 landlock).

Few imports, for it runs in the launcher.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = ["NEEDED_ABI", "SIGNALS_ABI", "abi", "restrict"]

NEEDED_ABI = 3
"""Linux 6.2. Before, a confined program could still truncate files by their names."""

SIGNALS_ABI = 6
"""Linux 6.12. Before, a confined program may signal processes of its user."""


def abi() -> int:
    """Return the version that the kernel has, 0 for none."""
    version: int = _LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    return max(0, version)


def restrict(*, read: Iterable[str], write: Iterable[str], may_connect: bool) -> None:
    """Confine this process for good to *read* (and run) and *write*, each with all below it.

    What does not exist is left out. The process must have set no_new_privs.

    Args:
        read: Files and directories to read and to run.
        write: Those to change too.
        may_connect: Whether TCP is open; kernels before 6.7 cannot close it.

    Raises:
        OSError: The kernel refused.
    """
    version = abi()
    files = _ALL_FILES & ((1 << _RIGHTS_OF_ABI.get(version, 16)) - 1)
    net = 0 if may_connect or version < 4 else _ALL_TCP
    scoped = _ALL_SCOPES if version >= SIGNALS_ABI else 0
    fields = (files, net, scoped)[: 1 if version < 4 else 2 if version < SIGNALS_ABI else 3]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    size = ctypes.c_size_t(len(attributes))
    ruleset = _check(_LIBC.syscall(_CREATE_RULESET, attributes, size, 0))
    for path in read:
        _allow(ruleset, path, _READ & files)
    for path in write:
        _allow(ruleset, path, files & ~_NEVER)
    for path in _DEVICES:
        _allow(ruleset, path, (_READ_FILE | _WRITE_FILE) & files)
    _check(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there, or not for this user, needs no permission
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, fd)
        _check(_LIBC.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0))
    finally:
        os.close(fd)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"landlock: {os.strerror(number)}")
    return result


_LIBC: Any = ctypes.CDLL(None, use_errno=True)
# The same on all architectures (Linux unified the numbers of new calls).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _RULE_PATH_BENEATH = 1, 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK, _TRUNCATE, _IOCTL_DEV = 1 << 6, 1 << 11, 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_NEVER = _MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV
_ALL_FILES = (1 << 16) - 1
# How many of the rights a version knows; asking for more is an error.
_RIGHTS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15}
_ALL_TCP = 0b11  # bind, connect
_ALL_SCOPES = 0b11  # abstract Unix sockets, signals

_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
