"""Programs that mean harm: what the sandbox and the limits do about them."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.commands import landlock, launch, sandbox, seccomp
from alknet.commands.process import Ended, open_program
from alknet.errors import LocalError
from alknet.testing.operations import call_operation, collect_items
from tests.commands.kit import LIMITS, PYTHON, Place, is_alive, is_root, policy

REPORT = """
import json, os, socket, sys
found = {}
def attempt(name, what):
    try:
        what()
    except OSError as exc:
        found[name] = type(exc).__name__
    else:
        found[name] = "done"
"""


async def run(argv: list[str], **changed: Any) -> tuple[str, Ended]:
    """Run *argv* as this very user, in the sandbox alone."""
    output = b""
    async with open_program(policy(argv, **changed), b"{}") as program:
        while data := await program.read():
            output += data
        return output.decode(), await program.wait()


async def attempts(place: Place, body: str, **changed: Any) -> dict[str, str]:
    """Run a Python script as this very user and return what it found."""
    script = place.script(REPORT + body + "\nprint(json.dumps(found))", interpreter=PYTHON)
    reads = [*policy([script])["read"], script]
    output, ended = await run([script], **{"read": reads, **changed})
    assert ended == Ended(0), ended
    return msgspec.json.decode(output, type=dict[str, str])


async def test_the_home_is_out_of_reach_even_of_the_nodes_own_user(place: Place) -> None:
    home = place.home
    body = f"""
home = {str(home)!r}
attempt("list", lambda: os.listdir(home))
attempt("read", lambda: open(home + "/vault.alk").read())
attempt("write", lambda: open(home + "/vault.alk", "a"))
attempt("make", lambda: open(home + "/new", "w"))
attempt("truncate", lambda: os.truncate(home + "/vault.alk", 0))
attempt("remove", lambda: os.unlink(home + "/vault.alk"))
attempt("rename", lambda: os.rename(home + "/vault.alk", home + "/x"))
attempt("link", lambda: os.link(home + "/vault.alk", "here"))
attempt("mode", lambda: os.chmod(home, 0o777))
attempt("owner", lambda: os.chown(home, 1, 1))
attempt("times", lambda: os.utime(home + "/vault.alk"))
attempt("attribute", lambda: os.setxattr(home, "user.x", b"y"))
os.symlink(home, "link")
attempt("by link", lambda: open("link/vault.alk").read())
"""
    found = await attempts(place, body)
    times = found.pop("times")  # which tells nothing, and undoes nothing
    assert times in {"done", "PermissionError"}
    assert set(found.values()) <= {"PermissionError", "OSError"}, found
    assert len(found) == 12
    assert (home / "vault.alk").read_text() == "the vault"
    assert home.stat().st_mode & 0o777 == 0o700


async def test_no_file_can_be_left_that_makes_others_the_user(place: Place) -> None:
    body = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def made(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    os.close(result)
flags = os.O_CREAT | os.O_WRONLY
os.umask(0)
attempt("create", lambda: made(os.open("a", flags, 0o4755)))
attempt("group", lambda: made(os.open("b", flags, 0o2755)))
attempt("without a name", lambda: made(os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o4755)))
attempt("make", lambda: os.mknod("c", 0o104755))
attempt("change", lambda: os.fchmod(os.open("d", flags), 0o4755))
attempt("change itself", lambda: os.fchmod(os.open(sys.argv[0], os.O_RDONLY), 0o4755))
attempt("usual", lambda: made(os.open("e", flags, 0o755)))
attempt("open", lambda: made(libc.openat(-100, b"e", os.O_RDONLY, 0o4755)))
attempt("change usually", lambda: os.fchmod(os.open("e", os.O_RDONLY), 0o700))
"""
    found = await attempts(place, body)
    assert {found.pop(name) for name in ("usual", "open", "change usually")} == {"done"}
    assert set(found.values()) == {"PermissionError"}
    assert len(found) == 6


async def test_the_control_socket_is_out_of_reach_even_of_the_nodes_own_user(
    place: Place,
) -> None:
    path = place.directory / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        body = f"""
def connect():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect({str(path)!r})
attempt("connect", connect)
attempt("pair", lambda: [one.close() for one in socket.socketpair()])
attempt("datagrams", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
"""
        expected = {"connect": "PermissionError", "pair": "done", "datagrams": "PermissionError"}
        assert await attempts(place, body) == expected
        assert await attempts(place, body, network=True) == expected


