"""[[command]]: what each key means, and that every mistake is found and named with its line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from alknet.core.access import AccessRules
from alknet.core.config import (
    NodeConfig,
    check_config,
    load_config,
    what_changed,
    what_needs_restart,
)
from alknet.core.config_command import CommandConfig

WHOLE = """
[[command]]
name = "image/size"
run = ["/bin/cat", "-n", "a b"]
op_type = "mutation"
scopes_all = ["image"]
scopes_any = ["x", "y"]
input_schema = { type = "object", required = ["path"] }
output_schema = "out.json"
environment = { LANG = "C" }
read = ["/usr/share"]
timeout_s = 5
errors = { 3 = { code = "NOT_AN_IMAGE", message = "it is none" } }

[command.errors.4]
code = "NOT_FOUND"
message = "no such image"
retryable = true
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return home


def problems(home: Path, text: str) -> list[str]:
    path = home / "node.toml"
    path.write_text(text)
    return [str(problem).removeprefix(f"{path}:") for problem in check_config(path)]


def problem(home: Path, keys: str) -> str:
    """Return the one problem of a command with *keys* beside those that it needs."""
    run = "" if keys.startswith("run") else 'run = ["/bin/cat"]\n'
    [found] = problems(home, f'[[command]]\nname = "a/b"\npublic = true\n{run}{keys}\n')
    return found


def command(home: Path, text: str) -> CommandConfig:
    (home / "node.toml").write_text(text)
    [found] = load_config(home / "node.toml").commands
    return found


def test_a_whole_command(home: Path) -> None:
    (home / "out.json").write_text('{"type": "integer"}')
    found = command(home, WHOLE.replace("errors = {", "# {"))
    assert found.name == "image/size"
    assert found.where == f"{home / 'node.toml'}:2"
    assert found.argv == ("/bin/cat", "-n", "a b")
    assert found.access == AccessRules(scopes_all=("image",), scopes_any=("x", "y"))
    assert found.input_schema == {"type": "object", "required": ["path"]}
    assert found.output_schema == {"type": "integer"}
    assert found.table.timeout_s == 5
    assert {status: one.code for status, one in found.errors.items()} == {4: "NOT_FOUND"}


def test_the_least_that_a_command_needs(home: Path) -> None:
    found = command(home, '[[command]]\nname = "a/b"\nrun = ["cat"]\ninternal = true\n')
    assert os.path.basename(found.argv[0]) == "cat"  # noqa: PTH119  of PATH
    assert found.argv[0].startswith("/")
    assert found.input_schema == {"type": "object"}
    assert found.output_schema == {}
    assert found.table.sandbox == "auto"
    assert found.table.environment == {}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("run = []", "4: command[0].run: found no program"),
        ('run = ["cat", "a\\u0000"]', "4: command[0].run: found a NUL character"),
        ('run = ["./cat"]', "4: command[0].run[0]: found './cat', expected an absolute path"),
        ('run = ["no-such-program"]', "there is no program 'no-such-program' in PATH"),
        ('run = ["/nowhere/x"]', "'/nowhere/x' is not a file that can be run"),
        ('run = ["/etc/passwd"]', "'/etc/passwd' is not a file that can be run"),
        ('run = ["/bin/cat"]\ncwd = "/"', "5: command[0].cwd: unknown key"),
        ('op_type = "upload"', 'found "upload", expected one of "query", "mutation", "subscr'),
        ('sandbox = "no"', 'found "no", expected one of "auto"'),
        ("timeout_s = 0", "5: command[0].timeout_s: found 0, expected a number > 0.0"),
        ("scopes_all = ['a']", "found 'public' beside 'scopes', expected one of the two"),
        ("internal = true", "found 'public' beside 'internal'"),
        ('input_schema = { type = "x" }', "not a JSON Schema: at /type"),
        ('input_schema = "no.json"', "cannot read the schema"),
        ('output_schema = { "$ref" = "https://x.org/y" }', "outside of itself"),
        ('read = ["x"]', "command[0].read[0]: found 'x', expected an absolute path"),
        ('write = ["/nowhere"]', "command[0].write[0]: there is no '/nowhere'"),
        ('directory = "/etc/passwd"', "'/etc/passwd' is not a directory"),
        ('environment = { "A=B" = "c" }', "'A=B' cannot be in an environment"),
        ('errors = { x = { code = "A", message = "b" } }', "expected an exit status, 1 to 255"),
        ('errors = { 0 = { code = "A", message = "b" } }', "expected an exit status, 1 to 255"),
        ('errors = { 256 = { code = "A", message = "b" } }', "found '256'"),
        ('errors = { 3 = { message = "b" } }', "the key 'code' is missing"),
        ('errors = { 3 = { code = "a", message = "b" } }', "errors.3.code: found"),
        (
            'errors = { 3 = { code = "INTERNAL", message = "b" } }',
            "INTERNAL is for the node itself",
        ),
    ],
)
def test_each_mistake_is_named(home: Path, keys: str, says: str) -> None:
    assert says in problem(home, keys)


def test_nobody_may_call_what_says_nothing_of_it(home: Path) -> None:
    [found] = problems(home, '[[command]]\nname = "a/b"\nrun = ["/bin/cat"]\n')
    assert found.startswith("1: command[0]: nobody may call it")


def test_scopes_are_checked_as_they_are_elsewhere(home: Path) -> None:
    text = '[[command]]\nname = "a/b"\nrun = ["/bin/cat"]\nscopes_any = ["a", "b c"]\n'
    [found] = problems(home, text)
    assert found.startswith("4: command[0].scopes_any[1]: ")


def test_a_name_stands_once(home: Path) -> None:
    one = '[[command]]\nname = "a/b"\nrun = ["/bin/cat"]\npublic = true\n'
    [found] = problems(home, one + one)
    assert found == "6: command[1].name: 'a/b' is taken by line 1"


@pytest.mark.parametrize("key", ["read", "write"])
def test_no_command_reaches_the_home(home: Path, tmp_path: Path, key: str) -> None:
    (home / "file").touch()
    (tmp_path / "link").symlink_to(home)
    for path in (home, home / "file", tmp_path, Path("/"), tmp_path / "link" / "file"):
        assert "no command may reach that" in problem(home, f"{key} = [{json.dumps(str(path))}]")
    assert "no command may reach" in problem(home, f"directory = {json.dumps(str(home))}")


def test_no_program_lies_in_the_home(home: Path) -> None:
    program = home / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    found = problem(home, f"run = [{json.dumps(str(program))}]")
    assert "lies in the node's home, which no command may read" in found


def test_no_command_is_roots_unless_nothing_confines_it(home: Path) -> None:
    assert "root is confined by nothing" in problem(home, 'user = "root"')
    text = (home / "node.toml").read_text()
    assert problems(home, text + 'sandbox = "none"\n') == []
    if os.geteuid() == 0:  # nobody else can become another user
        assert "there is no user 'who'" in problem(home, 'user = "who"')


def test_a_change_needs_no_restart_and_a_line_that_moved_is_none(home: Path) -> None:
    text = '[[command]]\nname = "a/b"\nrun = ["/bin/cat"]\npublic = true\n'
    path = home / "node.toml"

    def read(text: str) -> NodeConfig:
        path.write_text(text)
        return load_config(path)

    before = read(text)
    assert what_changed(before, read(f"\n\n{text}")) == []
    changed = read(text + "timeout_s = 3\n")
    assert what_changed(before, changed) == ["command"]
    assert what_needs_restart(before, changed) == []
