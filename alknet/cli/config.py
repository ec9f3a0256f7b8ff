"""``alknet config``: what ``node.toml`` says, and whether it may."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from alknet.cli.failures import CommandError
from alknet.cli.options import Group, is_json
from alknet.cli.output import emit, say

if TYPE_CHECKING:
    from alknet.core.config import NodeConfig

__all__ = ["check_wiring", "config"]


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
    """Say everything that is wrong with node.toml, by line; exits with 1 if anything is."""
    from alknet.cli.home import config_path
    from alknet.core.config import NEEDS_RESTART, check_config, load_config

    path = config_path()
    problems = check_config(path)
    if not problems:
        check_wiring(load_config(path))
    if is_json():
        found = [
            {"line": p.line, "key": p.key, "message": p.message, "hint": p.hint} for p in problems
        ]
        emit({"file": str(path), "exists": path.exists(), "problems": found})
    if problems and not is_json():
        for problem in problems:
            say(str(problem))
    if problems:
        raise CommandError(
            "CONFIG",
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {path}",
            hint="a running node keeps what it had until all are mended",
        )
    if is_json():
        return
    say(f"{path} is good" if path.exists() else f"{path} does not exist: the defaults apply")
    say(f"A change of these needs a restart: {', '.join(NEEDS_RESTART)}.")


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


def check_wiring(config: NodeConfig) -> None:
    """Make a node of it, which does not run: that loads certificates and looks for handlers.

    Raises:
        CommandError: It says what keeps a node from being made.
    """
    from alknet.errors import LocalError
    from alknet.node import Node

    try:
        Node(config=config)
    except LocalError as exc:
        raise CommandError("CONFIG", str(exc)) from exc


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