async def test_the_network_is_out_of_reach_unless_it_is_allowed(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        body = f"""
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", {port})).close())
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close())
attempt("raw", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
"""
        assert set((await attempts(place, body)).values()) == {"PermissionError"}
        found = await attempts(place, body, network=True)
        assert found == {"tcp": "done", "udp": "done", "raw": "PermissionError"}


async def test_other_processes_of_the_user_are_out_of_reach(place: Place) -> None:
    body = f"""
import ctypes, resource
node = {os.getpid()}
libc = ctypes.CDLL(None, use_errno=True)
def ptrace():
    if libc.ptrace(16, node, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "")
def unshare():
    if libc.unshare(0x10000000) != 0:
        raise OSError(ctypes.get_errno(), "")
attempt("signal", lambda: os.kill(node, 0))
attempt("ptrace", ptrace)
attempt("limits", lambda: resource.prlimit(node, resource.RLIMIT_NOFILE, (9, 9)))
attempt("affinity", lambda: os.sched_setaffinity(node, {{0}}))
attempt("priority", lambda: os.setpriority(os.PRIO_PROCESS, node, 19))
attempt("priority of all", lambda: os.setpriority(os.PRIO_USER, 0, 19))
attempt("environment", lambda: open(f"/proc/{{node}}/environ").read())
attempt("memory", lambda: open(f"/proc/{{node}}/mem").read())
attempt("namespaces", unshare)
attempt("own priority", lambda: os.setpriority(os.PRIO_PROCESS, 0, 5))
"""
    found = await attempts(place, body, read=[*policy([PYTHON])["read"], "/proc"])
    assert found.pop("own priority") == "done"
    if landlock.abi() < landlock.SIGNALS_ABI:  # doctor says so
        found.pop("signal")
    assert {name for name, got in found.items() if got != "PermissionError"} == set()


async def test_a_fork_bomb_is_bounded_and_ends(place: Place) -> None:
    bomb = place.operation(
        "echo 1; bomb() { bomb | bomb & }; bomb; sleep 600", op_type="subscription", processes=24
    )
    with trio.fail_after(60):
        assert await collect_items(bomb, limit=1) == [1]
    assert _processes_with(str(place.directory)) == []


async def test_a_fork_bomb_is_bounded_by_its_limit(place: Place) -> None:
    body = """
import os, time
made = 0
try:
    for _ in range(500):
        if os.fork() == 0:
            time.sleep(600)
        made += 1
except BlockingIOError:
    pass
print(made)
"""
    with trio.fail_after(30):
        made = await call_operation(place.python(body, processes=48))
    assert 0 < made < 200  # others of the user may begin or end meanwhile


async def test_endless_output_is_cut_off(place: Place) -> None:
    endless = place.operation(["/bin/cat", "/dev/zero"], op_type="subscription")
    with trio.fail_after(60):
        with pytest.raises(CallError, match="INTERNAL"):
            await call_operation(place.operation(["/usr/bin/yes"]))
        with pytest.raises(CallError, match="INTERNAL"):
            await collect_items(endless)


async def test_endless_standard_error_is_bounded(place: Place) -> None:
    loud = place.operation("yes >&2 & echo 1; sleep 0.1; kill $!")
    assert await call_operation(loud) == 1


async def test_input_that_nobody_reads_holds_nothing_up(place: Place) -> None:
    large = {"text": "x" * 3_000_000}
    assert await call_operation(place.operation("exec <&-; echo 1"), large) == 1
    assert await call_operation(place.operation("head -c 1 >/dev/null; echo 1"), large) == 1


async def test_output_closed_early_waits_for_the_end(place: Place) -> None:
    errors = {"3": {"code": "LATE", "message": "it came late"}}
    closed = place.operation("exec >&-; sleep 0.1; exit 3", errors=errors)
    with pytest.raises(CallError, match="LATE"):
        await call_operation(closed)


@pytest.mark.slow
async def test_memory_and_files_and_time_are_bounded(place: Place) -> None:
    limits = {**LIMITS, "memory_bytes": 256 << 20, "cpu_s": 1}
    hungry = place.script("x = bytearray(1 << 30)", interpreter=PYTHON)
    _, ended = await run([hungry], limits=limits, read=[*policy([PYTHON])["read"], hungry])
    assert "MemoryError" in ended.stderr
    _, ended = await run([place.script("head -c 2000000 /dev/zero > file")], limits=limits)
    assert ended.exit != 0
    with trio.fail_after(30):
        _, ended = await run([place.script("while :; do :; done")], limits=limits)
    assert ended.exit in {-9, -24}  # SIGKILL, SIGXCPU


async def test_directories_that_nobody_may_enter_go_too(place: Place) -> None:
    body = "mkdir -m 0 closed; mkdir -p $(printf 'd/%.0s' $(seq 150)); : > d/file"
    made = place.operation(f'{body}; echo "\\"$PWD\\""')
    assert not Path(await call_operation(made)).exists()


def test_what_clears_a_directory_has_no_more_rights_than_the_program(place: Place) -> None:
    user = (65534, 65534) if is_root() else None
    made = launch._make_directory(policy(["/bin/true"], temporary=str(place.directory), user=user))
    kept = Path(made, "foreign") if is_root() else place.home
    if is_root():  # as what root would reach by a link that another process puts there
        kept.mkdir(mode=0o755)
        (kept / "file").touch()
    else:
        Path(made, "link").symlink_to(kept)
    launch._remove(made, user)
    assert kept.exists()
    if is_root():
        shutil.rmtree(kept)
        (Path(made) / "file").touch()
        launch._remove(made, None)
    assert not Path(made).exists()


async def test_what_is_allowed_is_allowed(place: Place) -> None:
    data, out = place.directory / "data", place.directory / "out"
    data.write_text("7")
    out.mkdir(mode=0o777)
    out.chmod(0o777)
    body = f"cat {data}; echo 8 > {out}/file; ! echo 9 > {data}"
    assert await call_operation(place.operation(body, read=[str(data)], write=[str(out)])) == 7
    assert (out / "file").read_text() == "8\n"
    assert data.read_text() == "7"


async def test_without_a_sandbox_the_limits_and_the_end_hold(place: Place) -> None:
    free = place.operation("echo $$; exec sleep 600", op_type="subscription", sandbox="none")
    [pid] = await collect_items(free, limit=1)
    assert not is_alive(pid)


def test_no_filter_goes_beyond_what_a_jump_can_reach() -> None:
    for may_connect in (False, True):
        program = seccomp._program(may_connect=may_connect)
        assert len(program) < 4096
        assert all(len(line) == 8 for line in program)


async def test_another_user_is_a_sandbox_of_its_own_for_roots_node(place: Place) -> None:
    if not is_root():
        with pytest.raises(LocalError, match="'user' cannot be had here"):
            place.operation("true", sandbox="user")
        return
    body = f"""
attempt("home", lambda: os.listdir({str(place.home)!r}))
attempt("connect", lambda: socket.socket(socket.AF_UNIX))
attempt("signal", lambda: os.kill({os.getpid()}, 0))
attempt("root", lambda: os.setuid(0))
print(json.dumps(found))
"""
    found = await call_operation(place.python(REPORT + body, sandbox="user"))
    assert set(found.values()) == {"PermissionError"}
    assert len(found) == 4


@pytest.mark.interop
async def test_bubblewrap_shows_no_home_and_no_other_process(place: Place) -> None:
    body = f"""
attempt("home", lambda: os.listdir({str(place.home)!r}))
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", 9)))
attempt("init", lambda: open("/proc/1/environ").read())
attempt("set-ID", lambda: os.open("file", os.O_CREAT | os.O_WRONLY, 0o4755))
attempt("unix", lambda: socket.socket(socket.AF_UNIX))
found["files"] = str(os.listdir("/proc/self/fd"))
found["processes"] = str(len([name for name in os.listdir("/proc") if name.isdecimal()]))
print(json.dumps(found))
"""
    if "bwrap" not in sandbox.look()[0]:  # a system that forbids it namespaces
        with pytest.raises(LocalError, match="'bwrap' cannot be had here"):
            place.operation("true", sandbox="bwrap")
        return
    inside = place.python(REPORT + body, sandbox="bwrap")
    found = await call_operation(inside)
    assert found["home"] == "FileNotFoundError"
    assert found["tcp"] in {"OSError", "ConnectionRefusedError", "PermissionError"}
    assert int(found["processes"]) <= 3
    if seccomp.is_supported():
        assert found["set-ID"] == found["unix"] == "PermissionError"
    assert found["files"] == "['0', '1', '2', '3']"  # the last is that of the list
    pids = place.operation("echo 1; sleep 600", op_type="subscription", sandbox="bwrap")
    assert await collect_items(pids, limit=1) == [1]
    assert _processes_with(str(place.directory)) == []


def test_what_a_machine_offers_is_found_out() -> None:
    found, _ = sandbox.look()
    assert set(found) <= {"landlock", "bwrap", "user"}
    has_landlock = landlock.abi() >= landlock.NEEDED_ABI and seccomp.is_supported()
    assert ("landlock" in found) is has_landlock


def _processes_with(needle: str) -> list[str]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and is_alive(int(process.name)):
            try:
                line = (process / "cmdline").read_bytes().decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if needle in line:
                found.append(line)
    return found
