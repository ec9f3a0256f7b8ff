"""A seccomp filter for what Landlock leaves open (man 2 seccomp).

Landlock knows files. A program of the node's own user could still connect to the node's control
socket, where it would be the owner, change the mode of files by name, or ask the kernel for
things that a script never needs. Those calls fail with EPERM.

Few imports, for it runs in the launcher.
"""

from __future__ import annotations

import ctypes
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["filter_bytes", "is_supported", "restrict"]


def is_supported() -> bool:
    """Whether there is a table of system calls for this machine, and the kernel has seccomp."""
    has_seccomp = _LIBC.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) >= 0
    return has_seccomp and os.uname().machine in _MACHINES


def restrict(*, may_connect: bool) -> None:
    """Confine this process for good; it must have set no_new_privs.

    Args:
        may_connect: Whether sockets of IPv4 and IPv6 may be made; those of Unix never may, but in
            pairs.

    Raises:
        OSError: The kernel refused, or the machine is not known.
    """
    if os.uname().machine not in _MACHINES:
        raise OSError(f"no seccomp filter for {os.uname().machine}")
    program = filter_bytes(may_connect=may_connect)
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    if _LIBC.prctl(_PR_SET_SECCOMP, _MODE_FILTER, filter_, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def filter_bytes(*, may_connect: bool) -> bytes:
    """Return the filter of `restrict`, for a program that loads it itself."""
    return b"".join(_program(may_connect=may_connect))


def _program(*, may_connect: bool) -> Sequence[bytes]:
    """Return the filter in classic BPF: each check ends the call or falls through to the next."""
    architecture, column = _MACHINES[os.uname().machine]
    lines = [_load(_AT_ARCH), *_unless(architecture, _KILL), _load(_AT_NUMBER)]
    if column == 0:  # the x32 numbers would slip past those below
        lines += [_jump(_JGE, _X32_BIT, 0, 1), _return(_ENOSYS)]
    for refused in _REFUSED.values():
        number = refused[column]
        if number is not None:
            lines += _when(number, _EPERM)
    for missing in _MISSING.values():  # glibc falls back to the older call
        lines += _when(missing[column], _ENOSYS)
    for numbers, wanted in _OF_ITSELF.values():
        checks = [line for place, value in wanted.items() for line in _argument_is(place, value)]
        lines += _only_for(numbers[column], [*checks, _return(_ALLOW)])
    for takers, create, mode in _TAKE_MODES.values():
        lines += _only_for(takers[column], _without_set_id(create, mode))
    # A pair of datagram sockets could still send to any other.
    pair = [_load(_AT_FIRST_ARGUMENT + 8), _and(_SOCKET_KIND), *_when(_SOCK_DGRAM, _EACCES)]
    lines += _only_for(_SOCKETPAIR[column], [*pair, _return(_ALLOW)])
    # No new namespaces: they are most of what kernels were broken with.
    clone = [_load(_AT_FIRST_ARGUMENT), _jump(_JSET, _NEW_NAMESPACES, 0, 1), _return(_EPERM)]
    lines += _only_for(_CLONE[column], [*clone, _return(_ALLOW)])
    families = (_AF_INET, _AF_INET6, _AF_NETLINK) if may_connect else ()
    allowed = [line for family in families for line in _when(family, _ALLOW)]
    lines += _only_for(_SOCKET[column], [_load(_AT_FIRST_ARGUMENT), *allowed, _return(_EACCES)])
    return [*lines, _return(_ALLOW)]


def _when(value: int, action: int) -> list[bytes]:
    return [_jump(_JEQ, value, 0, 1), _return(action)]


def _unless(value: int, action: int) -> list[bytes]:
    return [_jump(_JEQ, value, 1, 0), _return(action)]


def _only_for(number: int | None, lines: list[bytes]) -> list[bytes]:
    return [] if number is None else [_jump(_JEQ, number, 0, len(lines)), *lines]


def _without_set_id(create: int | None, mode: int) -> list[bytes]:
    """Refuse set-user-ID and set-group-ID in argument *mode*, where *create* says that it counts.

    Whoever runs such a file, outside of any sandbox, becomes the user of the program.
    """
    lines = [_load(_AT_FIRST_ARGUMENT + 8 * mode), _jump(_JSET, _SET_ID, 0, 1), _return(_EPERM)]
    lines.append(_return(_ALLOW))
    if create is not None:
        lines[:0] = [_load(_AT_FIRST_ARGUMENT + 8 * create), _jump(_JSET, _CREATES, 1, 0)]
        lines.insert(2, _return(_ALLOW))
    return lines


def _argument_is(place: int, value: int) -> list[bytes]:
    return [_load(_AT_FIRST_ARGUMENT + 8 * place), *_unless(value, _EPERM)]


def _and(bits: int) -> bytes:
    return struct.pack("=HBBI", 0x54, 0, 0, bits)


def _load(offset: int) -> bytes:
    return struct.pack("=HBBI", 0x20, 0, 0, offset)


def _jump(test: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("=HBBI", 0x05 | test, if_true, if_false, value)


def _return(action: int) -> bytes:
    return struct.pack("=HBBI", 0x06, 0, 0, action)


_LIBC: Any = ctypes.CDLL(None, use_errno=True)
_PR_GET_SECCOMP, _PR_SET_SECCOMP, _MODE_FILTER = 21, 22, 2
_JEQ, _JGE, _JSET = 0x10, 0x30, 0x40
# struct seccomp_data; both machines are little-endian, so an argument's low half comes first.
_AT_NUMBER, _AT_ARCH, _AT_FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _EACCES, _ENOSYS = 0x00050000 | 1, 0x00050000 | 13, 0x00050000 | 38
_X32_BIT = 0x40000000
# CLONE_NEW{TIME,NS,CGROUP,UTS,IPC,USER,PID,NET}
_NEW_NAMESPACES = 0x80 | 0x20000 | 0x2000000 | 0x4000000 | 0x8000000
_NEW_NAMESPACES |= 0x10000000 | 0x20000000 | 0x40000000

# Audit architecture, and the column below. From <asm/unistd.h> of Linux 6.12.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_SOCKET = (41, 198)
_AF_INET, _AF_INET6, _AF_NETLINK = 2, 10, 16
_CLONE = (56, 220)
# Of the last, what counts lies in memory, where no filter looks.
_MISSING = {"clone3": (435, 435), "io_uring_setup": (425, 425), "openat2": (437, 437)}
_SOCKETPAIR = (53, 199)
_SOCKET_KIND, _SOCK_DGRAM = 0xF, 2
_SET_ID = 0o6000
_CREATES = 0o100 | 0o20000000  # O_CREAT, and what makes O_TMPFILE more than O_DIRECTORY
# What gives files their modes: the places of the flags that may create one, and of the mode.
_TAKE_MODES: dict[str, tuple[tuple[int, int | None], int | None, int]] = {
    "open": ((2, None), 1, 2),
    "openat": ((257, 56), 2, 3),
    "creat": ((85, None), None, 1),
    "mknod": ((133, None), None, 1),
    "mknodat": ((259, 33), None, 2),
    "fchmod": ((91, 52), None, 1),
}
# What changes processes, and what its arguments must be to change the caller: who is 0, and by
# what (a process, and not its user) is PRIO_PROCESS and IOPRIO_WHO_PROCESS.
_OF_ITSELF: dict[str, tuple[tuple[int, int], dict[int, int]]] = {
    "prlimit64": ((302, 261), {0: 0}),
    "sched_setparam": ((142, 118), {0: 0}),
    "sched_setscheduler": ((144, 119), {0: 0}),
    "sched_setaffinity": ((203, 122), {0: 0}),
    "sched_setattr": ((314, 274), {0: 0}),
    "setpriority": ((141, 140), {0: 0, 1: 0}),
    "ioprio_set": ((251, 30), {0: 1, 1: 0}),
    "migrate_pages": ((256, 238), {0: 0}),
    "move_pages": ((279, 239), {0: 0}),
}
_REFUSED: dict[str, tuple[int, int | None]] = {
    # Landlock does not see them, and files may belong to the node's user.
    "chmod": (90, None),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "inotify_add_watch": (254, 27),
    "fanotify_mark": (301, 263),
    # Memory, keys and queues of other processes of the user.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    # Doors into the kernel.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
}
