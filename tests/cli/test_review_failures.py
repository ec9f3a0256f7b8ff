"""What is said of errors: hints that fit, and each problem on a line of its own."""

from __future__ import annotations

import pytest

from alknet.call.codes import CallError, ErrorCode
from alknet.cli.failures import explain, report
from alknet.core.config import ConfigError, ConfigProblem
from alknet.errors import Conflict, Denied, NotFound
from tests.cli.kit import Cli, RunningNode

TWO = ConfigError(
    [
        ConfigProblem("node.toml", 2, "limits.foo", "unknown"),
        ConfigProblem("node.toml", 3, "b", "c"),
    ]
)


@pytest.mark.parametrize("local", [NotFound("no peer"), Denied("THE KEY HAS CHANGED")])
def test_hints_about_the_other_node_come_only_with_its_own_errors(local: Exception) -> None:
    assert explain(local).hint == ""
    assert explain(CallError(ErrorCode.NOT_FOUND, "x")).hint
    assert explain(CallError(ErrorCode.FORBIDDEN, "x")).hint


def test_each_problem_of_the_configuration_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(TWO, []) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: CONFIG: 2 problems in node.toml",
        "  node.toml:2: limits.foo: unknown",
        "  node.toml:3: b: c",
    ]
    assert explain(TWO).details["problems"] == [
        "node.toml:2: limits.foo: unknown",
        "node.toml:3: b: c",
    ]


def test_a_peer_cannot_add_lines_to_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    report(Conflict("no\nhint: run rm"), [])
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_refused_key_is_told_once(node: RunningNode, cli: Cli) -> None:
    port = node.ticket.rpartition(":")[2]
    wrong = f"alknet://{'y' * 52}@127.0.0.1:{port}"
    result = cli.fails(4, "call", wrong, "node/ping", "--transport", "quic", "--json")
    assert len(result.err.splitlines()) == 1
