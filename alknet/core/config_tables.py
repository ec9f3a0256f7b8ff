"""The tables and keys of ``node.toml``, as they are written: names, types and defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from alknet.core.config_command import CommandTable
from alknet.core.config_outbound import OutboundTable
from alknet.core.config_re_export import FederationTable, ReExportTable
from alknet.core.limits import Limits

__all__ = [
    "HOMES",
    "LogTable",
    "NodeTable",
    "PeerTable",
    "TopTable",
    "VaultTable",
    "WebCertificateFiles",
    "WebCertificateTable",
]

# The IANA ephemeral and registered ranges leave it free; one wildcard serves IPv6 and IPv4.
DEFAULT_LISTEN = "[::]:4433"
# A month: what is longer means never.
MAX_LOCK_AFTER_S = 2_592_000


class NodeTable(msgspec.Struct, frozen=True, kw_only=True):
    """``[node]``: text is parsed, and explained, in `alknet.core.config.NodeConfig`."""

    listen: tuple[str, ...] = (DEFAULT_LISTEN,)
    advertise: tuple[str, ...] = ()
    default_alpn: str | None = None
    store: str | None = None
    store_file: str | None = None


class LogTable(msgspec.Struct, frozen=True, kw_only=True):
    """``[log]``: how much is logged, and whether for people or for programs.

    Attributes:
        level: The least level that is shown.
        format: ``auto`` is ``human`` on a terminal and ``json`` elsewhere.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "human", "json"] = "auto"


class VaultTable(msgspec.Struct, frozen=True, kw_only=True):
    """``[vault]``: when the running node forgets the vault's keys.

    Attributes:
        lock_after_s: Lock the vault when nobody used it for so long; its identity stays with the
            node. By default never: where a key file lies beside the vault a lock protects little,
            and whatever needs a secret would wait for a person.
    """

    lock_after_s: Annotated[float, Meta(ge=1, le=MAX_LOCK_AFTER_S)] | None = None


class PeerTable(msgspec.Struct, frozen=True, kw_only=True):
    """``[[peers]]``: *id* is a node id in any form, or a ticket, whose addresses count too."""

    name: str
    id: str | None = None
    fingerprints: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    display_name: str = ""
    addresses: tuple[str, ...] = ()
    may_offer: bool = False
    enabled: bool = True


class WebCertificateTable(msgspec.Struct, frozen=True, kw_only=True):
    """``[[web_certificates]]``: file names count from the directory of ``node.toml``."""

    server_names: tuple[str, ...]
    cert_file: str
    key_file: str


class WebCertificateFiles(msgspec.Struct, frozen=True):
    """An X.509 certificate for clients that cannot do raw keys.

    Attributes:
        server_names: The names (SNI) for which it is shown, lower case; ``*.`` may begin one.
        cert_file: PEM, the leaf first, then its issuers.
        key_file: PEM, the leaf's private key.
    """

    server_names: tuple[str, ...]
    cert_file: Path
    key_file: Path


class TopTable(msgspec.Struct, frozen=True, kw_only=True):
    """The file as a whole."""

    node: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    log: dict[str, Any] = {}
    vault: dict[str, Any] = {}
    federation: dict[str, Any] = {}
    peers: list[dict[str, Any]] = []
    outbound: list[dict[str, Any]] = []
    re_export: list[dict[str, Any]] = []
    web_certificates: list[dict[str, Any]] = []
    command: list[dict[str, Any]] = []


_SHAPES: dict[str, type[msgspec.Struct]] = {
    "[[command]]": CommandTable,
    "[[web_certificates]]": WebCertificateTable,
    "[[re_export]]": ReExportTable,
    "[[outbound]]": OutboundTable,
    "[[peers]]": PeerTable,
    "[federation]": FederationTable,
    "[vault]": VaultTable,
    "[log]": LogTable,
    "[limits]": Limits,
    "[node]": NodeTable,
}
HOMES = {name: table for table, shape in _SHAPES.items() for name in shape.__struct_fields__}
"""Which table each key belongs to."""
