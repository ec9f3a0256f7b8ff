"""The operations by which a caller learns what it may call: ``services/list``, ``services/schema``.

All are public and show each caller its own view: what it lacks the scopes for, and what is
internal, is missing. Whether it owns the resources that an operation needs is not looked at.
``services/watch`` says when the view has another version, so that who imported it imports it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import trio
from msgspec import UNSET, UnsetType

from alknet.call.changes import Changes, wait_any
from alknet.call.context import Context
from alknet.call.operations import Operation, operation, public
from alknet.call.overlay import layer_of, session_entries, session_entry
from alknet.call.registry import Entry, Registry
from alknet.call.schema import JsonSchema
from alknet.call.session import CallSession
from alknet.call.views import OperationViews
from alknet.call.visibility import may_call, no_such_operation, operation_name
from alknet.core.access import AccessRules
from alknet.core.identity import Identity

__all__ = [
    "DescribeAtPeer",
    "DescribedError",
    "DescribedOperation",
    "ListFilter",
    "OperationList",
    "OperationsVersion",
    "WATCH_INTERVAL_S",
    "describe_fully",
    "discovery_operations",
]

WATCH_INTERVAL_S = 0.2
"""A watcher hears of changes no more often: a flood of them costs five messages a second, and the
first is told at once."""


class ListFilter(msgspec.Struct, frozen=True):
    """Which operations to list, and how fully.

    Attributes:
        prefix: Names that begin so, with or without a leading slash: ``math/``, ``math/add``.
        with_schemas: Give each as ``services/schema`` does: an import in one round trip.
    """

    prefix: str = ""
    with_schemas: bool = False


class SchemaQuery(msgspec.Struct, frozen=True):
    """Which operation to describe: its name, with or without a leading slash.

    Attributes:
        peer: The route to whom it is called at, as requests name it; empty for this node's own.
            Only a peer of this node is known well enough: a longer route is not found.
    """

    name: str
    peer: tuple[str, ...] = ()


class DescribedError(msgspec.Struct, frozen=True):
    """An error that an operation declares; ``details_schema`` is null if it has no details."""

    code: str
    description: str
    http_status: int
    details_schema: JsonSchema | None


class DescribedOperation(msgspec.Struct, frozen=True, kw_only=True):
    """An operation as its callers see it. A plain list leaves out what follows the description.

    Attributes:
        name: Without a leading slash.
        namespace: The first segment of the name.
        op_type: ``query``, ``mutation``, ``subscription``, ``upload`` or ``bidi``.
        item_schema: Of each input item; only uploads and bidirectional operations have it.
        output_schema: Of the output, or of each item that comes back.
        access: Who may call it.
        resource_id_path: Where the input names the resource, as a JSON Pointer.
        max_duration_s: Its own deadline, null for the node's.
        large_output: Call it on a stream of its own.
        idempotent: Running it twice is the same as once: a query, or one that says so.
        provenance: Where the node has it from.
    """

    name: str
    namespace: str
    op_type: str
    title: str
    description: str
    input_schema: JsonSchema | UnsetType = UNSET
    item_schema: JsonSchema | UnsetType = UNSET
    output_schema: JsonSchema | UnsetType = UNSET
    error_schemas: list[DescribedError] | UnsetType = UNSET
    access: AccessRules | UnsetType = UNSET
    resource_id_path: str | UnsetType | None = UNSET
    max_duration_s: float | UnsetType | None = UNSET
    large_output: bool | UnsetType = UNSET
    idempotent: bool | UnsetType = UNSET
    provenance: str | UnsetType = UNSET


class OperationList(msgspec.Struct, frozen=True):
    """What the caller may call, sorted by name.

    Attributes:
        version: Of all that the caller may call, whatever was asked for; see `OperationsVersion`.
    """

    operations: list[DescribedOperation]
    version: str


class OperationsVersion(msgspec.Struct, frozen=True):
    """What the caller may call is another than before if, and only if, this text is."""

    version: str


DescribeAtPeer = Callable[[Identity, Sequence[str], str], DescribedOperation | None]
"""Describes what an identity may call over a route, by name; None for what it may not."""


def discovery_operations(
    registry: Registry,
    views: OperationViews | None = None,
    at_peer: DescribeAtPeer = lambda _identity, _route, _name: None,
) -> Sequence[Operation[..., Any]]:
    """Return ``services/list``, ``…/schema`` and ``…/watch`` over *registry*, to be added to it.

    Args:
        views: Knows the rights that callers have while they watch; by default those that they
            came with.
        at_peer: Knows the operations of peers.
    """
    views = views or OperationViews(registry, describe_fully)

    @operation("services/list", access=public(), large_output=True)
    async def list_operations(ctx: Context, wanted: ListFilter) -> OperationList:
        """List the operations that the caller may call."""
        prefix = wanted.prefix.removeprefix("/")
        describe = describe_fully if wanted.with_schemas else describe_briefly
        return OperationList(
            [
                describe(entry)
                for entry in _entries(registry, ctx)
                if entry.operation.spec.name.startswith(prefix)
                and may_call(entry.operation, ctx.identity)
            ],
            _version(views, ctx, ctx.identity),
        )

    @operation("services/schema", access=public())
    async def describe_operation(ctx: Context, query: SchemaQuery) -> DescribedOperation:
        """Describe one operation: its input, output and errors, and who may call it."""
        name = operation_name(query.name)
        if query.peer:
            described = at_peer(ctx.identity, query.peer, name)
            if described is None:
                raise no_such_operation(name)
            return described
        entry = registry.lookup(name) or session_entry(ctx.info.session, name)
        if entry is None or not may_call(entry.operation, ctx.identity):
            raise no_such_operation(name)
        return describe_fully(entry)

    @operation("services/watch", access=public())
    async def watch_operations(ctx: Context) -> AsyncIterator[OperationsVersion]:
        """Say which version of the operations the caller sees: now, and after each change."""
        told = None
        with views.watched(ctx.identity, ctx.info.session) as rights:
            while True:
                bells = (rights, *_bells(registry, ctx))
                seen = [(changes, changes.version) for changes in bells]
                identity = views.current(ctx.identity)
                if identity is None:
                    return
                version = _version(views, ctx, identity)
                if version != told:
                    told = version
                    yield OperationsVersion(version)
                    await trio.sleep(WATCH_INTERVAL_S)
                await wait_any(*seen)

    return list_operations, describe_operation, watch_operations


def _entries(registry: Registry, ctx: Context) -> Iterable[Entry]:
    """Return the node's operations and those of the caller's session, sorted by name."""
    of_session = session_entries(ctx.info.session)
    if not of_session:
        return registry
    return sorted([*registry, *of_session], key=lambda entry: entry.operation.spec.name)


def _bells(registry: Registry, ctx: Context) -> Iterator[Changes]:
    """Return what rings when another operation is to be seen on the caller's session."""
    yield registry.changes
    session = ctx.info.session
    if isinstance(session, CallSession):
        yield layer_of(session).changes


