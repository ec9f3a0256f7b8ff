"""What the launcher's child does to itself between fork and exec.

Few imports, for it runs in the launcher. The order matters: limits while it still may set them,
then the user, then no_new_privs, on which the filters rest, then exec.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct

from alknet.commands import landlock, seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from alknet.commands.policy import ProgramLimits, ProgramPolicy

__all__ = ["SYSTEM_PATHS", "become", "change_user"]

SYSTEM_PATHS = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store",
    "/etc/alternatives", "/etc/ca-certificates", "/etc/crypto-policies", "/etc/fonts",
    "/etc/group", "/etc/hosts", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d",
    "/etc/ld.so.preload", "/etc/locale.alias", "/etc/localtime", "/etc/magic", "/etc/mime.types",
    "/etc/nsswitch.conf", "/etc/os-release", "/etc/passwd", "/etc/pki/tls/certs",
    "/etc/protocols", "/etc/resolv.conf", "/etc/services", "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf", "/etc/terminfo", "/etc/timezone",
)  # fmt: skip
"""What every program may read and run: the system, and of /etc what libraries look for."""


def become(policy: ProgramPolicy, directory: str) -> None:
    """Turn this process into the program, with descriptors 0, 1 and 2 alone. Never returns.

    Raises:
        OSError: Something was refused, or there is no such program; its text says what.
    """
    _reset_signals()
    _die_with_parent()
    _offer_itself_first()
    os.umask(0o077)
    _limit(policy["limits"], _uid(policy))
    is_confined = policy["sandbox"] != "none"
    if is_confined:
        _bound_capabilities()
    if policy["user"] is not None:
        change_user(policy["user"])
        _die_with_parent()  # a change of user forgets it
    if is_confined:
        _drop_capabilities()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    os.chdir(directory)
    if policy["sandbox"] == "landlock":
        write = [*policy["write"], directory]
        read = [*SYSTEM_PATHS, *policy["read"], policy["argv"][0]]
        landlock.restrict(read=read, write=write, may_connect=policy["network"])
    if policy["sandbox"] == "landlock" or (policy["sandbox"] == "user" and seccomp.is_supported()):
        seccomp.restrict(may_connect=policy["network"])
    argv = policy["argv"]
    if policy["sandbox"] == "bwrap":
        argv = _bubblewrapped(policy, directory)
    os.execve(argv[0], argv, policy["environment"])  # noqa: S606  a shell is what it must not be


def change_user(user: tuple[int, int]) -> None:
    """Become *user* (user, group) for good, in no other group. Raises OSError."""
    uid, gid = user
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _bubblewrapped(policy: ProgramPolicy, directory: str) -> list[str]:
    """Return the command line of bubblewrap; the environment passes through it."""
    argv = [policy["bwrap"], "--unshare-all", "--die-with-parent", "--cap-drop", "ALL"]
    if policy["network"]:
        argv.append("--share-net")
    if seccomp.is_supported():
        argv += ["--seccomp", str(_filter_file(may_connect=policy["network"]))]
    for path in (*SYSTEM_PATHS, *policy["read"], policy["argv"][0]):
        argv += ["--ro-bind-try", path, path]
    argv += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108  its own
    for path in policy["read"]:  # again, for what lies below /tmp
        argv += ["--ro-bind-try", path, path]
    program = policy["argv"][0]
    argv += ["--ro-bind", program, program]
    for path in (*policy["write"], directory):
        argv += ["--bind-try", path, path]
    return [*argv, "--chdir", directory, "--", *policy["argv"]]


def _filter_file(*, may_connect: bool) -> int:
    """Return a file with the filter, which bubblewrap reads and closes: it needs more itself."""
    fd = os.memfd_create("filter", 0)
    os.write(fd, seccomp.filter_bytes(may_connect=may_connect))
    os.lseek(fd, 0, os.SEEK_SET)
    os.set_inheritable(fd, True)
    return fd


def _reset_signals() -> None:
    # What Python ignores would be ignored by the program too.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _offer_itself_first() -> None:
    """If memory runs out, let the kernel choose the program and not the node."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(_OOM_SCORE)
    except OSError:
        pass  # it would have been better, and goes without


def _die_with_parent() -> None:
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _limit(limits: ProgramLimits, uid: int) -> None:
    processes = limits["processes"] + tasks_of_user(uid)
    for which, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
    ):
        _, hard = resource.getrlimit(which)
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (least, least))


def _bound_capabilities() -> None:
    """See that no program of root's, or with capabilities of its own, brings any."""
    for capability in range(64):
        if _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            return  # the last was before, or there is no right to any


def _drop_capabilities() -> None:
    """Give up what the node may have, such as to bind to low ports."""
    _LIBC.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    none = bytes(24)  # effective, permitted and inheritable, twice 32 of each
    if _LIBC.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), none) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")


def tasks_of_user(uid: int) -> int:
    """Count the processes and threads of a user: the kernel's limit is on all of them."""
    count = 0
    for name in os.listdir("/proc"):
        if name.isdecimal():
            count += _tasks(name, uid)
    return count


def _tasks(pid: str, uid: int) -> int:
    try:
        if os.stat(f"/proc/{pid}").st_uid != uid:  # as most are, and cheaper than to read
            return 0
        with open(f"/proc/{pid}/status", "rb") as file:
            status = dict(line.split(b":", 1) for line in file if b":" in line)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return int(status[b"Threads"])


def _uid(policy: ProgramPolicy) -> int:
    return os.getuid() if policy["user"] is None else policy["user"][0]


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_OOM_SCORE = "500"  # of -1000 to 1000: as if it held half of all memory
_LIBC: Any = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
