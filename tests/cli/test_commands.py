from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from alknet.cli.app import COMMANDS
from alknet.cli.app import cli as root
from alknet.cli.home import config_path
from alknet.cli.options import Command, Duration, Group
from tests.cli.kit import Cli


def every_command() -> Iterator[tuple[str, Command | Group]]:
    context = click.Context(root)
    for name in COMMANDS:
        yield from with_those_below(name, root.get_command(context, name))


def with_those_below(
    name: str, command: click.Command | None
) -> Iterator[tuple[str, Command | Group]]:
    assert isinstance(command, Command | Group)
    yield name, command
    if isinstance(command, Group):
        for below, inner in command.commands.items():
            yield from with_those_below(f"{name} {below}", inner)


EVERY_COMMAND = list(every_command())


@pytest.mark.parametrize(("name", "command"), EVERY_COMMAND)
def test_every_command_teaches_and_has_the_common_options(
    name: str, command: Command | Group
) -> None:
    assert name.endswith(str(command.name))
    assert command.help
    assert 1 <= len(command.examples) <= 5
    assert any(name.rsplit(maxsplit=1)[-1] in line for line in command.examples)
    options = {option for param in command.params for option in param.opts}
    assert {"--home", "--json"} <= options


@pytest.mark.parametrize(("name", "command"), EVERY_COMMAND)
def test_every_help_can_be_shown(cli: Cli, name: str, command: Command | Group) -> None:
    result = cli.ok(*name.split(), "--help")
    assert "Examples:" in result.out
    assert command.examples[0] in result.out


@pytest.mark.parametrize(("name", "command"), EVERY_COMMAND)
def test_what_a_command_does_is_listed_in_whole(
    cli: Cli, name: str, command: Command | Group
) -> None:
    assert "..." not in cli.ok(*name.split(), "--help").out.partition("Commands:")[2]


def test_the_help_names_every_command(cli: Cli) -> None:
    out = cli.ok("--help").out
    for name, (_, text) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", out, re.MULTILINE)


def test_examples_name_options_that_exist() -> None:
    known = {"--home", "--json"}
    for _, command in EVERY_COMMAND:
        known |= {option for param in command.params for option in param.opts}
    for name, command in EVERY_COMMAND:
        for line in command.examples:
            commanded = re.split(r"  +|; | \| ", line)[0]
            if "alknet" in commanded:
                used = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", commanded))
                assert used <= known, (name, line)


def test_help_loads_neither_trio_nor_aioquic() -> None:
    script = (
        "import sys; sys.argv = ['alknet', '--help']; from alknet.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "loaded = {'trio', 'aioquic', 'msgspec', 'cryptography'} & set(sys.modules)\n"
        "sys.exit(', '.join(loaded) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_commands_and_options_are_wrong_usage(cli: Cli) -> None:
    assert "No such command" in cli.fails(2, "fly").err
    assert "No such option" in cli.fails(2, "id", "--fly").err
    assert cli.fails(2, "fly", "--json").error["code"] == "USAGE"


def test_json_and_home_work_before_and_behind_the_command(made: Cli, tmp_path: Path) -> None:
    before = made.ok("--json", "id").json
    assert made.ok("id", "--json").json == before
    assert made.ok("id", "--json", "--home", made.home, home=tmp_path / "other").json == before


def test_home_comes_from_the_environment(made: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALKNET_HOME", str(made.home))
    context = click.Context(root)
    with context:
        assert config_path() == made.home / "node.toml"


def test_the_default_home_is_the_platforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with click.Context(root):
        assert config_path() == tmp_path / "alknet" / "node.toml"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5s", 1.5),
        ("15m", 900),
        ("12h", 43_200),
        ("30d", 2_592_000),
        ("2w", 1_209_600),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "1y", "d", "1 d", "999999999w", "nan", "inf"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Duration().convert(text, None, None)


def test_version(cli: Cli) -> None:
    assert cli.ok("version").out.startswith("alknet ")
    assert set(cli.ok("version", "--json").json) == {"version", "python", "libraries"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_the_program(cli: Cli, shell: str) -> None:
    assert "_ALKNET_COMPLETE" in cli.ok("completion", shell).out


def test_commands_are_completed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from alknet.cli import main; main()"],
        env={"_ALKNET_COMPLETE": "bash_complete", "COMP_WORDS": "alknet pe", "COMP_CWORD": "1"},
        capture_output=True,
        check=False,
    )
    assert done.stdout == b"plain,peer\nplain,peers\n"


def test_no_traceback_reaches_a_user_who_has_no_node(cli: Cli) -> None:
    for arguments in (["id"], ["up"], ["status"], ["peer", "list"], ["call", "node/ping"]):
        result = cli.fails(1, *arguments)
        assert "there is no node" in result.err
        assert "alknet init" in result.err
        assert "Traceback" not in result.err
