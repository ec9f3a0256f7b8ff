"""``node.toml``: what a node listens on, whom it knows and how much it takes.

Every key has a default, so no file is needed. A mistake is never skipped over: a node with a
mistyped limit or peer does not start, and a reload with one keeps what was.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from alknet.core.address import Address
from alknet.core.config_command import CommandConfig, read_commands
from alknet.core.config_errors import ConfigError, ConfigProblem
from alknet.core.config_outbound import read_outbound
from alknet.core.config_re_export import (
    FederationTable,
    ReExport,
    read_federation,
    read_re_exports,
)
from alknet.core.config_read import Reader
from alknet.core.config_sections import (
    read_limits,
    read_node,
    read_peers,
    read_web_certificates,
)
from alknet.core.config_tables import (
    DEFAULT_LISTEN,
    HOMES,
    LogTable,
    TopTable,
    VaultTable,
    WebCertificateFiles,
)
from alknet.core.identity import Peer
from alknet.core.limits import Limits
from alknet.core.outbound import OutboundConfig
from alknet.errors import LocalError

__all__ = [
    "ConfigError",
    "ConfigProblem",
    "LogTable",
    "NodeConfig",
    "VaultTable",
    "WebCertificateFiles",
    "check_config",
    "default_config_text",
    "load_config",
    "what_changed",
    "what_needs_restart",
]

# What is done once, at the start.
NEEDS_RESTART = ("node.listen", "node.store", "node.store_file", "log.format")


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All of ``node.toml``, understood.

    Attributes:
        listen: Where to listen, for UDP and TCP alike; port 0 means any free one.
        advertise: What to put into tickets; empty means the interfaces' addresses.
        default_alpn: Whose handler gets TCP clients that offer no ALPN; None refuses them.
        store: The address of a PostgreSQL database, ``postgresql://user@host/database``, in which
            several machines keep peers, tokens and all else. Without it, they are in ``node.db``
            in the home. No password stands in it: that comes from ``~/.pgpass``, ``PGPASSWORD`` or
            *store_file*.
        store_file: Instead of *store*, a file of mode 0600 that holds the address and may hold
            the password.
        limits: See `Limits`.
        log: Level and format.
        vault: When it is locked.
        peers: Those of the file, read-only.
        outbound: Peers to keep a connection to.
        federation: What callers learn of peers.
        re_exports: Which operations of peers callers may call through this node.
        web_certificates: X.509 certificates by server name.
        commands: Programs that are operations.
    """

    listen: tuple[Address, ...] = (Address.parse(DEFAULT_LISTEN),)
    advertise: tuple[Address, ...] = ()
    default_alpn: str | None = None
    store: str | None = None
    store_file: Path | None = None
    limits: Limits = Limits()
    log: LogTable = LogTable()
    vault: VaultTable = VaultTable()
    peers: tuple[Peer, ...] = ()
    outbound: tuple[OutboundConfig, ...] = ()
    federation: FederationTable = FederationTable()
    re_exports: tuple[ReExport, ...] = ()
    web_certificates: tuple[WebCertificateFiles, ...] = ()
    commands: tuple[CommandConfig, ...] = ()


def load_config(path: Path) -> NodeConfig:
    """Return what the file says; the defaults if there is none.

    Raises:
        ConfigError: Something in it is wrong; it names everything that is.
        LocalError: It cannot be read.
    """
    config, problems = _read(path)
    if problems:
        raise ConfigError(problems)
    return config


def check_config(path: Path) -> list[ConfigProblem]:
    """Return everything that is wrong with the file, in its order; empty if it may be used.

    Raises:
        LocalError: It cannot be read.
    """
    return _read(path)[1]


def what_changed(old: NodeConfig, new: NodeConfig) -> list[str]:
    """Name the keys and tables whose values differ, such as ``limits.idle_timeout_s``."""
    before, after = _flat(old), _flat(new)
    return [key for key, value in before.items() if value != after[key]]


def what_needs_restart(old: NodeConfig, new: NodeConfig) -> list[str]:
    """Name what differs and cannot be taken over by a running node. All else can."""
    return [key for key in what_changed(old, new) if key in NEEDS_RESTART]


def default_config_text() -> str:
    """Return a ``node.toml`` that changes nothing: every key with its default, commented out."""
    limits = "\n".join(
        f"# {key} = {value}" for key, value in msgspec.structs.asdict(Limits()).items()
    )
    return _TEMPLATE.format(listen=DEFAULT_LISTEN, limits=limits)


