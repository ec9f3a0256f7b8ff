"""The mutants of a file: each is one small change to it.

A comparison turned, a constant off by one, `and` for `or`, a branch that is always or never taken,
a statement left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

__all__ = ["Mutant", "changed_code", "code_of_function", "mutants_of"]

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
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        path: Of the file, relative to the root of the tree.
        number: Its place among the mutants of the file.
        function: Where it is, as `Class.method`; empty if it is no function's body.
        first: The first line of the statement that is changed.
        last: The last one, of what is no statement within it.
        before: The line as it was, and as `ast` writes it.
        after: What became of it.
    """

    path: Path
    number: int
    function: str
    first: int
    last: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.path}:{self.first}: {self.before}  ->  {self.after}"


def mutants_of(root: Path, path: Path) -> Iterator[Mutant]:
    """Yield all mutants of the file at *path*, relative to *root*."""
    tree = ast.parse((root / path).read_text())
    for number, change in enumerate(_changes_of(tree)):
        before = _lines(change.scope)
        change.apply()
        after = _lines(change.scope)
        change.revert()
        pairs = [(a, b) for a, b in zip(before, after, strict=False) if a != b]
        old, new = pairs[0] if pairs else ("", "")
        first, last = _span(change.statement)
        yield Mutant(path, number, change.function, first, last, old.strip(), new.strip())


def changed_code(root: Path, path: Path, number: int) -> CodeType:
    """Compile the file with the change of that number."""
    tree = ast.parse((root / path).read_text())
    change = next(change for at, change in enumerate(_changes_of(tree)) if at == number)
    change.apply()
    whole = ast.fix_missing_locations(_Alone().visit(tree))
    return compile(whole, root / path, "exec")


class _Alone(ast.NodeTransformer):
    """Puts the one value that is left of an `and` or `or` in its place: nothing else compiles."""

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        return node.values[0] if len(node.values) == 1 else node


def code_of_function(module: CodeType, function: str) -> CodeType:
    """Return the code of `Class.method` in that of its module."""
    code = module
    for name in function.split("."):
        inner = [const for const in code.co_consts if isinstance(const, CodeType)]
        code = next(const for const in inner if const.co_name == name)
    return code


def _lines(node: ast.AST) -> list[str]:
    return ast.unparse(node).splitlines()


def _span(statement: ast.stmt) -> tuple[int, int]:
    """Return the first and last line of *statement*, without those that it contains."""
    last = statement.end_lineno or statement.lineno
    body = getattr(statement, "body", None)
    if isinstance(body, list) and body:
        last = max(statement.lineno, body[0].lineno - 1)
    return statement.lineno, last


class _Change:
    """Replaces one field of a node.

    Attributes:
        function: Of which it changes the body.
        scope: What is to be written to see the change: that function, or a statement.
        statement: The one that is changed.
    """

    def __init__(self, node: ast.AST, name: str, value: object) -> None:
        self._node, self._name, self._value = node, name, value
        self._original = getattr(node, name)
        self.function = ""
        self.scope: ast.AST = node
        self.statement: ast.stmt

    def apply(self) -> None:
        setattr(self._node, self._name, self._value)

    def revert(self) -> None:
        setattr(self._node, self._name, self._original)


@dataclass(frozen=True)
class _Place:
    """Where the walk is."""

    names: tuple[str, ...] = ()
    function: ast.AST | None = None
    statement: ast.stmt | None = None


def _changes_of(tree: ast.Module) -> Iterator[_Change]:
    for node, around in list(_walk(tree, _Place())):
        for change, statement in _changes(node):
            place = around if statement is None else _inside(node, around)
            at = statement or place.statement
            assert at is not None
            change.statement = at
            change.scope = place.function or at
            change.function = ".".join(place.names) if place.function else ""
            yield change


def _walk(node: ast.AST, place: _Place) -> Iterator[tuple[ast.AST, _Place]]:
    """Yield *node* and what is in it, but for types, which nobody looks at while it runs."""
    if isinstance(node, ast.stmt):
        place = _Place(place.names, place.function, node)
    yield node, place
    inner = _inside(node, place)
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(child, inner if name == "body" else place)


def _inside(node: ast.AST, place: _Place) -> _Place:
    """Return where the body of *node* is, which is at *place*."""
    if place.function is not None or not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return place
    function = node if isinstance(node, FUNCTIONS) else None
    return _Place((*place.names, node.name), function, place.statement)


def _changes(node: ast.AST) -> list[tuple[_Change, ast.stmt | None]]:
    """Return the changes to *node*, each with the statement in it that it leaves out."""
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
        values = (False,) if isinstance(node, ast.While) else (True, False)  # True is endless
        found += [_Change(node, "test", ast.Constant(value)) for value in values]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        found.append(_Change(node, "operand", ast.UnaryOp(ast.Not(), node.operand)))
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        found.append(_Change(node, "value", node.value + 1))
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        found.append(_Change(node, "value", not node.value))
    return [(change, None) for change in found] + list(_omissions(node))


def _omissions(node: ast.AST) -> Iterator[tuple[_Change, ast.stmt]]:
    """Leave out one statement of a body."""
    if isinstance(node, (ast.Module, ast.ClassDef)):
        return
    for name in ("body", "orelse"):
        body = getattr(node, name, None)
        if not isinstance(body, list):
            continue
        for place, statement in enumerate(body):
            if isinstance(statement, LEFT_OUT) and not _is_docstring(statement):
                yield (
                    _Change(node, name, [*body[:place], ast.Pass(), *body[place + 1 :]]),
                    statement,
                )


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
