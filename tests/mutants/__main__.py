"""Mutation testing of the hot path: does a test fail when one line of it is wrong?

    python -m tests.mutants [--sample N [--seed N]] [--jobs N] [FILE ...]

The tests run on a copy of the tree, in processes that stay warm (`worker`). A mutant meets the
tests that run the line which it changes: first those that have killed another of the same
function, then the quickest; the first that fails ends it. It survives if all of them pass. It dies
if one fails, takes far too long (`TEST_CPU_S`, of the processor's time) or crashes. The survivors
are listed, and the last line says how many died. Exits with 1 when that is too few.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from random import Random  # noqa: TID251  seeded
from typing import Any, Self, cast

import pytest

from tests.mutants.changes import Mutant, mutants_of
from tests.mutants.equivalent import EQUIVALENT

ROOT = Path(__file__).parents[2]
DEFAULT_FILES = "alknet/core/quic/hotpath"
DEFAULT_TESTS = "tests/core/quic/hotpath"
COPIED = ("alknet", "tests", "pyproject.toml")
LEAST_KILLED = 0.9

Lines = dict[str, set[int]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.mutants")
    parser.add_argument("files", nargs="*", type=Path, default=[Path(DEFAULT_FILES)])
    parser.add_argument("--sample", type=int, default=0, help="try so many, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of that choice")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tests", default=DEFAULT_TESTS, help="what must notice")
    options = parser.parse_args(arguments)
    paths = list(_sources(options.files))
    mutants, known = _choose(paths)
    if options.sample:
        mutants = Random(options.seed).sample(mutants, min(options.sample, len(mutants)))
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        for name in COPIED:
            _copy(ROOT / name, Path(directory) / name)
        with Workers(Path(directory), options.tests, options.jobs) as workers:
            workers.watch(sorted({str(mutant.path) for mutant in mutants}))
            return _report(list(_try_all(workers, mutants)), known)


def _sources(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        whole = ROOT / path
        found = sorted(whole.glob("*.py")) if whole.is_dir() else [whole]
        yield from (file.relative_to(ROOT) for file in found)


def _choose(paths: list[Path]) -> tuple[list[Mutant], int]:
    """Return the mutants that ought to die, and how many are known to change nothing."""
    mutants = [mutant for path in paths for mutant in mutants_of(ROOT, path)]
    chosen = [mutant for mutant in mutants if (mutant.before, mutant.after) not in EQUIVALENT]
    return chosen, len(mutants) - len(chosen)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant; *killer* is empty if it has survived."""

    mutant: Mutant
    killer: str


