"""Mutation testing of the hot path: does a test fail when one line of it is wrong?

    python -m tests.mutants [--sample N] [--jobs N] [FILE ...]

Each mutant is one small change (a comparison turned, a constant off by one, `and` for `or`, a
branch that is always or never taken, a statement left out) in a copy of the tree. A mutant that no
test notices survives; the last line says how many died. Exits with 1 when that is too few.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from random import Random  # noqa: TID251  seeded

ROOT = Path(__file__).parents[1]
DEFAULT_FILES = "alknet/core/quic/hotpath"
TESTS = (
    "tests/core/quic/hotpath",
    "tests/core/quic/test_engine.py",
    "tests/core/quic/test_floods.py",
)
COPIED = ("alknet", "tests", "pyproject.toml")
# A mutant that makes a loop endless is noticed by its time, or by what it takes.
TIMEOUT_S = 300
TEST_TIMEOUT_S = 20
MEMORY_BYTES = 2 << 30
LEAST_KILLED = 0.9

SLOWER = "the general way is taken, to the same end"
# Mutants that change nothing that could be seen, by the line and what became of it, and why.
EQUIVALENT: dict[tuple[str, str], str] = {
    ("if length == 2:", "if False:"): SLOWER,
    (
        "self.mask = hp._mask if hp._is_chacha20 else hp._encryptor.update",
        "self.mask = hp._mask if True else hp._encryptor.update",
    ): SLOWER,
    (
        (
            "if loss._rtt_smoothed != inbound.rtt_smoothed"
            " or loss._rtt_variance != inbound.rtt_variance:"
        ),
        "if True:",
    ): SLOWER,
    (
        "if number > space.largest_received_packet:",
        "if number >= space.largest_received_packet:",
    ): "a duplicate is dropped before",
    ("if lower > window._lower:", "if lower >= window._lower:"): "only a duplicate is equal",
    (
        "elif number > expected + half and number >= 2 * half:",
        "elif number > expected + half and number > 2 * half:",
    ): "in the first window no number is as large; in a later one the first half says no",
    ("if TYPE_CHECKING:", "if False:"): "names of types, which nobody looks up while it runs",
    (
        "streams = list(raised) if len(raised) == 1 else list(connection._streams.values())",
        "streams = list(raised) if False else list(connection._streams.values())",
    ): SLOWER,
}

SWAPPED: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitXor: (ast.BitOr,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
LEFT_OUT = (ast.Assign, ast.AugAssign, ast.Expr, ast.Raise, ast.Return)


@dataclass(frozen=True)
class Mutant:
    path: Path
    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.before}  ->  {self.after}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("files", nargs="*", type=Path, default=[Path(DEFAULT_FILES)])
    parser.add_argument("--sample", type=int, default=0, help="try so many, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of that choice")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tests", nargs="*", default=list(TESTS), help="what must notice")
    options = parser.parse_args(arguments)
    mutants = [mutant for path in _sources(options.files) for mutant in mutants_of(path)]
    if options.sample:
        mutants = Random(options.seed).sample(mutants, min(options.sample, len(mutants)))
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        return _report(list(_run_all(mutants, Path(directory), options.jobs, options.tests)))


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield all mutants of the file at *path*, relative to the root of the tree."""
    source = (ROOT / path).read_text()
    tree = ast.parse(source)
    for place, node in enumerate(_walk(tree)):
        for number in range(len(_changes(node))):
            changed = copy.deepcopy(tree)
            copied = next(n for at, n in enumerate(_walk(changed)) if at == place)
            _changes(copied)[number]()
            ast.fix_missing_locations(changed)
            mutant = _mutant(path, tree, changed, node)
            if (mutant.before, mutant.after) not in EQUIVALENT:
                yield mutant


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield *node* and what is in it, but for types, which nobody looks at while it runs."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(child)


class _Change:
    """Replaces one field of a node."""

    def __init__(self, node: ast.AST, name: str, value: object) -> None:
        self._node, self._name, self._value = node, name, value

    def __call__(self) -> None:
        setattr(self._node, self._name, self._value)


