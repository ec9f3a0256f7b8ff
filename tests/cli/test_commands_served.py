"""Programs of node.toml, called as operations of a running node by the command line."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.kit import Cli, running_node, wait_until
from tests.commands.kit import Place, open_place

CONFIG = """
[[command]]
name = "text/count"
title = "Count the words of a text"
run = ["{count}"]
scopes_all = ["text"]
output_schema = {{ type = "integer" }}
errors = {{ 3 = {{ code = "NO_WORDS", message = "the text is empty" }} }}

[command.input_schema]
type = "object"
properties = {{ text = {{ type = "string" }} }}
required = ["text"]

[[command]]
name = "text/lines"
run = ["/bin/sh", "-c", "echo 1; echo 2"]
op_type = "subscription"
public = true
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with open_place(tmp_path / "other") as place:
        yield place


@pytest.fixture
def served(made: Cli, place: Place) -> Cli:
    count = place.script("n=$(wc -w); [ $n -gt 1 ] || exit 3; echo $n")
    (made.home / "node.toml").write_text(CONFIG.format(count=count))
    return made


def test_a_command_is_an_operation_with_its_schema(served: Cli) -> None:
    with running_node(served.home):
        assert served.ok("call", "text/count", '{"text": "a b c"}').json == 3
        assert served.ok("call", "text/lines", "--json").out.split() == ["1", "2"]
        assert "Count the words of a text" in served.ok("ops").out
        shown = served.ok("ops", "text/count", "--json").json
        assert shown["input_schema"]["required"] == ["text"]
        assert shown["output_schema"] == {"type": "integer"}
        assert shown["provenance"] == "command"
        assert [error["code"] for error in shown["error_schemas"]] == ["NO_WORDS"]


def test_what_fails_fails_with_its_code(served: Cli, tmp_path: Path) -> None:
    with running_node(served.home) as running:
        refused = served.fails(1, "call", "text/count", '{"text": 1}', "--json")
        assert refused.error["code"] == "INVALID_INPUT"
        declared = served.fails(1, "call", "text/count", '{"text": ""}', "--json")
        assert declared.error["code"] == "NO_WORDS"
        assert "the text is empty" in declared.error["message"]
        stranger = tmp_path / "stranger"
        denied = served.fails(
            3, "call", running.ticket, "text/count", "{}", "--json", home=stranger
        )
        assert denied.error["code"] == "FORBIDDEN"
        assert served.ok("call", running.ticket, "text/lines", home=stranger).out == "1\n2\n"


def test_an_edit_changes_the_operations_of_a_running_node(served: Cli) -> None:
    path = served.home / "node.toml"
    with running_node(served.home):

        def names() -> list[str]:
            listed = served.ok("call", "services/list", '{"prefix": "text/"}').json
            return [one["name"] for one in listed["operations"]]

        assert names() == ["text/count", "text/lines"]
        path.write_text(path.read_text().replace("text/lines", "text/numbers"))
        wait_until(lambda: names() == ["text/count", "text/numbers"])
        served.fails(1, "call", "text/lines")
        path.write_text("[[command]]\n")  # a mistake changes nothing
        served.fails(1, "config", "check")
        assert names() == ["text/count", "text/numbers"]


def test_a_node_says_at_its_start_what_nothing_confines(served: Cli) -> None:
    path = served.home / "node.toml"
    path.write_text(path.read_text() + 'sandbox = "none"\n')
    assert served.ok("config", "check").err == ""
    with running_node(served.home) as running:
        running.process.signal(signal.SIGTERM)
        said = running.process.end().err
    assert "command.unconfined" in said
    assert "text/lines" in said


def test_the_check_names_what_only_a_node_sees(made: Cli) -> None:
    command = '[[command]]\nname = "{}"\nrun = ["/bin/cat"]\npublic = true\n'
    path = made.home / "node.toml"
    for name, says in (
        ("plain", "a name is two or more segments"),
        ("node/own", "the namespace is reserved"),
        ("echo/unary", "an operation of this name is there already"),
    ):
        path.write_text(command.format(name))
        failed = made.fails(1, "config", "check", "--json")
        [problem] = failed.json["problems"]
        assert problem["key"] == "command[0]"
        assert name in problem["message"]
        assert says in problem["message"]
        doctor = made.fails(1, "doctor")
        assert re.search(rf"fail  config .*{says}", doctor.out)
    path.write_text(command.format("node/own"))
    assert f"{path}:1: command[0]: command 'node/own'" in made.fails(1, "config", "check").out


def test_the_configuration_is_shown_as_it_can_be_written(served: Cli) -> None:
    path = served.home / "node.toml"
    before = served.ok("config", "show", "--json").json
    path.write_text(served.ok("config", "show").out)
    assert served.ok("config", "show", "--json").json == before
    assert before["command"][0]["errors"]["3"]["code"] == "NO_WORDS"


def test_the_doctor_says_what_confines_them(served: Cli) -> None:
    def found() -> dict[str, str]:
        checks = json.loads(served("doctor", "--json").out)["checks"]
        return next(one for one in checks if one["check"] == "commands")

    assert found()["level"] == "ok"
    path = served.home / "node.toml"
    path.write_text(path.read_text() + 'sandbox = "none"\n')
    assert found()["level"] == "warn"
    assert "nothing confines text/lines" in found()["message"]
