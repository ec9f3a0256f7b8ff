"""``alknet config``: what ``node.toml`` says, and whether it may."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alknet.cli.failures import CommandError
from alknet.cli.options import Group, is_json
from alknet.cli.output import emit, note, say
from alknet.cli.table import printable

if TYPE_CHECKING:
    from alknet.core.config import ConfigProblem, NodeConfig

__all__ = ["config"]


@click.group(
    cls=Group,
    examples=["alknet config check", "alknet config show", "$EDITOR $(alknet config path)"],
)
def config() -> None:
    """Check and show the configuration.

    Every key has a default, so node.toml may be missing. A running node takes edits over within a
    second or two; 'config check' also says which changes need a restart.
    """


@config.command(examples=["alknet config check", "alknet config check --json"])
def check() -> None:
    """Say everything that is wrong with node.toml, by line; exits with 1 if anything is.

    What is wrong keeps a node from starting, and a running node keeps what it had. A warning is
    of what a node runs with, and which will not work: a peer to dial that nobody knows.
    """
    from alknet.cli.config_checks import find_obstacles
    from alknet.cli.home import config_path
    from alknet.core.config import check_config, load_config

    path = config_path()
    problems = check_config(path)
    doubts: list[ConfigProblem] = []
    if not problems:
        found = load_config(path)
        problems = find_obstacles(path, found)
        doubts = _doubts(found)
    if is_json():
        shown = {"problems": list(map(_as_json, problems)), "warnings": list(map(_as_json, doubts))}
        emit({"file": str(path), "exists": path.exists(), **shown})
    else:
        _show(problems, doubts)
    if problems:
        raise CommandError(
            "CONFIG",
            f"{_count(problems, 'problem')} in {path}",
            hint="a running node keeps what it had until all are mended",
        )
    if not is_json():
        _show_good(path, doubts)


@config.command(examples=["alknet config show", "alknet config show --json | jq .limits"])
def show() -> None:
    """Print the configuration in force for a node that starts now, defaults included."""
    from alknet.cli.home import load_home_config

    values = as_values(load_home_config())
    if is_json():
        emit(values)
    else:
        say(as_toml(values))


@config.command(examples=["$EDITOR $(alknet config path)"])
def path() -> None:
    """Print where node.toml is, or would be."""
    from alknet.cli.home import config_path

    if is_json():
        emit({"path": str(config_path())})
    else:
        say(str(config_path()))


def _doubts(found: NodeConfig) -> list[ConfigProblem]:
    from alknet.cli.config_checks import find_doubts
    from alknet.cli.options import the_home
    from alknet.cli.running import run
    from alknet.errors import AlknetError

    async def find() -> list[ConfigProblem]:
        try:
            return await find_doubts(the_home(), found)
        except AlknetError as exc:  # the file may be good all the same
            note(f"Not checked whether the peers of [[outbound]] are known: {exc}")
            return []

    return run(find)


def _show(problems: Sequence[ConfigProblem], doubts: Sequence[ConfigProblem]) -> None:
    for problem in problems:
        say(printable(str(problem)))
    for doubt in doubts:
        say(printable(f"warning: {doubt}"))


def _show_good(path: Path, doubts: Sequence[ConfigProblem]) -> None:
    from alknet.core.config import NEEDS_RESTART

    but = f", but for {_count(doubts, 'warning')}" if doubts else ""
    exists = path.exists()
    say(f"{path} is good{but}" if exists else f"{path} does not exist: the defaults apply")
    say(f"A change of these needs a restart: {', '.join(NEEDS_RESTART)}.")


def _count(found: Sequence[object], what: str) -> str:
    return f"{len(found)} {what}{'' if len(found) == 1 else 's'}"


def _as_json(problem: ConfigProblem) -> dict[str, object]:
    return {
        "line": problem.line,
        "key": problem.key,
        "message": problem.message,
        "hint": problem.hint,
    }


def as_values(config: NodeConfig) -> dict[str, Any]:
    """Return *config* in the shape of the file."""
    import msgspec

    return {
        "node": {
            "listen": list(map(str, config.listen)),
            "advertise": list(map(str, config.advertise)),
            "default_alpn": config.default_alpn,
            "store": config.store,
            "store_file": None if config.store_file is None else str(config.store_file),
        },
        "log": msgspec.to_builtins(config.log),
        "vault": msgspec.to_builtins(config.vault),
        "federation": msgspec.to_builtins(config.federation),
        "limits": msgspec.to_builtins(config.limits),
        "peers": [
            {
                "name": peer.name,
                "fingerprints": list(peer.fingerprints),
                "scopes": list(peer.scopes),
                "resources": list(map(str, peer.resources)),
                "display_name": peer.display_name,
                "addresses": list(peer.addresses),
                "enabled": peer.enabled,
            }
            for peer in config.peers
        ],
        "outbound": [
            {"name": one.name, "addresses": list(map(str, one.addresses))}
            for one in config.outbound
        ],
        "re_export": [
            {
                "peers": [glob.text for glob in rule.peers],
                "operations": [glob.text for glob in rule.operations],
                "scopes_all": list(rule.access.scopes_all),
                "scopes_any": list(rule.access.scopes_any),
                "public": rule.access.public,
            }
            for rule in config.re_exports
        ],
        "web_certificates": [
            {
                "server_names": list(files.server_names),
                "cert_file": str(files.cert_file),
                "key_file": str(files.key_file),
            }
            for files in config.web_certificates
        ],
        "command": [msgspec.to_builtins(command.table) for command in config.commands],
    }


def as_toml(values: Mapping[str, Any]) -> str:
    """Write tables of plain values as TOML; None, which it cannot say, is left out."""
    blocks = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            blocks.append(_table(f"[{name}]", value))
        else:
            blocks += [_table(f"[[{name}]]", row) for row in value]
    return "\n\n".join(blocks)


def _table(header: str, values: Mapping[str, Any]) -> str:
    lines = [f"{key} = {_value(value)}" for key, value in values.items() if value is not None]
    return "\n".join([header, *lines])


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        inner = (f"{_value(name)} = {_value(one)}" for name, one in value.items())
        return "{ " + ", ".join(inner) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    # JSON's strings, numbers and booleans are TOML's too, but for DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
