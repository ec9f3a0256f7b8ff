"""What the tables of ``node.toml`` mean: addresses, peers, certificates, limits that agree."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from alknet.core.address import Address
from alknet.core.config_errors import KeyPath
from alknet.core.config_read import Reader
from alknet.core.config_tables import (
    NodeTable,
    PeerTable,
    WebCertificateFiles,
    WebCertificateTable,
)
from alknet.core.identity import (
    Grant,
    NodeId,
    Peer,
    check_display_name,
    check_peer_name,
    check_scope,
    parse_fingerprint,
)
from alknet.core.limits import Limits
from alknet.core.ticket import SCHEME, Ticket
from alknet.errors import LocalError

__all__ = ["NodeSection", "read_limits", "read_node", "read_peers", "read_web_certificates"]


class NodeSection(msgspec.Struct, frozen=True):
    """``[node]``, understood; see `alknet.core.config.NodeConfig`."""

    listen: tuple[Address, ...]
    advertise: tuple[Address, ...]
    default_alpn: str | None
    store: str | None
    store_file: Path | None


def read_node(reader: Reader, raw: dict[str, Any], directory: Path) -> NodeSection:
    """Read ``[node]``; a relative file name counts from *directory*."""
    table = NodeTable(**reader.table(raw, NodeTable, ("node",)))
    listen = reader.parse_all(("node", "listen"), table.listen, _listen_address)
    if not table.listen:
        reader.report(("node", "listen"), "found an empty list, expected at least one address")
    for address in {a for a in listen if a.port and listen.count(a) > 1}:
        reader.report(("node", "listen"), f"the address {str(address)!r} occurs twice")
    advertise = reader.parse_all(("node", "advertise"), table.advertise, _advertised_address)
    alpn = table.default_alpn
    if alpn is not None:
        reader.parse(("node", "default_alpn"), alpn, _check_alpn)
    if table.store is not None:
        reader.parse(("node", "store"), table.store, _check_store)
    file = None
    if table.store_file is not None:
        file = _existing_file(reader, ("node", "store_file"), directory / table.store_file)
        if table.store is not None:
            reader.report(("node", "store_file"), "found beside 'store', expected one of the two")
    return NodeSection(listen, advertise, alpn, table.store, file)


def read_limits(reader: Reader, raw: dict[str, Any]) -> Limits:
    """Read ``[limits]``, and check that those that depend on one another agree."""
    limits = Limits(**reader.table(raw, Limits, ("limits",)))
    for lower, upper in _ORDERED_LIMITS:
        low, high = getattr(limits, lower), getattr(limits, upper)
        if low > high:
            name = lower if lower in raw else upper
            reader.report(
                ("limits", name),
                f"found {lower} = {low:g} and {upper} = {high:g}, expected "
                f"{lower} not to exceed {upper}",
            )
    return limits


def read_peers(reader: Reader, rows: list[dict[str, Any]]) -> tuple[Peer, ...]:
    """Read all ``[[peers]]``; each name and each key may occur in one of them."""
    peers = []
    names, keys = _Unique(reader, "name"), _Unique(reader, "key")
    for index, raw in enumerate(rows):
        key: KeyPath = ("peers", index)
        peer = _read_peer(reader, raw, key)
        if peer is not None:
            names.add((*key, "name"), [peer.name])
            keys.add((*key, "fingerprints" if "fingerprints" in raw else "id"), peer.fingerprints)
            peers.append(peer)
    return tuple(peers)


def read_web_certificates(
    reader: Reader, rows: list[dict[str, Any]], directory: Path
) -> tuple[WebCertificateFiles, ...]:
    """Read all ``[[web_certificates]]``; relative file names count from *directory*."""
    certificates = []
    unique = _Unique(reader, "server name")
    for index, raw in enumerate(rows):
        key: KeyPath = ("web_certificates", index)
        found = reader.table(raw, WebCertificateTable, key)
        if len(found) < len(WebCertificateTable.__struct_fields__):
            continue
        table = WebCertificateTable(**found)
        if not table.server_names:
            reader.report((*key, "server_names"), "found an empty list, expected a name")
        names = reader.parse_all((*key, "server_names"), table.server_names, _server_name)
        unique.add((*key, "server_names"), names)
        files = [
            _existing_file(reader, (*key, name), directory / getattr(table, name))
            for name in ("cert_file", "key_file")
        ]
        certificates.append(WebCertificateFiles(names, *files))
    return tuple(certificates)


class _Unique:
    """Reports what occurs a second time, with the line of the first."""

    def __init__(self, reader: Reader, what: str) -> None:
        self._reader = reader
        self._what = what
        self._seen: dict[str, KeyPath] = {}

    def add(self, key: KeyPath, values: Iterable[str]) -> None:
        for value in values:
            first = self._seen.setdefault(value, key)
            if first != key:
                line = self._reader.line(first)
                self._reader.report(key, f"the {self._what} {value!r} is taken by line {line}")


def _read_peer(reader: Reader, raw: dict[str, Any], key: KeyPath) -> Peer | None:
    found = reader.table(raw, PeerTable, key)
    if not raw.get("id") and not raw.get("fingerprints"):
        reader.report(key, "a peer needs its key: write 'id' or 'fingerprints'")
    if "name" not in found:
        return None
    table = PeerTable(**found)
    reader.parse((*key, "name"), table.name, check_peer_name)
    ticket = None if table.id is None else reader.parse((*key, "id"), table.id, _node)
    fingerprints = reader.parse_all((*key, "fingerprints"), table.fingerprints, parse_fingerprint)
    addresses = reader.parse_all((*key, "addresses"), table.addresses, Address.parse)
    if ticket is not None:
        fingerprints = (ticket.node_id.fingerprint, *fingerprints)
        addresses = (*ticket.addresses, *addresses)
    reader.parse((*key, "display_name"), table.display_name, check_display_name)
    return Peer(
        name=table.name,
        fingerprints=tuple(dict.fromkeys(fingerprints)),
        scopes=reader.parse_all((*key, "scopes"), table.scopes, _scope),
        resources=reader.parse_all((*key, "resources"), table.resources, Grant.parse),
        display_name=table.display_name,
        addresses=tuple(dict.fromkeys(map(str, addresses))),
        may_offer=table.may_offer,
        enabled=table.enabled,
        read_only=True,
    )


def _node(text: str) -> Ticket:
    if text.strip().lower().startswith(SCHEME):
        return Ticket.parse(text)
    return Ticket(NodeId.parse(text))


def _scope(text: str) -> str:
    check_scope(text)
    return text


def _listen_address(text: str) -> Address:
    address = Address.parse(text, allow_any_port=True)
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        raise LocalError(
            f"found {text!r}, expected an IP address and a port, such as '[::]:4433'"
        ) from None
    return address


def _advertised_address(text: str) -> Address:
    address = Address.parse(text)
    if address.is_unspecified:
        raise LocalError(f"found {text!r}, expected an address that others can dial")
    return address


def _check_alpn(text: str) -> None:
    if not 1 <= len(text) <= 255 or not (text.isascii() and text.isprintable()):
        raise LocalError(f"found {text[:80]!r}, expected 1 to 255 printable ASCII characters")


def _check_store(text: str) -> None:
    """Raise LocalError, which does not quote *text*: it may hold a password."""
    try:
        parts = urlsplit(text)
        has_password = parts.password is not None or "password" in parse_qs(parts.query)
    except ValueError:
        parts, has_password = urlsplit(""), False
    if parts.scheme not in {"postgresql", "postgres"}:
        raise LocalError("expected an address such as 'postgresql://user@host/database'")
    if has_password:
        raise LocalError(
            "found a password, which others may read here: put it into ~/.pgpass or PGPASSWORD, "
            "or the whole address into a file of mode 0600, and name that in store_file"
        )


def _server_name(text: str) -> str:
    try:
        host = Address.parse(f"{text.removeprefix('*.')}:1").host
    except LocalError:
        host = ""
    if not host or host.replace(".", "").isdecimal():
        raise LocalError(f"found {text!r}, expected a DNS name, or '*.' and a DNS name")
    return text.lower()


def _existing_file(reader: Reader, key: KeyPath, path: Path) -> Path:
    try:
        if not path.is_file():
            reader.report(key, f"there is no file {str(path)!r}")
    except OSError as exc:
        reader.report(key, f"cannot look for the file {str(path)[:200]!r}: {exc.strerror}")
    return path


_ORDERED_LIMITS = (
    ("keep_alive_s", "idle_timeout_s"),
    ("quic_head_start_s", "dial_timeout_s"),
    ("frame_bytes_unproven", "frame_bytes"),
    ("frame_bytes", "buffered_bytes_per_connection"),
    ("stream_receive_window_bytes", "connection_receive_window_bytes"),
    ("call_timeout_s", "call_timeout_max_s"),
)
