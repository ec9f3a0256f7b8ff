"""What is wrong with a configuration that can be read: what only a node sees, and its peers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from alknet.cli.names import did_you_mean
from alknet.commands.operations import command_operations
from alknet.commands.runner import CommandRunner
from alknet.core.config import ConfigProblem, NodeConfig
from alknet.core.config_command import CommandConfig
from alknet.core.config_errors import KeyPath, key_text
from alknet.core.config_lines import key_lines, line_of
from alknet.core.home import CONFIG_FILE
from alknet.core.nodeid import NodeId
from alknet.core.tcp.webfiles import load_web_certificates
from alknet.errors import LocalError
from alknet.node import Node
from alknet.stores.home import HomeStore, check_secrecy, open_home_identities
from alknet.stores.identities import StoredIdentities
from alknet.stores.memory import MemoryIdentityStore
from alknet.stores.outbound import StoredOutbound
from alknet.vault.homevault import has_node, home_public_key

__all__ = ["find_doubts", "find_obstacles"]


def find_obstacles(path: Path, config: NodeConfig) -> list[ConfigProblem]:
    """Return everything in *config* that keeps a node from starting with it; opens no store.

    Each certificate and each command is tried by itself, then the node without them, so that one
    mistake does not hide the others.

    Args:
        path: What *config* was read from; the file alone shows no problem.
    """
    found = _Problems(path)
    for index, files in enumerate(config.web_certificates):
        found.attempt(("web_certificates", index), partial(load_web_certificates, [files]))
    bare = msgspec.structs.replace(config, web_certificates=(), commands=(), default_alpn=None)
    node, runner = Node(config=bare), CommandRunner(lambda: config.limits.commands)
    for index, command in enumerate(config.commands):
        found.attempt(
            ("command", index),
            partial(_serve, node, command, runner),
            said=f"{command.where}: ",
        )
    served = msgspec.structs.replace(bare, default_alpn=config.default_alpn)
    key = ("node", "default_alpn")
    found.attempt(key, lambda: Node(config=served), said="node.default_alpn: ")
    if config.store_file is not None:
        found.attempt(("node", "store_file"), partial(check_secrecy, config.store_file))
    if not found.problems:  # what is good by itself may not go together
        found.attempt((), lambda: Node(config=config))
    return sorted(found.problems, key=lambda problem: problem.line)


def _serve(node: Node, command: CommandConfig, runner: CommandRunner) -> None:
    node.registry.set_commands(command_operations([command], runner))


async def find_doubts(home: Path, config: NodeConfig) -> list[ConfigProblem]:
    """Return what does not keep a node from running, but cannot work: peers that it cannot dial.

    The store of *home* is read, and not made if there is none.

    Raises:
        AlknetError: The store cannot be read.
    """
    if not config.outbound or not has_node(home):
        return []
    place = HomeStore(home, config)
    if place.path is not None and not place.path.exists() and not place.needs_migration:
        return _undialled(home, config, MemoryIdentityStore(config.peers))
    async with open_home_identities(home, config) as identities:
        return _undialled(home, config, identities)


def _undialled(home: Path, config: NodeConfig, identities: StoredIdentities) -> list[ConfigProblem]:
    found = _Problems(home / CONFIG_FILE)
    outbound = StoredOutbound(identities, NodeId(home_public_key(home)), config.outbound)
    targets = {target.name: target for target in outbound.targets()}
    for index, one in enumerate(config.outbound):
        if problem := targets[one.name].problem:
            hint = _what_to_do(one.name, identities)
            found.add(("outbound", index, "name"), f"{problem}: nothing is dialled", hint)
    return found.problems


def _what_to_do(name: str, identities: StoredIdentities) -> str:
    peer = identities.peer(name)
    if peer is None:
        known = did_you_mean(name, (one.name for one in identities.peers()))
        return known or f"'alknet peer add {name} TICKET' adds it, and so does [[peers]]"
    if not peer.enabled:
        return "set enabled in [[peers]]" if peer.read_only else f"'alknet peer enable {name}'"
    if not any(text.startswith("ed25519:") for text in peer.fingerprints):
        return f"'alknet peer set {name} --key ID' gives it one"
    if peer.addresses:
        return "remove it"  # it is the node itself
    return 'name one in addresses, as "host:4433"'


class _Problems:
    """What is wrong with one file, which is valid TOML."""

    def __init__(self, path: Path) -> None:
        self.problems: list[ConfigProblem] = []
        self._path = path
        self._lines = key_lines(path.read_text()) if path.exists() else {}

    def attempt(self, key: KeyPath, work: Callable[[], object], *, said: str = "") -> None:
        """Do *work*; if it fails, that is a problem of *key*, but for *said* at its beginning."""
        try:
            work()
        except LocalError as exc:
            self.add(key, str(exc).removeprefix(said))

    def add(self, key: KeyPath, message: str, hint: str = "") -> None:
        line = line_of(self._lines, key)
        problem = ConfigProblem(str(self._path), line, key_text(key), message, hint)
        self.problems.append(problem)
