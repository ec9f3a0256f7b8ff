"""The mutants themselves: which there are, and that a changed function does what it says."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.mutants import worker
from tests.mutants.changes import Mutant, changed_code, mutants_of
from tests.mutants.equivalent import EQUIVALENT

ROOT = Path(__file__).parents[2]
HOT_PATH = sorted(
    path.relative_to(ROOT) for path in (ROOT / "alknet/core/quic/hotpath").glob("*.py")
)
SOURCE = '''
"""A file."""
SIZE = 2


class Base:
    def twice(self):
        return 0


class Box(Base):
    def twice(self):
        """Not a statement to leave out."""
        super().twice()
        if self.is_small and SIZE == 2:
            return 4
        return 5

    @property
    def is_small(self):
        return True
'''


@pytest.fixture
def mutants(tmp_path: Path) -> list[Mutant]:
    (tmp_path / "box.py").write_text(SOURCE)
    return list(mutants_of(tmp_path, Path("box.py")))


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("box")
    exec(SOURCE, module.__dict__)
    monkeypatch.setitem(sys.modules, "box", module)
    return module


def test_each_change_is_one_line_of_one_statement(mutants: list[Mutant]) -> None:
    assert {(m.function, m.first, m.last, m.before, m.after) for m in mutants} == {
        ("", 3, 3, "SIZE = 2", "SIZE = 3"),
        ("Base.twice", 8, 8, "return 0", "return 1"),
        ("Base.twice", 8, 8, "return 0", "pass"),
        ("Box.twice", 14, 14, "super().twice()", "pass"),
        *(
            ("Box.twice", 15, 15, "if self.is_small and SIZE == 2:", after)
            for after in (
                "if True:",
                "if False:",
                "if self.is_small or SIZE == 2:",
                "if SIZE == 2:",
                "if self.is_small:",
                "if self.is_small and SIZE != 2:",
                "if self.is_small and SIZE == 3:",
            )
        ),
        ("Box.twice", 16, 16, "return 4", "return 5"),
        ("Box.twice", 16, 16, "return 4", "pass"),
        ("Box.twice", 17, 17, "return 5", "return 6"),
        ("Box.twice", 17, 17, "return 5", "pass"),
        ("Box.is_small", 21, 21, "return True", "return False"),
        ("Box.is_small", 21, 21, "return True", "pass"),
    }


@pytest.mark.parametrize(
    ("after", "result"),
    [("if False:", 5), ("SIZE == 3:", 5), ("return 6", 4), ("return False", 5)],
)
def test_a_function_that_is_imported_does_what_it_was_changed_to(
    tmp_path: Path, mutants: list[Mutant], box: Any, after: str, result: int
) -> None:
    known = box.Box()
    assert known.twice() == 4
    chosen = next(m for m in mutants if after in m.after and "Box" in m.function)
    worker._put("box", chosen.function, changed_code(tmp_path, Path("box.py"), chosen.number))
    assert known.twice() == result


def test_a_method_may_lose_all_that_needs_its_class(
    tmp_path: Path, mutants: list[Mutant], box: Any
) -> None:
    chosen = next(m for m in mutants if m.before == "super().twice()")
    box.Base.twice = None  # it would fail if it were called
    worker._put("box", chosen.function, changed_code(tmp_path, Path("box.py"), chosen.number))
    assert box.Box().twice() == 4


def test_what_changes_nothing_is_still_among_the_mutants() -> None:
    found = {(m.before, m.after) for path in HOT_PATH for m in mutants_of(ROOT, path)}
    assert EQUIVALENT.keys() <= found


def test_every_change_compiles(tmp_path: Path, mutants: list[Mutant]) -> None:
    for mutant in mutants:
        assert changed_code(tmp_path, mutant.path, mutant.number).co_code
