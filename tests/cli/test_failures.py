from __future__ import annotations

import json

import click
import pytest
import trio

from alknet.call.codes import CODES, CallError
from alknet.cli.app import cli as root
from alknet.cli.failures import CommandError, Failure, explain, report
from alknet.cli.interrupts import Interrupted
from alknet.core.endpoint.dial import Attempt, DialError
from alknet.errors import Conflict, Denied, LocalError, NotFound, StoreError
from alknet.vault.vaultfile import RolledBack


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (CallError("FORBIDDEN", "no"), "FORBIDDEN", 3),
        (CallError("TIMEOUT", "slow"), "TIMEOUT", 5),
        (CallError("UNAVAILABLE", "gone"), "UNAVAILABLE", 4),
        (CallError("MY_OWN", "no"), "MY_OWN", 1),
        (Denied("no"), "FORBIDDEN", 3),
        (NotFound("no"), "NOT_FOUND", 1),
        (Conflict("no"), "CONFLICT", 1),
        (trio.TooSlowError(), "TIMEOUT", 5),
        (trio.BrokenResourceError("gone"), "UNAVAILABLE", 4),
        (StoreError("disk"), "STORE", 1),
        (LocalError("no"), "FAILED", 1),
        (RolledBack("no"), "ROLLED_BACK", 1),
        (FileNotFoundError(2, "No such file", "x"), "OS", 1),
        (click.UsageError("no"), "USAGE", 2),
        (CommandError("X", "no", status=4), "X", 4),
        (ZeroDivisionError("x"), "INTERNAL", 1),
    ],
)
def test_each_error_has_its_code_and_status(error: Exception, code: str, status: int) -> None:
    failure = explain(error)
    assert (failure.code, failure.status) == (code, status)


def test_the_statuses_are_those_of_the_table_of_codes() -> None:
    for code, info in CODES.items():
        assert explain(CallError(code, "x")).status == info.exit_status


def test_a_failed_dial_names_each_attempt(capsys: pytest.CaptureFixture[str]) -> None:
    attempts = [
        Attempt("quic", "192.0.2.1:1", "no answer"),
        Attempt("tcp", "192.0.2.1:1", "connection refused"),
    ]
    assert report(DialError("node abc", attempts), []) == 4
    err = capsys.readouterr().err
    assert "cannot reach node abc" in err
    assert "quic 192.0.2.1:1: no answer" in err
    assert "tcp  192.0.2.1:1: connection refused" in err
    assert "hint:" in err


def test_with_json_an_error_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    error = CallError("INVALID_INPUT", "no", details={"path": "/a"})
    assert report(error, ["call", "--json"]) == 1
    assert json.loads(capsys.readouterr().err) == {
        "error": {
            "code": "INVALID_INPUT",
            "message": "no (at /a of the input)",
            "retryable": False,
            "details": {"path": "/a"},
        }
    }


def test_json_behind_two_dashes_is_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    report(StoreError("disk"), ["call", "--", "--json"])
    assert capsys.readouterr().err == "error: STORE: disk\n"


def test_an_error_without_a_word_for_users_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    report(LocalError("the port is taken"), [])
    assert capsys.readouterr().err == "error: the port is taken\n"


def test_what_a_command_notes_on_an_error_is_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (CallError("NOT_FOUND", "no"), StoreError("disk")):
        error.add_note("look there")
        report(error, [])
        assert capsys.readouterr().err.endswith("\nhint: look there\n")


def test_groups_are_unwrapped_and_interrupts_win() -> None:
    group = BaseExceptionGroup("", [ValueError(), ExceptionGroup("", [StoreError("x")])])
    assert report(group, []) == 1
    assert report(BaseExceptionGroup("", [StoreError("x"), KeyboardInterrupt()]), []) == 130
    assert report(Interrupted(143), []) == 143
    assert report(click.exceptions.Abort(), []) == 130


def test_tracebacks_are_shown_only_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report(StoreError("disk"), [])
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("ALKNET_DEBUG", "1")
    report(StoreError("disk"), [])
    assert "StoreError: disk" in capsys.readouterr().err


def test_usage_errors_show_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    error = click.UsageError("no", click.Context(root, info_name="alknet"))
    assert report(error, []) == 2
    assert "Usage: alknet" in capsys.readouterr().err


def test_a_peers_text_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    report(CallError("CONFLICT", "\x1b[2Jgone"), [])
    assert "\x1b" not in capsys.readouterr().err


def test_the_json_of_a_failure_holds_hint_and_details() -> None:
    failure = Failure("A", "b", 1, hint="c", details={"d": 1})
    assert failure.as_json() == {"error": {"code": "A", "message": "b", "hint": "c", "d": 1}}
