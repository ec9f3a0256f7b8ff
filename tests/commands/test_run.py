"""What a command gets, what it gives, and what its end means to the caller."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from alknet.call.codes import CallError
from alknet.testing.operations import call_operation, collect_items
from tests.commands.kit import Place

Records = pytest.LogCaptureFixture


async def test_input_is_json_on_standard_input_and_output_json_on_standard_output(
    place: Place,
) -> None:
    echo = place.operation(["/bin/cat"])
    value = {"text": "läuft; rm -rf $HOME", "list": [1, None, True]}
    assert await call_operation(echo, value) == value


async def test_no_input_is_an_empty_object(place: Place) -> None:
    assert await call_operation(place.operation(["/bin/cat"])) == {}


async def test_arguments_and_environment_are_those_of_the_configuration_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the node")
    seen = place.operation(
        [place.script('printf \'["%s","%s","%s","%s"]\' "$#" "$1" "$LANG" "$SECRET"'), "$(id)"],
        environment={"LANG": "C.UTF-8"},
    )
    assert await call_operation(seen, {"LANG": "x", "argv": ["y"]}) == ["1", "$(id)", "C.UTF-8", ""]


async def test_it_runs_in_an_empty_directory_of_its_own_that_goes(place: Place) -> None:
    seen = place.operation(
        '[ -z "$(ls -A)" ] || exit 9; echo x > file; mkdir -p a/b; echo "\\"$PWD\\""'
    )
    first, second = [await call_operation(seen) for _ in range(2)]
    assert first != second
    assert not Path(first).exists()
    assert not Path(second).exists()


async def test_only_three_files_are_open(place: Place) -> None:
    body = """
import json, os
found = []
for fd in range(1024):
    try:
        os.fstat(fd)
        found.append(fd)
    except OSError:
        pass
print(json.dumps(found))
"""
    assert await call_operation(place.python(body)) == [0, 1, 2]


async def test_input_is_checked_against_the_schema_before_anything_runs(place: Place) -> None:
    ran = place.operation(
        ["/bin/cat"],
        input_schema={
            "type": "object",
            "properties": {"count": {"type": "integer", "minimum": 1}},
            "required": ["count"],
        },
    )
    assert await call_operation(ran, {"count": 3}) == {"count": 3}
    with pytest.raises(CallError) as caught:
        await call_operation(ran, {"count": "three"})
    assert caught.value.code == "INVALID_INPUT"
    assert caught.value.details == {"path": "/count"}
    assert not place.runner.running


async def test_output_that_the_schema_does_not_admit_is_internal(
    place: Place, caplog: Records
) -> None:
    bad = place.operation('echo \'{"n": "secret"}\'', output_schema={"type": "integer"})
    await _fails_inside(bad, caplog, "not of type")
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("echo nonsense", "not one JSON value"),
        ("echo '{}'; echo '{}'", "not one JSON value"),
        ("true", "is empty"),
        ("head -c 3000 /dev/zero", "longer than 2000 bytes"),
        ("printf '\"\\377\"'", "not one JSON value"),
        ("for i in 1 2 3 4 5 6 7 8; do printf '[[[[[[[[[['; done", "too deep"),
        ("exit 7", "exit status 7"),
        ("kill -SEGV $$", "signal SIGSEGV"),
    ],
)
async def test_what_a_command_must_not_do_is_internal_and_the_log_says_why(
    place: Place, caplog: Records, body: str, why: str
) -> None:
    await _fails_inside(place.operation(body, output_bytes=2000), caplog, why)


async def test_an_exit_status_is_the_error_that_is_declared_for_it(place: Place) -> None:
    errors = {
        "3": {"code": "OUT_OF_INK", "message": "the ink is empty", "retryable": True},
        "4": {"code": "NOT_FOUND", "message": "no such page"},
    }
    for status, code, message in (
        (3, "OUT_OF_INK", "the ink is empty"),
        (4, "NOT_FOUND", "no such page"),
    ):
        failing = place.operation(f"echo '{{}}'; echo why >&2; exit {status}", errors=errors)
        with pytest.raises(CallError) as caught:
            await call_operation(failing)
        assert (caught.value.code, caught.value.message) == (code, message)
        assert caught.value.retryable is (status == 3)
        assert [error.code for error in failing.spec.errors] == ["OUT_OF_INK"]


async def test_standard_error_goes_to_the_log_and_to_nobody_else(
    place: Place, caplog: Records
) -> None:
    caplog.set_level(logging.INFO)
    noisy = place.operation(
        "for i in $(seq 3000); do echo line $i >&2; done; printf 'a\\033[31mb\\n' >&2; echo 1"
    )
    assert await call_operation(noisy) == 1
    [record] = [one for one in caplog.records if one.message == "command.ended"]
    fields: dict[str, Any] = record.__dict__
    assert fields["command"] == "test/command"
    assert fields["stderr"][-1] == "a\N{REPLACEMENT CHARACTER}[31mb"
    assert fields["stderr"][-2] == "line 3000"
    assert len(fields["stderr"]) == 20


async def test_a_program_that_is_gone_is_unavailable(place: Place, caplog: Records) -> None:
    script = place.script("echo 1")
    gone = place.operation([script])
    Path(script).unlink()
    with pytest.raises(CallError) as caught:
        await call_operation(gone)
    assert caught.value.code == "UNAVAILABLE"
    assert script not in str(caught.value)
    assert any(record.__dict__.get("program") == script for record in caplog.records)


async def test_a_script_without_an_interpreter_is_unavailable(place: Place) -> None:
    script = place.script("x", interpreter="/nowhere/interpreter")
    with pytest.raises(CallError, match="UNAVAILABLE"):
        await call_operation(place.operation([script]))


async def test_lines_are_the_items_of_a_subscription(place: Place) -> None:
    lines = place.operation(
        "echo '{\"n\": 1}'; echo; echo '  2 '; printf '\"last\"'", op_type="subscription"
    )
    assert await collect_items(lines) == [{"n": 1}, 2, "last"]


async def test_a_subscription_ends_with_the_error_of_its_exit_status(place: Place) -> None:
    errors = {"5": {"code": "TAPE_TORN", "message": "the tape is torn"}}
    torn = place.operation("echo 1; exit 5", op_type="subscription", errors=errors)
    assert await collect_items(torn, limit=1) == [1]
    with pytest.raises(CallError, match="TAPE_TORN"):
        await collect_items(torn)


@pytest.mark.parametrize(
    "body", ["echo 1; echo x", "printf '1\\n\"'; yes a | head -c 9999 | tr -d '\\n'"]
)
async def test_a_line_that_is_not_json_or_too_long_ends_the_subscription(
    place: Place, body: str
) -> None:
    bad = place.operation(body, op_type="subscription", output_bytes=4000)
    assert await collect_items(bad, limit=1) == [1]
    with pytest.raises(CallError, match="INTERNAL"):
        await collect_items(bad)


async def _fails_inside(operation: Any, caplog: Records, why: str) -> None:
    with pytest.raises(CallError) as caught:
        await call_operation(operation)
    assert caught.value.code == "INTERNAL"
    assert caught.value.correlation_id is not None
    assert caught.value.correlation_id in str([one.__dict__ for one in caplog.records])
    assert why in caplog.text
