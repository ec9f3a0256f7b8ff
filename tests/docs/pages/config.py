"""docs/reference/config.md: from the tables of ``node.toml`` and the comments of `Limits`."""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from alknet.core import limits as limits_module
from alknet.core.config import NEEDS_RESTART, NodeConfig
from alknet.core.config_command import CommandErrorTable, CommandTable
from alknet.core.config_outbound import OutboundTable
from alknet.core.config_re_export import FederationTable, ReExportTable
from alknet.core.config_tables import (
    LogTable,
    NodeTable,
    PeerTable,
    VaultTable,
    WebCertificateFiles,
    WebCertificateTable,
)
from alknet.core.identity import Peer
from alknet.core.limits import Limits
from tests.docs.pages.markdown import GENERATED, attributes, prose, table

__all__ = ["limit_reasons", "page"]

# What a docstring says by naming a function.
_PEERS = {
    "name": "What people call it: 1 to 63 of `a-z`, `0-9`, `.`, `_`, `-`, a letter or digit first.",
    "fingerprints": "Its keys: node ids in any form, or the fingerprints of certificates.",
    "resources": "What it may use: `type:id` or `type:id:action`.",
    "id": "Its key: a node id in any form, or a ticket, whose addresses count too. This or "
    "`fingerprints` is needed.",
}


def page() -> str:
    """Return the page."""
    restart = ", ".join(f"`{key}`" for key in NEEDS_RESTART)
    return f"""{GENERATED}
# Configuration: node.toml

`node.toml` lies in the node's home. Every key has a default, so the file may be empty or missing.
`alknet config check` names everything that is wrong with it, by line; `alknet config show` prints
what is in force. A node with a mistake in the file does not start, and a running one keeps what it
had.

A running node takes edits over within two seconds, or at once on SIGHUP, without dropping a
session. These need a restart: {restart}.
[How to configure a node](../howto/configure.md) shows examples.

## [node]

{_table(NodeTable, attributes(NodeConfig))}
## [log]

{_table(LogTable, attributes(LogTable))}
## [vault]

{_table(VaultTable, attributes(VaultTable))}
## [[peers]]

One table for each peer, beside those that `alknet peer add` keeps in the store. Peers of the
file are read-only for commands.

{_table(PeerTable, attributes(Peer) | _PEERS)}
## [[outbound]]

A peer to which this node keeps a connection: a worker behind NAT dials its hub, which calls the
worker by it. The connection comes back by itself. `alknet worker join` writes such peers to the
store instead: see [how to join a worker](../howto/join-a-worker.md).

{_table(OutboundTable, attributes(OutboundTable))}
## [[re_export]]

Operations of peers that callers of this node may call through it; by default none.
[federation.md](federation.md) says how such calls pass.

{_table(ReExportTable, attributes(ReExportTable))}
## [federation]

{_table(FederationTable, attributes(FederationTable))}
## [[web_certificates]]

X.509 certificates for clients that cannot do raw keys: browsers, curl, other tools. Without one,
they are shown a self-signed certificate that is made anew when the node starts. File names count
from the directory of `node.toml`.

{_table(WebCertificateTable, attributes(WebCertificateFiles))}
## [[command]]

A program that is an operation; [how to serve programs](../howto/commands.md) shows examples. It
needs to say who may call it: `public`, `internal`, `scopes_all` or `scopes_any`.

{_table(CommandTable, attributes(CommandTable))}
`errors` is a table of tables, `[command.errors.3]` for the exit status 3. A status that is not in
it, or a signal, is `INTERNAL` to the caller.

{_table(CommandErrorTable, attributes(CommandErrorTable))}
## [limits]

Over a limit, the one thing that exceeded it is refused with its code; nobody else notices. Units
are in the names; times are in seconds and may have fractions.

{_limits()}
Some must agree: a keep-alive is not longer than the idle time-out, a frame not larger than the
buffer, and so on; `alknet config check` says so.
"""


def limit_reasons() -> dict[str, str]:
    """Return the comment above each limit, by its name.

    A field without a comment of its own belongs to no reason: that is an error.
    """
    source = inspect.getsource(limits_module)
    lines = source.splitlines()
    reasons = {}
    for name, line in _fields(source):
        comment: list[str] = []
        at = line - 2
        while lines[at].strip().startswith("#"):
            comment.insert(0, lines[at].strip().lstrip("# "))
            at -= 1
        assert comment, f"limit {name} has no comment that says why"
        reasons[name] = prose(" ".join(comment))
    return reasons


def _fields(source: str) -> Iterator[tuple[str, int]]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == Limits.__name__:
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield field.target.id, field.lineno


def _limits() -> str:
    reasons = limit_reasons()
    hints = get_type_hints(Limits, include_extras=True)
    rows = [
        (f"`{field.name}`", _shown(field.default), _range(hints[field.name]), reasons[field.name])
        for field in msgspec.structs.fields(Limits)
    ]
    return table(("key", "default", "range", "what, and why this value"), rows)


def _table(shape: type[msgspec.Struct], texts: Mapping[str, str]) -> str:
    hints = get_type_hints(shape, include_extras=True)
    rows = [
        (
            f"`{field.name}`",
            _type(hints[field.name]),
            "needed" if field.required else _shown(field.default),
            texts[field.name],
        )
        for field in msgspec.structs.fields(shape)
    ]
    return table(("key", "type", "default", "meaning"), rows)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f'`"{value}"`' for value in arguments)
    if origin is Annotated:
        return f"{_type(arguments[0])}, {_range(annotation)}"
    if origin is tuple:
        return f"list of {_type(arguments[0])}s"
    if origin in {Union, types.UnionType}:
        kinds = [_type(argument) for argument in arguments if argument is not type(None)]
        return " or ".join(kinds)
    if origin is dict:
        return "table"
    return {str: "string", bool: "boolean", int: "integer", float: "number"}[annotation]


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if value is msgspec.NODEFAULT:  # a table, made anew for each
        return "`{}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{item}"' for item in value) + "]`"
    if isinstance(value, bool):
        return f"`{value}`".lower()
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{value:,}"


def _range(annotation: Any) -> str:
    assert get_origin(annotation) is Annotated
    (meta,) = get_args(annotation)[1:]
    if meta.pattern is not None:
        return f"`{meta.pattern.strip('^$')}`"
    if meta.max_length is not None:
        return f"{meta.min_length:,} to {meta.max_length:,} characters"
    low = f"{meta.ge:,}" if meta.ge is not None else f"above {meta.gt:,}"
    return f"{low} to {meta.le:,}"