def _changes(node: ast.AST) -> list[_Change]:
    found: list[_Change] = []
    if isinstance(node, ast.Compare):
        others = SWAPPED.get(type(node.ops[0]), ())
        found += [_Change(node, "ops", [other(), *node.ops[1:]]) for other in others]
    elif isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)):
        found += [_Change(node, "op", other()) for other in SWAPPED.get(type(node.op), ())]
        if isinstance(node, ast.BoolOp):
            found += [
                _Change(node, "values", [v for v in node.values if v is not left])
                for left in node.values
            ]
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
        found += [_Change(node, "test", ast.Constant(value)) for value in (True, False)]
        if isinstance(node, ast.While):
            del found[-2]  # endless
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        found.append(_Change(node, "operand", ast.UnaryOp(ast.Not(), node.operand)))
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        found += [_Change(node, "value", node.value + 1)]
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        found += [_Change(node, "value", not node.value)]
    return found + _omissions(node)


def _omissions(node: ast.AST) -> list[_Change]:
    """Leave out one statement of a body."""
    found = []
    for name in ("body", "orelse"):
        body = getattr(node, name, None)
        if not isinstance(body, list) or isinstance(node, (ast.Module, ast.ClassDef)):
            continue
        for place, statement in enumerate(body):
            if isinstance(statement, LEFT_OUT) and not _is_docstring(statement):
                rest = [*body[:place], ast.Pass(), *body[place + 1 :]]
                found.append(_Change(node, name, rest))
    return found


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _mutant(path: Path, tree: ast.AST, changed: ast.AST, node: ast.AST) -> Mutant:
    before, after = (ast.unparse(t).splitlines() for t in (tree, changed))
    pairs = [(a, b) for a, b in zip(before, after, strict=False) if a != b]
    old, new = pairs[0] if pairs else ("", "")
    line = getattr(node, "lineno", 0)
    return Mutant(path, line, old.strip(), new.strip(), "\n".join(after) + "\n")


def _sources(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        whole = ROOT / path
        found = sorted(whole.glob("*.py")) if whole.is_dir() else [whole]
        yield from (file.relative_to(ROOT) for file in found)


def _run_all(
    mutants: list[Mutant], directory: Path, jobs: int, tests: list[str]
) -> Iterator[tuple[Mutant, bool]]:
    trees: SimpleQueue[Path] = SimpleQueue()
    for number in range(jobs):
        tree = directory / str(number)
        for name in COPIED:
            _copy(ROOT / name, tree / name)
        trees.put(tree)
    if not _passes(directory / "0", tests):
        sys.exit("the tests fail before anything is changed")

    def run(mutant: Mutant) -> tuple[Mutant, bool]:
        tree = trees.get()
        target = tree / mutant.path
        original = target.read_text()
        try:
            target.write_text(mutant.source)
            return mutant, not _passes(tree, tests)
        finally:
            target.write_text(original)
            trees.put(tree)

    with ThreadPoolExecutor(jobs) as pool:
        for number, (mutant, is_killed) in enumerate(pool.map(run, mutants), start=1):
            print(f"\r{number}/{len(mutants)} ", end="", file=sys.stderr, flush=True)  # noqa: T201
            if not is_killed:
                print("survived", mutant, flush=True)  # noqa: T201
            yield mutant, is_killed


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def _passes(tree: Path, tests: list[str]) -> bool:
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    with subprocess.Popen(
        [*command, f"--timeout={TEST_TIMEOUT_S}"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        try:
            return process.wait(TIMEOUT_S) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            return False


def _report(results: list[tuple[Mutant, bool]]) -> int:
    killed = sum(is_killed for _, is_killed in results)
    share = killed / len(results) if results else 1.0
    print(f"{killed} of {len(results)} mutants died ({share:.0%})")  # noqa: T201
    return int(share < LEAST_KILLED)


if __name__ == "__main__":
    sys.exit(main())
