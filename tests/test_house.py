"""The rules of the house that no linter knows: docs/explanation/words.md has the words for them."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

import alknet
from alknet.call.codes import CODES, CallError, ErrorCode, call_error_from, exception_from
from alknet.cli.app import COMMANDS
from alknet.core.config_command import CommandErrorTable, CommandTable
from alknet.core.config_outbound import OutboundTable
from alknet.core.config_tables import LogTable, NodeTable, PeerTable, WebCertificateTable
from alknet.core.limits import Limits
from alknet.node import Node
from alknet.testing.nodes import open_node
from alknet.testing.operations import assert_list_operations_filter
from tests.scenarios.homes import LOOPBACK, make_home

ROOT = Path(__file__).parents[1]
MAX_LINES = 600
UNTRUSTED = "_untrusted"
# Where people are spoken to; everything else logs, or returns what is to be said.
MAY_PRINT = {"cli"}
# Importing them runs them.
SCRIPTS = {"alknet.__main__"}


def _sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


CODE = _sources("alknet")
MODULES = [name for name in map(_module_name, CODE) if name not in SCRIPTS]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT))


# Size and order.


@pytest.mark.parametrize("path", _sources("alknet", "benchmarks"), ids=_short)
def test_a_file_has_at_most_600_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", _sources("alknet", "tests", "benchmarks"), ids=_short)
def test_nothing_is_left_to_do(path: Path) -> None:
    marks = "TO" + "DO|FIX" + "ME|X" + "XX"
    found = re.search(rf"\b({marks})\b", path.read_text(encoding="utf-8"))
    assert found is None, found


@pytest.mark.parametrize("path", CODE, ids=_short)
def test_only_commands_print(path: Path) -> None:
    if path.relative_to(ROOT / "alknet").parts[0] in MAY_PRINT:
        return
    calls = (node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call))
    assert not [node.lineno for node in calls if ast.unparse(node.func) == "print"]


# Names.


@pytest.mark.parametrize("path", [p for p in CODE if _module_name(p) in MODULES], ids=_short)
def test_all_says_what_a_module_gives(path: Path) -> None:
    if not _tree(path).body[1:]:
        return  # a package with a docstring alone
    module = import_module(_module_name(path))
    names = getattr(module, "__all__", None)
    assert names is not None, "no __all__"
    assert len(names) == len(set(names)), "a name stands there twice"
    assert [name for name in names if not hasattr(module, name)] == []
    assert [name for name in names if name.startswith("_")] == []


def test_the_public_api_is_where_its_table_says() -> None:
    for name in alknet.__all__:
        thing = getattr(alknet, name)
        assert thing.__name__ == name
        assert getattr(import_module(thing.__module__), name) is thing
    with pytest.raises(AttributeError):
        alknet.nothing  # noqa: B018
    assert dir(alknet) == alknet.__all__


def test_commands_are_in_the_table_by_their_names() -> None:
    for name, (place, short) in COMMANDS.items():
        module, _, attribute = place.partition(":")
        command = getattr(import_module(module), attribute)
        assert command.name == name
        assert short.endswith(".")


# Documentation.


@pytest.mark.parametrize("path", CODE, ids=_short)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(_tree(path))


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_documented(name: str) -> None:
    module = import_module(name)
    bare = [where for where, thing in _public(module) if not _is_documented(thing)]
    assert bare == [], f"without a docstring: {bare}"


def _public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Yield what *module* defines and gives, and the public members of its classes."""
    for name in getattr(module, "__all__", ()):
        thing = inspect.unwrap(getattr(module, name)) if name else None
        if getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(thing):
            yield name, thing
            yield from ((f"{name}.{member}", found) for member, found in _members(thing))
        elif inspect.isfunction(thing):
            yield name, thing


def _members(cls: type) -> Iterator[tuple[str, object]]:
    is_protocol = getattr(cls, "_is_protocol", False)
    for name, member in vars(cls).items():
        if name.startswith("_") or _inherits_docstring(cls, name):
            continue
        found = _function(member)
        # What a Protocol's property holds stands among the attributes of its class.
        if found is not None and not (is_protocol and _is_one_liner(found)):
            yield name, found


def _function(member: object) -> Callable[..., object] | None:
    if isinstance(member, classmethod | staticmethod):
        return member.__func__
    if isinstance(member, property):
        return member.fget
    return member if inspect.isfunction(member) else None


def _inherits_docstring(cls: type, name: str) -> bool:
    """Whether a class above, or one of our Protocols, says already what the member does."""
    above = [base for base in cls.__mro__[1:] if name in vars(base)]
    return bool(above) or name in _CONTRACTS