def _version(views: OperationViews, ctx: Context, identity: Identity) -> str:
    """Return the version of what *identity* sees on the caller's session."""
    version = views.version(identity)
    of_session = [
        describe_fully(entry)
        for entry in session_entries(ctx.info.session)
        if may_call(entry.operation, identity)
    ]
    if not of_session:
        return version
    described = msgspec.json.encode([version, of_session], order="deterministic")
    return hashlib.sha256(described).hexdigest()[: len(version)]


def describe_briefly(entry: Entry) -> DescribedOperation:
    """Return what a plain list says."""
    spec = entry.operation.spec
    return DescribedOperation(
        name=spec.name,
        namespace=spec.namespace,
        op_type=spec.op_type.value,
        title=spec.title,
        description=spec.description,
    )


def describe_fully(entry: Entry) -> DescribedOperation:
    """Return everything that a caller can use."""
    operation = entry.operation
    spec = operation.spec
    return msgspec.structs.replace(
        describe_briefly(entry),
        input_schema=operation.input.schema,
        item_schema=UNSET if operation.item is None else operation.item.schema,
        output_schema=operation.output.schema,
        error_schemas=_errors(operation),
        access=spec.access,
        resource_id_path=spec.resource_id_path,
        max_duration_s=spec.max_duration_s,
        large_output=spec.large_output,
        idempotent=spec.is_idempotent,
        provenance=entry.provenance.value,
    )


def _errors(operation: Operation[..., Any]) -> list[DescribedError]:
    shapes = operation.details
    return [
        DescribedError(
            error.code,
            error.description,
            error.http_status,
            shapes[error.code].schema if error.code in shapes else None,
        )
        for error in operation.spec.errors
    ]
