"""A process that runs tests on one mutant after another.

    python -m tests.mutants.worker TESTS [PATH NUMBER]

It collects the tests once. For each mutant it forks: the child puts the changed code in place of
the function's, runs the tests in the order that it is told, and ends at the first that fails. What
is no function's body has its effect when it is imported; for such a mutant a worker is started
that imports the changed file, with PATH and NUMBER. Asks and answers are lines of JSON.
"""

from __future__ import annotations

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from inspect import getattr_static
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, TextIO

import pytest
from coverage import Coverage

from tests.mutants.changes import changed_code, code_of_function

ROOT = Path.cwd()
# What a mutant takes that allocates without end.
MEMORY_BYTES = 2 << 30
# A mutant that loops without end is killed when one test takes so much time of the processor: many
# times what the slowest takes.
TEST_CPU_S = 8.0
ARGUMENTS = "-q --tb=native -p no:cacheprovider -o faulthandler_timeout=0 -o timeout=600"


def main(arguments: Sequence[str]) -> int:
    # These have files of their own: tests may print, and pytest lets nobody read.
    questions = os.fdopen(os.dup(sys.stdin.fileno()))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    tests, *change = arguments
    plugins: list[object] = [_Server(questions, answers)]
    if change:
        path, number = change
        code = changed_code(ROOT, Path(path), int(number))
        plugins.append(_Changed(_module_name(path), code))
    return pytest.main([*ARGUMENTS.split(), *tests.split()], plugins=plugins)


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from changed code."""

    def __init__(self, name: str, code: CodeType) -> None:
        self._name, self._code = name, code

    @pytest.hookimpl(tryfirst=True)
    def pytest_load_initial_conftests(self) -> None:
        sys.meta_path.insert(0, self)  # before pytest's own, which imports all of alknet

    def find_spec(self, fullname: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=self._code.co_filename)

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, module.__dict__)

    def pytest_collection_finish(self) -> None:
        loader = getattr(sys.modules[self._name], "__loader__", None)
        assert loader is self, f"{self._name} was imported from elsewhere"


class _Server:
    """Answers *questions* once the tests are collected."""

    def __init__(self, questions: TextIO, answers: TextIO) -> None:
        self._questions, self._answers = questions, answers
        self._failed = ""

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self) -> None:
        from hypothesis import Phase, settings  # not before pytest, which wants to see it come

        found = (Phase.explicit, Phase.generate)  # nobody reads an example that has been shrunk
        settings.register_profile("mutants", database=None, derandomize=True, phases=found)
        settings.load_profile("mutants")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        self._answer({"collected": not session.testsfailed, "tests": list(items)})
        gc.collect()
        gc.freeze()
        for line in self._questions:
            self._serve(items, json.loads(line))
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed = report.nodeid

    def _answer(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=self._answers, flush=True)

    def _serve(self, items: dict[str, pytest.Item], asked: dict[str, Any]) -> None:
        """Do in a child what is asked; answer for it if it dies."""
        child = os.fork()
        if not child:
            try:
                self._do(items, asked)
            finally:
                os._exit(1)  # it has answered, or will be answered for
        _, status = os.waitpid(child, 0)
        if status:
            self._answer({"died": os.waitstatus_to_exitcode(status)})

    def _do(self, items: dict[str, pytest.Item], asked: dict[str, Any]) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        order = [items[name] for name in asked["order"] if name in items]
        if asked["watched"]:
            ran = _watch(order, asked["watched"])
            self._answer({"ran": ran, "killer": self._failed})
            os._exit(0)
        if asked["function"] and (problem := _change(asked)):
            self._answer({"problem": problem})
            os._exit(0)
        for place, item in enumerate(order):
            signal.setitimer(signal.ITIMER_PROF, TEST_CPU_S)
            following = order[place + 1] if place + 1 < len(order) else None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._failed:
                break
        self._answer({"killer": self._failed})
        os._exit(0)


def _change(asked: dict[str, Any]) -> str:
    """Put the changed code in its place; return why not, which is nobody's merit."""
    try:
        code = changed_code(ROOT, Path(asked["path"]), asked["number"])
        _put(_module_name(asked["path"]), asked["function"], code)
    except Exception as exc:  # boundary: the program that asked stops  # noqa: BLE001
        return f"{asked['path']}: {asked['function']}: mutant {asked['number']}: {exc!r}"
    return ""


def _put(module_name: str, function: str, changed: CodeType) -> None:
    """Let the *function* of a module that is imported do what it does in the *changed* module."""
    found: Any = sys.modules[module_name]
    for name in function.split("."):
        found = getattr_static(found, name)
    if isinstance(found, property):
        found = found.fget
    elif isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    assert isinstance(found, FunctionType), function
    code = code_of_function(changed, function)
    if code.co_freevars == found.__code__.co_freevars:
        found.__code__ = code
        return
    # Nothing is left in it that asks for its class: its cell is not for it, either.
    assert not code.co_freevars, function
    found.__code__ = code.replace(co_freevars=found.__code__.co_freevars)


def _watch(items: list[pytest.Item], watched: list[str]) -> dict[str, Any]:
    """Run all; return what each costs, in seconds of the processor, and which lines it runs.

    What a cached function returns, several tests share: to each of them may matter what was run by
    the one that has called it first.
    """
    files = {str(ROOT / path): path for path in watched}
    coverage = Coverage(data_file=None, config_file=False, include=list(files))
    ran: dict[str, Any] = {}
    sharing: dict[str, set[str]] = {}
    coverage.start()
    for place, item in enumerate(items):
        following = items[place + 1] if place + 1 < len(items) else None
        before = _calls_of_cached()
        began = time.process_time()
        coverage.switch_context(item.nodeid)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        ran[item.nodeid] = {"seconds": time.process_time() - began, "lines": [], "shared": []}
        for name, count in _calls_of_cached().items():
            if count > before.get(name, 0):
                sharing.setdefault(name, set()).add(item.nodeid)
    coverage.stop()
    data = coverage.get_data()
    for file, path in files.items():
        for line, contexts in data.contexts_by_lineno(file).items():
            names = set(filter(None, contexts))
            for name in names:
                ran[name]["lines"].append((path, line))
            for users in sharing.values():
                for name in users - names if _first(users, ran) in names else ():
                    ran[name]["shared"].append((path, line))
    return ran


def _calls_of_cached() -> dict[str, int]:
    """Return how often each cached function of the tests was called."""
    return {
        f"{name}.{key}": sum(value.cache_info()[:2])
        for name, module in list(sys.modules.items())
        if name.startswith("tests.")
        for key, value in vars(module).items()
        if hasattr(value, "cache_info")
    }


def _first(users: set[str], ran: dict[str, Any]) -> str:
    return next(name for name in ran if name in users)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