def _is_one_liner(function: Callable[..., object]) -> bool:
    """``def peer(self, name: str) -> Peer | None: ...``: the signature says all."""
    return inspect.getsource(function).rstrip().endswith(": ...")


def _is_documented(thing: object) -> bool:
    document = getattr(thing, "__doc__", None) or ""
    # msgspec and dataclasses make one of the fields, which says nothing.
    return bool(document.strip()) and not document.startswith(f"{getattr(thing, '__name__', '')}(")


def _contract_members() -> frozenset[str]:
    """Name what Protocols of ours, Trio's and the standard library's ABCs ask for and explain."""
    found: set[str] = set()
    for path in CODE:
        module = _module_name(path)
        if module in MODULES:
            for thing in vars(import_module(module)).values():
                if inspect.isclass(thing) and getattr(thing, "_is_protocol", False):
                    found |= {name for name in vars(thing) if not name.startswith("_")}
    return frozenset(found)


_CONTRACTS = _contract_members()


# A peer's bytes.


def test_every_parser_of_a_peers_bytes_is_fuzzed() -> None:
    tested = _names_in(path for path in _sources("tests") if _is_fuzzing(path))
    reached: set[tuple[Path, str]] = set()
    while new := {(path, name) for path in CODE for name in _reached(path, tested)} - reached:
        reached |= new
        # From one file to another only parsers lead, not any name that both happen to use.
        used = set().union(*(_functions(path)[name] for path, name in new))
        tested |= {name for name in used if name.endswith(UNTRUSTED)}
    missing = {
        f"{_short(path)}: {name}"
        for path in CODE
        for name in _functions(path)
        if name.endswith(UNTRUSTED) and (path, name) not in reached
    }
    assert missing == set()


def _is_fuzzing(path: Path) -> bool:
    return path.parent.name == "fuzz" or "from hypothesis import" in path.read_text(
        encoding="utf-8"
    )


@cache
def _functions(path: Path) -> dict[str, set[str]]:
    """Return the functions and methods of a file, and the names that each uses."""
    return {
        node.name: _names(node)
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def _reached(path: Path, tested: set[str]) -> set[str]:
    """Return what tests use of a file, directly or through its other functions."""
    functions = _functions(path)
    reached: set[str] = set()
    new = set(functions) & tested
    while new:
        reached |= new
        used = set().union(*(functions[name] for name in new))
        new = (used & set(functions)) - reached
    return reached


def _names_in(paths: Iterator[Path]) -> set[str]:
    return set().union(*(_names(_tree(path)) for path in paths))


def _names(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    return found


# Tables.


@pytest.mark.parametrize("code", ErrorCode)
def test_an_error_code_maps_to_exit_and_http_and_back(code: ErrorCode) -> None:
    info = CODES[code]
    assert info.exit_status != 0
    assert 400 <= info.http_status <= 599
    error = CallError(code, "why")
    back = call_error_from(exception_from(error))
    assert back is not None
    assert (back.code, back.message, back.retryable) == (code, "why", info.retryable)


def test_http_statuses_tell_codes_apart() -> None:
    statuses = [CODES[code].http_status for code in ErrorCode]
    assert len(set(statuses)) == len(statuses)


@pytest.mark.parametrize(
    "table",
    [
        CommandErrorTable,
        CommandTable,
        Limits,
        LogTable,
        NodeTable,
        OutboundTable,
        PeerTable,
        WebCertificateTable,
    ],
)
def test_every_key_of_the_configuration_is_in_the_reference(table: type[msgspec.Struct]) -> None:
    page = (ROOT / "docs" / "reference" / "config.md").read_text(encoding="utf-8")
    missing = [name for name in table.__struct_fields__ if f"| `{name}` |" not in page]
    assert missing == []


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_code_is_in_the_reference(code: ErrorCode) -> None:
    assert f"| `{code}` |" in (ROOT / "docs/reference/errors.md").read_text(encoding="utf-8")


# The repository and the node.


def test_tracked_files_name_no_workplace() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert paths
    found = [_short(path) for path in paths if path.is_file() and _workplace(path.read_bytes())]
    assert found == []


def _workplace(data: bytes) -> re.Match[bytes] | None:
    places: Sequence[bytes] = (
        b"/wo" + b"rk/",
        b"/tmp/" + b"venv",
        b"/ro" + b"ot/",
        b"/ho" + b"me/",
    )
    return re.search(b"|".join(rb"(?<![\w.~-])" + place for place in places), data)


async def test_the_lists_of_a_node_filter_what_they_show(tmp_path: Path) -> None:
    home = await make_home(tmp_path)
    async with open_node() as bare, Node.from_home(home, listen=LOOPBACK) as full:
        assert len(full.registry) > len(bare.registry) > 0
        for node in (bare, full):
            await assert_list_operations_filter(node.registry)
