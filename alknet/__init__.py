"""alknet: a self-hostable networking toolkit in which a service is an ALPN.

The whole public API is listed in ``__all__``; modules below hold the details.

* Run a node: `Node`, with operations made by `operation` and handlers of your own
  (`ProtocolHandler`).
* Talk to one: `connect` for any protocol, `open_session` for calls.
* Say who may: `public`, `scopes`, `any_scope`, `resource`.

Names are imported when first used, so that a program that needs little starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alknet.call.codes import CallError, ErrorCode
    from alknet.call.context import Context
    from alknet.call.operations import (
        CompositionAuthority,
        ErrorSpec,
        OperationError,
        any_scope,
        operation,
        public,
        resource,
        scopes,
    )
    from alknet.call.operators import filter_items, map_items, merge_items
    from alknet.call.overlay import Overlay
    from alknet.call.peers.imports import ImportedOperation, Imports, from_call
    from alknet.call.peers.policies import (
        First,
        LatencyWeighted,
        LeastInFlight,
        RoundRobin,
        Sticky,
    )
    from alknet.call.peers.reference import PeerRef
    from alknet.call.retrying import RetryPolicy
    from alknet.call.secret import Secret
    from alknet.call.session import CallSession
    from alknet.client import connect, open_control_session, open_session
    from alknet.core.config import NodeConfig
    from alknet.core.contracts import (
        CloseCode,
        Connection,
        ConnectionEnded,
        ProtocolHandler,
        Stream,
        StreamReset,
    )
    from alknet.core.endpoint.dial import DialError
    from alknet.core.identity import Identity, NodeId, Peer
    from alknet.core.limits import Limits
    from alknet.core.ticket import Ticket
    from alknet.errors import (
        AlknetError,
        Conflict,
        Denied,
        LocalError,
        NotFound,
        PeerError,
        StoreError,
        Unavailable,
    )
    from alknet.node import Node

__all__ = [
    "AlknetError",
    "CallError",
    "CallSession",
    "CloseCode",
    "CompositionAuthority",
    "Conflict",
    "Connection",
    "ConnectionEnded",
    "Context",
    "Denied",
    "DialError",
    "ErrorCode",
    "ErrorSpec",
    "First",
    "Identity",
    "ImportedOperation",
    "Imports",
    "LatencyWeighted",
    "LeastInFlight",
    "Limits",
    "LocalError",
    "Node",
    "NodeConfig",
    "NodeId",
    "NotFound",
    "OperationError",
    "Overlay",
    "Peer",
    "PeerError",
    "PeerRef",
    "ProtocolHandler",
    "RetryPolicy",
    "RoundRobin",
    "Secret",
    "Sticky",
    "StoreError",
    "Stream",
    "StreamReset",
    "Ticket",
    "Unavailable",
    "any_scope",
    "connect",
    "filter_items",
    "from_call",
    "map_items",
    "merge_items",
    "open_control_session",
    "open_session",
    "operation",
    "public",
    "resource",
    "scopes",
]

_HOMES = {
    "alknet.call.codes": (
        "CallError",
        "ErrorCode",
    ),
    "alknet.call.context": ("Context",),
    "alknet.call.operations": (
        "CompositionAuthority",
        "ErrorSpec",
        "OperationError",
        "any_scope",
        "operation",
        "public",
        "resource",
        "scopes",
    ),
    "alknet.call.operators": (
        "filter_items",
        "map_items",
        "merge_items",
    ),
    "alknet.call.overlay": ("Overlay",),
    "alknet.call.peers.imports": (
        "ImportedOperation",
        "Imports",
        "from_call",
    ),
    "alknet.call.peers.policies": (
        "First",
        "LatencyWeighted",
        "LeastInFlight",
        "RoundRobin",
        "Sticky",
    ),
    "alknet.call.peers.reference": ("PeerRef",),
    "alknet.call.retrying": ("RetryPolicy",),
    "alknet.call.secret": ("Secret",),
    "alknet.call.session": ("CallSession",),
    "alknet.client": (
        "connect",
        "open_control_session",
        "open_session",
    ),
    "alknet.core.config": ("NodeConfig",),
    "alknet.core.contracts": (
        "CloseCode",
        "Connection",
        "ConnectionEnded",
        "ProtocolHandler",
        "Stream",
        "StreamReset",
    ),
    "alknet.core.endpoint.dial": ("DialError",),
    "alknet.core.identity": (
        "Identity",
        "NodeId",
        "Peer",
    ),
    "alknet.core.limits": ("Limits",),
    "alknet.core.ticket": ("Ticket",),
    "alknet.errors": (
        "AlknetError",
        "Conflict",
        "Denied",
        "LocalError",
        "NotFound",
        "PeerError",
        "StoreError",
        "Unavailable",
    ),
    "alknet.node": ("Node",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'alknet' has no attribute {name!r}")
    value: object = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
