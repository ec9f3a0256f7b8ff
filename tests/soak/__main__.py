"""Run a node under everything at once and see that nothing is left: exits with 1 if there is.

``python -m tests.soak [--seconds N]``. In rounds: peers and attackers, in processes of their own,
connect, call, abort, flood, move and are killed; then all leave, and what the node holds is
compared with what it held before anybody came. Memory is compared from the end of the warm-up to
the end. A traceback or an error in the node's log fails the run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import trio

from tests.soak.parent import cancel_on_signal
from tests.soak.rounds import CYCLE, Soak
from tests.soak.verdict import ends, growth

# Rounds in which caches fill, tables reach their bounds and malloc finds its size.
WARM_UP = 2 * CYCLE
# The status of a run that a signal has ended, as shells have it.
STOPPED = 130


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3_600, help="an hour if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        return trio.run(_run, Path(directory), options.seconds)


async def _run(directory: Path, seconds: float) -> int:
    status = STOPPED
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_on_signal, nursery.cancel_scope)
        status = await _soak(directory, seconds)
        nursery.cancel_scope.cancel()
    return status


async def _soak(directory: Path, seconds: float) -> int:
    began_at = time.monotonic()
    async with Soak.running(directory) as soak:
        # However short or slow: as many rounds as two cycles after the warm-up need.
        while time.monotonic() - began_at < seconds or len(soak.pictures) < WARM_UP + 2 * CYCLE:
            _progress(soak, time.monotonic() - began_at, seconds)
            await soak.round(len(soak.pictures))
    measured = soak.pictures[WARM_UP:]
    averaged = max(CYCLE, len(measured) // 4)
    problems = soak.problems + soak.log_problems() + growth(measured, averaged)
    sys.stdout.write(_report(soak, averaged, problems))
    return 1 if problems else 0


def _progress(soak: Soak, elapsed: float, seconds: float) -> None:
    if sys.stdout.isatty():
        last = f"{soak.pictures[-1].pss_kib:,} KiB" if soak.pictures else "-"
        number = len(soak.pictures) + 1
        text = f"round {number}, {elapsed:.0f} of {seconds:.0f} s, {soak.calls:,} calls, {last}"
        sys.stdout.write(f"\r\x1b[K{text}")
        sys.stdout.flush()


def _report(soak: Soak, averaged: int, problems: list[str]) -> str:
    clear = "\r\x1b[K" if sys.stdout.isatty() else ""
    seen = f"{soak.calls:,} calls, {soak.packets:,} hostile packets, {soak.killed} peers killed"
    lines = [f"{clear}{len(soak.pictures)} rounds, {seen}"]
    lines.append(f"{'':12}{'before':>12}{'warm':>12}{'end':>12}{'change':>9}")
    for name in ("pss_kib", "blocks", "fds", "tasks"):
        first, last = ends(soak.pictures[WARM_UP:], name, averaged)
        before = getattr(soak.baseline, name)
        change = f"{last / first - 1:+.1%}"
        lines.append(f"{name:12}{before:>12,}{first:>12,.0f}{last:>12,.0f}{change:>9}")
    lines.append("pss_kib by round: " + " ".join(f"{p.pss_kib:,}" for p in soak.pictures[-100:]))
    lines += [f"FAILED: {problem}" for problem in problems] or ["nothing was left"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