class Worker:
    """One process of `tests.mutants.worker`."""

    def __init__(self, tree: Path, tests: str, change: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.worker", tests, *change],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.hello = self._read()
        """What it says once it has collected the tests; nothing if it could not."""

    def ask(self, **question: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._read()

    def end(self) -> None:
        self._process.communicate()
        if self._process.returncode == pytest.ExitCode.INTERNAL_ERROR:
            sys.exit("pytest has failed, not a test: run the worker by hand to see why")

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return cast(dict[str, Any], json.loads(self._process.stdout.readline() or "{}"))


class Workers:
    """As many as there are jobs, and what is known of the tests."""

    def __init__(self, tree: Path, tests: str, jobs: int) -> None:
        self.jobs = jobs
        self._tree, self._tests = tree, tests
        self._free: SimpleQueue[Worker] = SimpleQueue()
        self._seconds: dict[str, float] = {}
        # Lines of each file by test: those that it runs, and those that ran for what it shares.
        self._lines: dict[str, Lines] = {}
        self._shared: dict[str, Lines] = {}

    def __enter__(self) -> Self:
        for _ in range(self.jobs):
            self._free.put(Worker(self._tree, self._tests))
        return self

    def __exit__(self, *exc: object) -> None:
        for _ in range(self.jobs):
            self._free.get().end()

    @contextmanager
    def one(self) -> Iterator[Worker]:
        worker = self._free.get()
        try:
            yield worker
        finally:
            self._free.put(worker)

    def watch(self, paths: list[str]) -> None:
        """See which lines of these files each test runs, and that all tests pass."""
        ran: dict[str, Any] = {}
        for answer in self._ask_all(paths):
            if answer.get("killer") != "":
                sys.exit(f"before anything is changed there is {_killer(answer)}")
            ran |= answer["ran"]
        for name, test in ran.items():
            self._seconds[name] = test["seconds"]
            self._lines[name] = _by_file(test["lines"])
            self._shared[name] = _by_file(test["shared"])

    def _ask_all(self, paths: list[str]) -> Iterator[dict[str, Any]]:
        """Let each worker watch its share of the tests."""

        def watch(share: int) -> dict[str, Any]:
            with self.one() as worker:
                if not worker.hello.get("collected"):
                    return {"killer": "an import that fails"}
                tests = worker.hello["tests"][share :: self.jobs]
                return worker.ask(watched=paths, order=tests)

        with ThreadPoolExecutor(self.jobs) as pool:
            yield from pool.map(watch, range(self.jobs))

    def run(self, mutant: Mutant, before: Sequence[str]) -> str:
        """Return what kills *mutant*, after the tests *before* those that are likely to."""
        order = [*before, *self._likely(mutant, set(before))]
        if mutant.function:
            question = {"path": str(mutant.path), "number": mutant.number}
            with self.one() as worker:
                return _killer(
                    worker.ask(watched=[], function=mutant.function, order=order, **question)
                )
        worker = Worker(self._tree, self._tests, [str(mutant.path), str(mutant.number)])
        try:
            if not worker.hello.get("collected"):
                return "its import"
            return _killer(worker.ask(watched=[], function="", order=order))
        finally:
            worker.end()

    def _likely(self, mutant: Mutant, but: set[str]) -> list[str]:
        """Return the tests that run what is changed, the quickest first; then those that share."""
        path, changed = str(mutant.path), set(range(mutant.first, mutant.last + 1))
        found: list[str] = []
        for lines in (self._lines, self._shared):
            names = [
                name
                for name in self._seconds
                if name not in but
                and not (mutant.function and changed.isdisjoint(lines[name].get(path, ())))
            ]
            found += sorted(names, key=self._seconds.__getitem__)
        return list(dict.fromkeys(found))


def _by_file(pairs: list[tuple[str, int]]) -> Lines:
    lines: Lines = {}
    for path, line in pairs:
        lines.setdefault(path, set()).add(line)
    return lines


def _killer(answer: dict[str, Any]) -> str:
    if "problem" in answer:  # not a death: the share would be too good
        raise RuntimeError(f"a mutant could not be made: {answer['problem']}")
    if "died" in answer:
        return f"signal {-answer['died']}" if answer["died"] < 0 else "a crash"
    return cast(str, answer["killer"])


def _try_all(workers: Workers, mutants: list[Mutant]) -> Iterator[Outcome]:
    """Try the mutants of a function one after another: the order of its tests never changes."""
    functions: dict[tuple[Path, str], list[Mutant]] = {}
    for mutant in mutants:
        functions.setdefault((mutant.path, mutant.function), []).append(mutant)
    tried = 0

    def try_function(group: list[Mutant]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for mutant in group:
            killers = [o.killer for o in reversed(outcomes) if "::" in o.killer]
            outcomes.append(Outcome(mutant, workers.run(mutant, list(dict.fromkeys(killers)))))
        return outcomes

    with ThreadPoolExecutor(workers.jobs) as pool:
        for outcomes in pool.map(try_function, functions.values()):
            tried += len(outcomes)
            print(f"\r{tried}/{len(mutants)} ", end="", file=sys.stderr, flush=True)  # noqa: T201
            for outcome in outcomes:
                if not outcome.killer:
                    print("survived", outcome.mutant, flush=True)  # noqa: T201
            yield from outcomes


def _report(outcomes: list[Outcome], known: int) -> int:
    killed = sum(bool(outcome.killer) for outcome in outcomes)
    other = Counter(o.killer for o in outcomes if o.killer and "::" not in o.killer)
    share = killed / len(outcomes) if outcomes else 1.0
    print("killed by no assertion:", dict(other))  # noqa: T201
    print(  # noqa: T201
        f"{killed} of {len(outcomes)} mutants died ({share:.1%}) in"
        f" {time.monotonic() - STARTED:.0f} s; {known} others change nothing"
    )
    return int(share < LEAST_KILLED)


STARTED = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())
