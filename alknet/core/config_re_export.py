"""``[[re_export]]`` and ``[federation]``: what a node lets its callers have of its peers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from alknet.core.access import AccessRules
from alknet.core.config_errors import KeyPath
from alknet.core.config_read import Reader
from alknet.core.globs import Glob
from alknet.errors import LocalError

__all__ = [
    "ANY_PEER",
    "NEVER_PASSED_ON",
    "FederationTable",
    "ReExport",
    "ReExportTable",
    "read_federation",
    "read_re_exports",
]

ANY_PEER = "any"
"""Stands in a route for whichever peer offers the operation."""

NEVER_PASSED_ON = frozenset({"services", "node", "vault", "peers"})
"""Namespaces that each node has for itself: what is called there is meant for this one."""


class FederationTable(msgspec.Struct, frozen=True, kw_only=True):
    """``[federation]``: what callers learn of this node's peers.

    Attributes:
        list_peers: ``services/list-peers`` shows each caller the peers whose operations it may call
            through this node, by name, with their health. The owner sees all of them always.
    """

    list_peers: bool = False


class ReExportTable(msgspec.Struct, frozen=True, kw_only=True):
    """``[[re_export]]``: operations of peers that callers of this node may call through it.

    Attributes:
        peers: Patterns of routes: ``w*`` for peers whose names begin so, ``hub/w*`` for peers of
            the peer ``hub``, ``hub/**`` for all that it leads to. ``any``, the route to whichever
            peer offers the operation, has to stand there as it is; only ``*`` includes it. A peer
            whose whole name stands there, first on its route, may offer operations to this node.
        operations: Patterns of names: ``math/*``, ``docker/**``. What each node has for itself
            (``services``, ``node``, ``vault``, ``peers``) is never passed on.
        scopes_all: Scopes that the caller needs here, each of them.
        scopes_any: The caller needs one of these.
        public: Anyone may call them, strangers too. This, or scopes, are needed.
    """

    peers: tuple[str, ...]
    operations: tuple[str, ...]
    scopes_all: tuple[str, ...] = ()
    scopes_any: tuple[str, ...] = ()
    public: bool = False


class ReExport(msgspec.Struct, frozen=True):
    """Operations of peers that callers of this node may call through it.

    Attributes:
        peers: Patterns of routes: a peer's name, or several between slashes (``hub/w*``) where
            the next node passes the call on itself. The route ``any`` has to be named as it
            is, or by a whole ``*``: it may end at any peer that offers the operation.
        operations: Patterns of names. `NEVER_PASSED_ON` is in none of them.
        access: What the caller needs here. The next node has rules of its own, for this one.
    """

    peers: tuple[Glob, ...]
    operations: tuple[Glob, ...]
    access: AccessRules

    def covers(self, route: Sequence[str], operation: str) -> bool:
        """Whether it is about *operation* (no leading slash) at the end of *route*."""
        if operation.partition("/")[0] in NEVER_PASSED_ON:
            return False
        return any(glob.matches(operation) for glob in self.operations) and self.is_about(route)

    def named(self) -> frozenset[str]:
        """Return the peers of this node whose whole names its routes begin with."""
        first = {glob.text.partition("/")[0] for glob in self.peers}
        return frozenset(name for name in first if "*" not in name and name != ANY_PEER)

    def is_about(self, route: Sequence[str]) -> bool:
        """Whether it is about anything at the end of *route*, where alone 'any' may stand."""
        if ANY_PEER in route[:-1]:
            return False
        text = "/".join(route)
        is_any = route[-1] == ANY_PEER
        return any(glob.matches(text) and (not is_any or _names_any(glob)) for glob in self.peers)


def read_federation(reader: Reader, raw: dict[str, Any]) -> FederationTable:
    """Return what ``[federation]`` says, and report what is wrong with it."""
    return FederationTable(**reader.table(raw, FederationTable, ("federation",)))


def read_re_exports(reader: Reader, tables: Sequence[dict[str, Any]]) -> tuple[ReExport, ...]:
    """Return the rules that are right, and report what is wrong with the others."""
    rules = (_read_rule(reader, raw, ("re_export", n)) for n, raw in enumerate(tables))
    return tuple(rule for rule in rules if rule is not None)


def _read_rule(reader: Reader, raw: dict[str, Any], key: KeyPath) -> ReExport | None:
    found = reader.table(raw, ReExportTable, key)
    if not {"peers", "operations"} <= set(found):
        return None
    table = ReExportTable(**found)
    for name in ("peers", "operations"):
        if not getattr(table, name):
            reader.report((*key, name), "is empty, so the rule is about nothing")
    peers = reader.parse_all((*key, "peers"), table.peers, _route)
    operations = reader.parse_all((*key, "operations"), table.operations, _operations)
    access = AccessRules(
        public=table.public, scopes_all=table.scopes_all, scopes_any=table.scopes_any
    )
    if access.is_empty:
        why = "nobody may call it: write scopes_all, scopes_any or public = true"
        reader.report(key, why)
        return None
    try:
        access.validate()
    except LocalError as exc:
        reader.report(key, str(exc))
    return ReExport(peers, operations, access)


def _route(text: str) -> Glob:
    glob = Glob(text)
    if ANY_PEER in text.split("/")[:-1]:
        raise LocalError(f"found {text!r}, but 'any' can only stand at the end of a route")
    return glob


def _operations(text: str) -> Glob:
    glob = Glob(text)
    if text.partition("/")[0] in NEVER_PASSED_ON:
        raise LocalError(
            f"found {text!r}, but {', '.join(sorted(NEVER_PASSED_ON))} are of each node itself "
            "and are never passed on"
        )
    return glob


def _names_any(glob: Glob) -> bool:
    return glob.text.rpartition("/")[2] in {ANY_PEER, "*", "**"}