def _read(path: Path) -> tuple[NodeConfig, list[ConfigProblem]]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return NodeConfig(), []
    except OSError as exc:
        raise LocalError(f"cannot read {path}: {exc.strerror}") from exc
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        return NodeConfig(), [ConfigProblem(str(path), line, "", "the file is not UTF-8")]
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # ValueError: also an integer of 4,301 digits
        return NodeConfig(), [_syntax_problem(path, text, exc)]
    return _understand(path, text, raw)


def _understand(
    path: Path, text: str, raw: dict[str, Any]
) -> tuple[NodeConfig, list[ConfigProblem]]:
    reader = Reader(path, text, HOMES)
    top = TopTable(**reader.table(raw, TopTable, ()))
    node = read_node(reader, top.node, path.parent)
    config = NodeConfig(
        listen=node.listen,
        advertise=node.advertise,
        default_alpn=node.default_alpn,
        store=node.store,
        store_file=node.store_file,
        limits=read_limits(reader, top.limits),
        log=LogTable(**reader.table(top.log, LogTable, ("log",))),
        vault=VaultTable(**reader.table(top.vault, VaultTable, ("vault",))),
        peers=read_peers(reader, top.peers),
        outbound=read_outbound(reader, top.outbound),
        federation=read_federation(reader, top.federation),
        re_exports=read_re_exports(reader, top.re_export),
        web_certificates=read_web_certificates(reader, top.web_certificates, path.parent),
        commands=read_commands(reader, top.command, path.parent),
    )
    return config, reader.problems


def _syntax_problem(path: Path, text: str, exc: Exception) -> ConfigProblem:
    match = _POSITION.search(str(exc))
    line = int(match[1]) if match and match[1] else text.count("\n") + 1
    message = _POSITION.sub("", str(exc)).rstrip()
    return ConfigProblem(str(path), line, "", f"not valid TOML: {message[:1].lower()}{message[1:]}")


def _flat(config: NodeConfig) -> dict[str, object]:
    flat: dict[str, object] = {
        "node.listen": config.listen,
        "node.advertise": config.advertise,
        "node.default_alpn": config.default_alpn,
        "node.store": config.store,
        "node.store_file": config.store_file,
    }
    for table in ("limits", "log", "vault", "federation"):
        values = msgspec.structs.asdict(getattr(config, table))
        flat |= {f"{table}.{key}": value for key, value in values.items()}
    for table in ("peers", "outbound", "web_certificates"):
        flat[table] = getattr(config, table)
    flat["re_export"] = config.re_exports
    # A line that moved is no change of what stands on it.
    flat["command"] = [msgspec.structs.replace(one, where="") for one in config.commands]
    return flat


_POSITION = re.compile(r" ?\(at (?:line (\d+), column \d+|end of document)\)")

_TEMPLATE = """\
# What this node listens on, whom it knows and how much it takes. Everything here is optional:
# what is commented out shows the default. `alknet config check` says what is wrong.

[node]
# listen = ["{listen}"]
# What goes into this node's ticket; empty: the addresses of its interfaces.
# advertise = []
# Who serves TCP clients that offer no ALPN; without it they are refused.
# default_alpn = "http/1.1"
# A PostgreSQL database for peers and tokens, which machines can share; else node.db in the home.
# store = "postgresql://alknet@db.example.org/alknet"
# Instead, a file of mode 0600 with the address, which may then hold a password.
# store_file = "store.url"

[log]
# level = "info"      # debug, info, warning, error
# format = "auto"     # human, json; auto: human on a terminal

[vault]
# lock_after_s = 900  # lock it when it was not used for so long; by default never

# [[peers]]
# name = "hub"
# id = "..."          # its node id, fingerprint or ticket
# scopes = ["echo"]
# resources = []      # "type:id" or "type:id:action"
# addresses = ["hub.example.org:4433"]
# may_offer = false   # whether it may offer operations, to be called, as workers do
# enabled = true

# A peer to keep a connection to, such as the hub of a worker behind NAT.
# [[outbound]]
# name = "hub"
# addresses = []      # before those of the peer

# Which operations of peers callers may call through this node; by default none.
# [[re_export]]
# peers = ["w*", "any"]     # "hub/w*" for peers of the peer "hub"
# operations = ["math/*"]
# scopes_all = ["math"]     # or scopes_any, or public = true

[federation]
# list_peers = false  # whether services/list-peers shows callers what they may call there

# [[web_certificates]]
# server_names = ["hub.example.org"]
# cert_file = "fullchain.pem"
# key_file = "privkey.pem"

# A program that is an operation: JSON on standard input, JSON on standard output.
# [[command]]
# name = "text/echo"
# run = ["/bin/cat"]
# scopes_all = ["text"]

[limits]
{limits}
"""
