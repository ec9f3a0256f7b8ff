"""``[[outbound]]`` of ``node.toml``: the peers to which the node keeps a connection."""

from __future__ import annotations

from typing import Any

import msgspec

from alknet.core.address import Address
from alknet.core.config_errors import KeyPath
from alknet.core.config_read import Reader
from alknet.core.identity import check_peer_name
from alknet.core.outbound import OutboundConfig

__all__ = ["OutboundTable", "read_outbound"]


class OutboundTable(msgspec.Struct, frozen=True, kw_only=True):
    """``[[outbound]]``, as it is written.

    Attributes:
        name: The peer, one of `[[peers]]` or of `alknet peer list`, whose key must answer.
        addresses: Where it is, `host:port`, before the addresses of its record.
    """

    name: str
    addresses: tuple[str, ...] = ()


def read_outbound(reader: Reader, rows: list[dict[str, Any]]) -> tuple[OutboundConfig, ...]:
    """Read all ``[[outbound]]``; a name may stand in one of them."""
    found: dict[str, OutboundConfig] = {}
    for index, raw in enumerate(rows):
        key: KeyPath = ("outbound", index)
        values = reader.table(raw, OutboundTable, key)
        if "name" not in values:
            continue
        table = OutboundTable(**values)
        reader.parse((*key, "name"), table.name, check_peer_name)
        if table.name in found:
            reader.report((*key, "name"), f"the name {table.name!r} stands there twice")
        addresses = reader.parse_all((*key, "addresses"), table.addresses, Address.parse)
        found.setdefault(table.name, OutboundConfig(table.name, tuple(dict.fromkeys(addresses))))
    return tuple(found.values())
