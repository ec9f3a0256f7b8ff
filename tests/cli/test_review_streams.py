"""What a shell may do to the standard streams, arguments and locale of a command."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.kit import PROGRAM, Cli, Result

LATIN_1 = {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}


def shell(script: str, home: Path, **env: str) -> Result:
    """Run *script* with ``alknet`` defined in it; what it prints is buffered, as it usually is."""
    program = " ".join(PROGRAM)
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["/bin/sh", "-c", f'alknet() {{ {program} --home "$HOME_" "$@"; }}\n{script}'],
        env={**usual, "HOME_": str(home), **env},
        capture_output=True,
        check=False,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("alknet id >&-", 0),
        ("alknet nosuch 2>&-", 2),
        ("alknet call node/ping - <&-", 2),
        ("alknet id <&- >&- 2>&-", 0),
    ],
)
def test_a_closed_stream_is_no_bug(made: Cli, command: str, status: int) -> None:
    result = shell(command, made.home)
    assert result.status == status, result.err
    assert "bug" not in result.err


def test_output_is_utf_8_whatever_the_locale(made: Cli) -> None:
    made.ok("token", "create", "Ключ €")
    result = shell("alknet token list --json", made.home, **LATIN_1)
    assert result.json["tokens"][0]["name"] == "Ключ €"
    assert "Ключ €" in shell("alknet token list", made.home, **LATIN_1).out


@pytest.mark.parametrize("arguments", ["call node/ping", "token create", "--home"])
def test_an_argument_that_is_no_text_is_a_usage_error(made: Cli, arguments: str) -> None:
    result = shell(f"alknet {arguments} \"$(printf 'a\\377')\" --json", made.home)
    assert result.status == 2
    assert result.error["message"] == "an argument is not UTF-8 text"


def test_input_that_is_no_text_is_a_usage_error(made: Cli) -> None:
    result = shell("printf '\"\\377\"' | alknet call node/ping - --json", made.home)
    assert result.status == 2
    assert "not JSON" in result.error["message"]
    assert "bug" not in result.err


def test_an_empty_home_is_not_taken_for_the_usual_one(made: Cli) -> None:
    result = shell('alknet --home "" id --json', made.home)
    assert result.status == 2
    assert json.loads(result.err)["error"]["code"] == "USAGE"
