"""A program ends with its call, however that ends, with all that it started and left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import trio

from alknet.call.codes import CallError
from alknet.commands import launch, process
from alknet.commands.process import CommandFailed, open_program
from alknet.testing.operations import call_operation, collect_items
from tests.commands.kit import Place, is_alive, policy

# Each writes the ids of its processes, a line each, before it does anything else.
STUBBORN = "trap '' TERM HUP INT; echo $$; sleep 600 & echo $!; wait"
DAEMON = "setsid sh -c 'echo $$; exec sleep 600' & echo $$; exec sleep 600"
ORPHANS = (
    "(sh -c 'echo $$; : > one; exec sleep 600' &);"
    "(setsid sh -c 'echo $$; : > two; exec sleep 600' &)"
)


@pytest.mark.parametrize("body", [STUBBORN, DAEMON])
async def test_leaving_a_subscription_ends_every_process_of_it(place: Place, body: str) -> None:
    long = place.operation(body, op_type="subscription")
    pids = await collect_items(long, limit=2)
    # As seen from here: no sandbox of namespaces counts them anew.
    assert len(set(pids)) == 2
    assert [pid for pid in pids if is_alive(pid)] == []
    assert _left(place) == []


async def test_a_cancel_ends_every_process_of_it(place: Place) -> None:
    script = place.script(STUBBORN)
    async with open_program(policy([script], read=[script]), b"{}") as program:
        pids = await _first_lines(program.read, 2)
        assert all(map(is_alive, pids))
        with trio.move_on_after(0):
            await program.wait()
    assert [pid for pid in pids if is_alive(pid)] == []


async def test_what_a_program_leaves_behind_ends_with_it(place: Place) -> None:
    until_both = "while [ ! -e one ] || [ ! -e two ]; do sleep 0.01; done"
    items = place.operation(f"{ORPHANS}; {until_both}", op_type="subscription")
    pids = await collect_items(items)
    assert len(pids) == 2
    assert [pid for pid in pids if is_alive(pid)] == []


async def test_sigterm_comes_first_and_leaves_time(place: Place, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as shared:
        Path(shared).chmod(0o777)
        body = f"trap 'echo done > {shared}/end; exit' TERM; echo 1; while :; do sleep 0.01; done"
        tidy = place.operation(body, op_type="subscription", grace_s=60, write=[shared])
        with trio.fail_after(50):
            assert await collect_items(tidy, limit=1) == [1]
        assert (Path(shared) / "end").read_text() == "done\n"


async def test_the_deadline_ends_it(place: Place) -> None:
    slow = place.operation("sleep 600; echo 1", timeout_s=30)
    assert slow.spec.max_duration_s == 30
    with trio.move_on_after(0.2) as scope:
        await call_operation(slow)
    assert scope.cancelled_caught
    assert not place.runner.running
    assert _left(place) == []


@pytest.mark.slow
async def test_cancelled_at_each_checkpoint_nothing_is_left(place: Place) -> None:
    """Run it with a cancel at the first, second … checkpoint, until it runs to its end."""
    quick = place.operation("cat")
    for count in range(1, 1000):
        instrument = _CancelAt(count)
        with trio.CancelScope() as scope:
            instrument.scope = scope
            trio.lowlevel.add_instrument(instrument)
            try:
                await call_operation(quick)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        assert not place.runner.running
        assert _left(place) == []
        if not scope.cancel_called:
            break
    assert count > 4  # it started, wrote, read and waited


async def test_no_descriptor_is_left_by_calls_that_end_in_any_way(place: Place) -> None:
    good, bad = place.operation("cat"), place.operation("exit 9")
    slow = place.operation("exec sleep 600")
    long = place.operation("echo 1; exec sleep 600", op_type="subscription")
    gone = place.script("echo 1")
    missing = place.operation([gone])
    Path(gone).unlink()
    await call_operation(good)
    gc.collect()  # what earlier tests have left is not closed meanwhile
    before = _descriptors()
    assert await call_operation(good) == {}
    assert await collect_items(long, limit=1) == [1]
    for fails in (bad, missing):
        with pytest.raises(CallError):
            await call_operation(fails)
    with trio.move_on_after(0.01):
        await call_operation(slow)
    assert _descriptors() == before


async def test_a_node_that_is_killed_leaves_no_program_and_no_directory(place: Place) -> None:
    script = place.script(f"echo $PWD; {ORPHANS}; exec sleep 600")
    node = subprocess.Popen(
        [sys.executable, "-c", _RUN_AND_SHOW, repr(policy([script], read=[script]))],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert node.stdout is not None
    with node, node.stdout as shown:
        directory = Path(shown.readline().strip())
        pids = [int(shown.readline()) for _ in range(2)]
        assert directory.exists()
        assert all(map(is_alive, pids))
        node.kill()
        node.wait()
    with trio.fail_after(60):
        while any(map(is_alive, pids)) or directory.exists():
            await trio.sleep(0.01)


async def test_a_launcher_that_is_killed_takes_the_program_along(place: Place) -> None:
    script = place.script("echo $$; echo $PPID; exec sleep 600")
    # Where the directory stays that such a launcher leaves behind.
    wanted = policy([script], read=[script], temporary=str(place.directory))
    async with open_program(wanted, b"{}") as program:
        pid, launcher = await _first_lines(program.read, 2)
        os.kill(launcher, signal.SIGKILL)
        with pytest.raises(CommandFailed, match="without a word"):
            await program.wait()
    with trio.fail_after(60):
        while is_alive(pid):
            await trio.sleep(0.01)


async def test_a_launcher_that_ends_before_it_has_listened_did_so_without_a_word(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = place.directory / "go"
    deaf = place.script(f"while [ ! -e {go} ]; do sleep 0.01; done")
    monkeypatch.setattr(sys, "executable", deaf)
    async with open_program(policy(["/bin/true"]), b"{}") as program:
        go.touch()
        with pytest.raises(CommandFailed, match="without a word"):
            await program.wait()


def test_processes_that_may_not_be_looked_at_are_no_descendants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_path: str, _mode: str) -> object:  # as where proc is mounted with hidepid=1
        raise PermissionError

    monkeypatch.setattr(launch, "open", refuse, raising=False)
    assert launch._descendants() == []


async def test_a_launcher_that_hangs_is_killed_and_the_program_with_it(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "END_WITHIN_S", 0.0)
    script = place.script("echo $$; echo $PPID; exec sleep 600")
    # Where the directory stays that such a launcher leaves behind.
    wanted = policy([script], read=[script], temporary=str(place.directory))
    async with open_program(wanted, b"{}") as program:
        pid, launcher = await _first_lines(program.read, 2)
        os.kill(launcher, signal.SIGSTOP)
    assert "command.not_ended" in caplog.text
    assert not is_alive(launcher)
    with trio.fail_after(60):
        while is_alive(pid):
            await trio.sleep(0.01)


async def test_a_launcher_that_cannot_be_started_is_unavailable(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(CallError, match="UNAVAILABLE"):
        await call_operation(place.operation("echo 1"))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CallError, match=r"UNAVAILABLE|INTERNAL"):
        await call_operation(place.operation("echo 1"))
    assert not place.runner.running


async def test_a_slow_reader_slows_the_program(place: Place) -> None:
    with tempfile.TemporaryDirectory() as shared:
        Path(shared).chmod(0o777)
        count = Path(shared) / "count"
        body = f"""
