"""The launcher: starts a program, confines it, and ends it with all that it started.

It is a program of its own, run as a file by ``python -I -S``. It is started for each call, so it
imports little: its start is most of what a call costs. The node holds one end of a socket, the
launcher the other:

* the node sends the `ProgramPolicy` as one line of JSON;
* the launcher answers with one line when all is over: ``{"exit": n, "stderr": …}`` with a negative
  number for a signal, or ``{"failed": reason}`` if the program never ran;
* when the node closes its end, on purpose or because it was killed, the program gets SIGTERM, and
  after a time SIGKILL, as does everything that it started.

The launcher is the parent of last resort (PR_SET_CHILD_SUBREAPER) of all that the program starts,
daemons too, and does not end before they have. Standard input and output are the program's.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time

if __name__ == "__main__":  # run as a file, outside of any site-packages
    # The package without its __init__, which is for those who import all of it.
    sys.modules["alknet"] = package = type(sys)("alknet")
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]

from alknet.commands.contain import become, change_user

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from alknet.commands.policy import ProgramPolicy

__all__ = ["MAX_POLICY_BYTES", "MAX_STDERR_BYTES", "main"]

MAX_STDERR_BYTES = 4096
"""The end of what the program says on standard error: enough for a traceback."""

MAX_POLICY_BYTES = 1024 * 1024
"""A policy is a few hundred bytes; what the configuration allows fits thrice."""

# Below this nobody sees a delay, and above it nothing is spent.
_POLL_S = 0.02
# Between two rounds of killing: the kernel needs its share too.
_BREATH_S = 0.001
# The kernel ends what was killed at once, unless it hangs in a device or a network file system.
_KILL_WITHIN_S = 5.0


def main(control: int) -> int:
    """Run one program as the node says on the socket *control*; see the module."""
    os.set_inheritable(control, False)
    policy = _receive(control)
    if policy is None:
        return 1
    answer = json.dumps(_run(policy, control)).encode() + b"\n"
    try:
        while answer:
            answer = answer[os.write(control, answer) :]
    except OSError:
        return 1  # the node is gone
    return 0


def _receive(control: int) -> ProgramPolicy | None:
    data = b""
    while not data.endswith(b"\n"):
        more = os.read(control, 65536)
        if not more or len(data) > MAX_POLICY_BYTES:
            return None
        data += more
    policy: ProgramPolicy = json.loads(data)
    return policy


def _run(policy: ProgramPolicy, control: int) -> dict[str, Any]:
    _adopt_orphans()
    directory = policy["directory"]
    made = None
    try:
        if directory is None:
            made = directory = _make_directory(policy)
        stderr, child_stderr = os.pipe()
        pid, failure = _fork(policy, directory, child_stderr)
        os.close(child_stderr)
        if pid is None:
            return {"failed": failure}
        _let_go_of_stdio()
        return _Watch(pid, stderr, control, policy["grace_s"]).run()
    except OSError as exc:
        return {"failed": str(exc)}
    finally:
        if made is not None:
            _remove(made, policy["user"])


class _Watch:
    """Waits for the program's end, or that of the node's patience."""

    def __init__(self, pid: int, stderr: int, control: int, grace_s: float) -> None:
        self._pid = pid
        self._stderr = stderr
        self._control = control
        self._grace_s = grace_s
        self._said = b""
        self._status: int | None = None
        os.set_blocking(stderr, False)

    def run(self) -> dict[str, Any]:
        poll = select.poll()
        ended = os.pidfd_open(self._pid)
        poll.register(ended, select.POLLIN)
        poll.register(self._stderr, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        while self._status is None:
            ready = {fd for fd, _ in poll.poll(1000)}
            if self._stderr in ready and not self._listen():
                poll.unregister(self._stderr)
            if self._control in ready:  # the node says nothing more: it is its end
                self._stop()
                break
            self._reap()
        self._kill_all()
        self._listen()
        code = 0 if self._status is None else os.waitstatus_to_exitcode(self._status)
        return {"exit": code, "stderr": self._said.decode(errors="replace")}

    def _stop(self) -> None:
        """Ask the program to end, and give it time."""
        _signal_group(self._pid, signal.SIGTERM)
        deadline = time.monotonic() + self._grace_s
        while self._status is None and time.monotonic() < deadline:
            self._listen()
            self._reap()
            time.sleep(_POLL_S)

    def _kill_all(self) -> None:
        """Kill and reap every descendant, however fast they make new ones."""
        deadline = time.monotonic() + _KILL_WITHIN_S
        while self._reap() and time.monotonic() < deadline:
            found = _descendants()
            for number in (signal.SIGSTOP, signal.SIGKILL):  # what is stopped does not fork
                for pid in found:
                    _signal(pid, number)
            time.sleep(_BREATH_S)

    def _reap(self) -> bool:
        """Take leave of those that have ended; True while others live."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._pid:
                self._status = status

    def _listen(self) -> bool:
        """Keep the end of standard error; False once it is closed."""
        for _ in range(64):  # a program that shouts without end must not hold this up
            try:
                data = os.read(self._stderr, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._said = (self._said + data)[-MAX_STDERR_BYTES:]
        return True


def _fork(policy: ProgramPolicy, directory: str, stderr: int) -> tuple[int | None, str]:
    """Start the program; return its process id, or None and why it did not start."""
    report, child_report = os.pipe()  # closed by exec, so that its end means success
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.dup2(stderr, 2)
            os.dup2(child_report, 3)
            os.set_inheritable(3, False)
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))
            become(policy, directory)
        except BaseException as exc:  # noqa: BLE001  boundary: the other end reads it
            os.write(3, (str(exc) or type(exc).__name__).encode())
        finally:
            os._exit(127)
    os.close(child_report)
    failure = b""
    while data := os.read(report, 4096):
        failure += data
    os.close(report)
    if not failure:
        return pid, ""
    os.waitpid(pid, 0)
    return None, failure.decode(errors="replace")


