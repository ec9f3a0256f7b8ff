"""What is in a node's home, for commands that work with or without a running node."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from alknet.cli.failures import CommandError
from alknet.cli.names import did_you_mean
from alknet.cli.options import the_home
from alknet.core.home import CONFIG_FILE, NODE_FILES

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from alknet.core.config import NodeConfig
    from alknet.core.contracts import IdentityProvider
    from alknet.core.identity import Peer
    from alknet.stores.identities import StoredIdentities

__all__ = [
    "config_path",
    "key_if_any",
    "load_home_config",
    "need_node",
    "node_key",
    "open_store",
    "peer_of",
    "read_store",
]

T = TypeVar("T")


def config_path() -> Path:
    """Return where the configuration is, or would be."""
    return the_home() / CONFIG_FILE


def load_home_config() -> NodeConfig:
    """Return the configuration. Raises ConfigError if it cannot be used."""
    from alknet.core.config import load_config

    return load_config(config_path())


def need_node() -> Path:
    """Return the home, or say that there is no node in it yet."""
    home = the_home()
    if not _has_node(home):
        raise CommandError(
            "NOT_FOUND",
            f"there is no node in {home}",
            hint="make one with 'alknet init', or name its home with --home",
        )
    return home


def node_key() -> Ed25519PrivateKey:
    """Return the node's key from its vault, asking for a passphrase if nothing else opens it."""
    from alknet.cli.unlocking import open_vault
    from alknet.vault.homevault import has_vault, home_identity

    home = need_node()
    if not has_vault(home):
        return home_identity(home)
    vault = open_vault(None)
    try:
        return vault.identity()
    finally:
        vault.lock()


def key_if_any() -> Ed25519PrivateKey | None:
    """Return the node's key, or None where there is no node: then we call as a stranger."""
    return node_key() if _has_node(the_home()) else None


@asynccontextmanager
async def open_store() -> AsyncGenerator[StoredIdentities]:
    """Open the peers and tokens of the home, those of ``node.toml`` included."""
    from alknet.stores.home import open_home_identities

    home = the_home()
    if not home.is_dir():
        need_node()  # says what to do
    async with open_home_identities(home, load_home_config()) as identities:
        yield identities


def read_store(read: Callable[[StoredIdentities], T]) -> T:
    """Return what *read* finds among the peers and tokens of the home."""
    from alknet.cli.running import run

    async def opened() -> T:
        async with open_store() as identities:
            return read(identities)

    return run(opened)


def peer_of(identities: IdentityProvider, name: str) -> Peer:
    """Return the peer of that name; ``@`` before it does not matter."""
    found = identities.peer(name.removeprefix("@"))
    if found is None:
        name = name.removeprefix("@")
        near = did_you_mean(name, (one.name for one in identities.peers()))
        how = "'alknet peer list' lists them, 'alknet peer add NAME TICKET' adds one"
        raise CommandError(
            "NOT_FOUND", f"no peer named {name!r}", hint=f"{near} {how}" if near else how
        )
    return found


def _has_node(home: Path) -> bool:
    return any((home / name).exists() for name in NODE_FILES)