n=0
while [ $n -lt 20000 ]; do n=$((n+1)); echo '"{"x" * 90}"'; echo $n > {count}; done
"""
        items = place.operation(body, op_type="subscription", write=[shared])
        assert len(await collect_items(items, limit=3)) == 3
        # A pipe's worth and what was read of it, not the two million bytes that there would be.
        assert int(count.read_text() or 0) < 3000


async def test_no_more_run_at_once_than_may(place: Place) -> None:
    script = place.script("sleep 600")
    slow = place.operation([script], concurrent=2)
    refused: list[CallError] = []

    async def call() -> None:
        try:
            await call_operation(slow)
        except CallError as exc:
            refused.append(exc)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(call)
    assert [(exc.code, exc.retryable) for exc in refused] == [("RESOURCE_EXHAUSTED", True)]
    assert not place.runner.running


async def test_the_node_bounds_all_commands_together(place: Place) -> None:
    place.runner._most = lambda: 0
    with pytest.raises(CallError, match="RESOURCE_EXHAUSTED"):
        await call_operation(place.operation("echo 1"))


class _CancelAt(trio.abc.Instrument):
    """Cancels *scope* when the task that made this is scheduled for the n-th time."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._task = trio.lowlevel.current_task()
        self.scope: trio.CancelScope | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0 and self.scope is not None:
                self.scope.cancel()


async def _first_lines(read: object, count: int) -> list[int]:
    data = b""
    while data.count(b"\n") < count:
        data += await read()  # type: ignore[operator]  # Program.read
    return [int(line) for line in data.split()]


def _descriptors() -> list[str]:
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


def _left(place: Place) -> list[str]:
    """Directories and processes of commands that are still there."""
    needle = str(place.directory)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and is_alive(int(entry.name)):
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if needle in line:
                found.append(line)
    return found


_RUN_AND_SHOW = """
import ast, sys, trio
from alknet.commands import process
from alknet.commands.process import CommandFailed, open_program

async def main():
    async with open_program(ast.literal_eval(sys.argv[1]), b"{}") as program:
        while data := await program.read():
            sys.stdout.write(data.decode())
            sys.stdout.flush()
        await trio.sleep_forever()

trio.run(main)
"""