def _adopt_orphans() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _make_directory(policy: ProgramPolicy) -> str:
    path = f"{policy['temporary']}/alknet-{os.urandom(8).hex()}"
    os.mkdir(path, 0o700)
    if policy["user"] is not None:
        os.chown(path, *policy["user"])
    return path


def _remove(path: str, user: tuple[int, int] | None) -> None:
    """Remove a directory that the program uses no more, whatever was left in it."""
    if _has_removed_empty(path):  # most programs leave nothing
        return
    # As programs, for they descend to any depth. And as the program's user: another process of that
    # user could put a link in their way, which root would follow.
    _run_as(user, ["/bin/chmod", "-R", "u+rwx", "--", path])
    _run_as(user, ["/bin/rm", "-rf", "--", path])
    _has_removed_empty(path)  # if that user may not


def _has_removed_empty(path: str) -> bool:
    try:
        os.rmdir(path)
    except OSError:
        return False
    return True


def _run_as(user: tuple[int, int] | None, argv: list[str]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            if user is not None:
                change_user(user)
            os.execv(argv[0], argv)  # noqa: S606  no shell is wanted
        finally:
            os._exit(127)
    os.waitpid(pid, 0)


def _let_go_of_stdio() -> None:
    """Leave standard input and output to the program, so that their ends are its own."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.close(null)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # it has ended, or is no longer of a user whom this one may signal


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # it has ended, or is no longer of a user whom this one may signal


def _descendants() -> list[int]:
    """Return the processes below this one."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and (parent := _parent(name)) is not None:
            children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    todo = [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _parent(pid: str) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # it has ended, or belongs to another user (proc mounted with hidepid=1)
    # "pid (name) state parent …", where the name may hold anything.
    return int(stat[stat.rindex(b")") + 1 :].split()[1])


_PR_SET_CHILD_SUBREAPER = 36

if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
