"""Run operations through a real dispatcher, without a network: identity, access, shapes, errors.

```python
async def test_add():
    assert await call_operation(add, {"a": 1, "b": 2}, identity=peer("w1", "math")) == 3
```
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from alknet.call.admitted import Admitted
from alknet.call.codes import CallError
from alknet.call.dispatch import OperationDispatcher
from alknet.call.operations import Operation
from alknet.call.proto.events import Requested
from alknet.call.registry import Registry
from alknet.call.resources import Resources
from alknet.call.spec import OpType
from alknet.core.contracts import Connection, IdentityProvider, OwnershipProvider, SecretProvider
from alknet.core.identity import OWNER, ApiKey, Grant, Identity, NodeId, Peer
from alknet.core.limits import Limits
from alknet.core.scopes import open_background
from alknet.errors import Denied, LocalError, NotFound
from alknet.testing.memory import memory_connection_pair
from alknet.vault.locked import LockedBuffer

__all__ = [
    "FixedIdentities",
    "FixedOwnership",
    "FixedSecrets",
    "admit_request",
    "assert_list_operations_filter",
    "call_operation",
    "collect_items",
    "key",
    "peer",
]


class FixedIdentities:
    """An `IdentityProvider` that knows the tokens it was given, and no peers."""

    def __init__(self, tokens: Mapping[str, Identity] | None = None) -> None:
        self.tokens = dict(tokens or {})
        self.version = 1

    async def wait_changed(self, version: int) -> int:
        """Wait for ever: nothing changes."""
        if version == self.version:
            await trio.sleep_forever()
        return self.version

    def check_fresh(self) -> None:
        """Do nothing: what was given is always fresh."""

    def identify_key(self, key: NodeId) -> Identity | None:
        """Return None: every key is unknown."""
        return None

    def identify_token(self, token: str) -> Identity:
        """Return the identity of a known token."""
        if token not in self.tokens:
            raise Denied("token refused", is_failed_authentication=True)
        return self.tokens[token]

    def token_expires_at(self, identity: Identity) -> float | None:
        """Return None: no token expires."""
        return None

    def peer(self, name: str) -> Peer | None:
        """Return None: there are no peers."""
        return None

    def peers(self) -> Sequence[Peer]:
        """Return nothing."""
        return ()

    def api_keys(self) -> Sequence[ApiKey]:
        """Return nothing."""
        return ()


class FixedOwnership:
    """An `OwnershipProvider` over ``(identity id, resource type, resource id)``."""

    def __init__(self, owned: Collection[tuple[str, str, str]] = ()) -> None:
        self._owned = frozenset(owned)

    def owns(self, identity_id: str, resource_type: str, resource_id: str) -> bool:
        """Whether it was said so."""
        return (identity_id, resource_type, resource_id) in self._owned

    def owned(self, identity_id: str, resource_type: str) -> Sequence[str]:
        """Return the ids, sorted."""
        return sorted(
            i for who, kind, i in self._owned if (who, kind) == (identity_id, resource_type)
        )


class FixedSecrets:
    """A `SecretProvider` over values by path, always unlocked."""

    def __init__(self, values: Mapping[str, bytes]) -> None:
        self._values = dict(values)

    async def get(self, path: str) -> LockedBuffer:
        """Return a copy of the value."""
        await trio.lowlevel.checkpoint()
        if path not in self._values:
            raise NotFound(f"no secret {path}")
        return LockedBuffer.of(self._values[path])


def peer(name: str, *scopes: str, grants: Sequence[str] = ()) -> Identity:
    """Return the identity of a peer with *scopes* and *grants* (``type:id[:action]``)."""
    return Identity(f"peer:{name}", scopes, tuple(map(Grant.parse, grants)))


def key(prefix: str, *scopes: str, grants: Sequence[str] = ()) -> Identity:
    """Return the identity of an API key with *scopes* and *grants* (``type:id[:action]``)."""
    return Identity(f"key:{prefix}", scopes, tuple(map(Grant.parse, grants)))


async def call_operation(
    operation: Operation[..., Any],
    input: object = None,  # noqa: A002  the protocol's word
    *,
    items: Iterable[object] = (),
    beside: Sequence[Operation[..., Any]] = (),
    identity: Identity = OWNER,
    ownership: OwnershipProvider | Resources | None = None,
    secrets: Mapping[str, bytes] | None = None,
) -> Any:
    """Run a query, mutation or upload as *identity* would, and return its output.

    Args:
        operation: Need not be registered; a method must be bound.
        input: What msgspec writes as JSON: a struct, a dict, … None sends ``{}``.
        items: What is uploaded, each like *input*.
        beside: Other operations of the node: for one that calls them, all that it declares.
        identity: The caller. The owner, by default, passes every access check.
        ownership: Who owns what; by default nobody owns anything. Operations that spawn things
            need `alknet.testing.resources.open_resources`.
        secrets: What the vault holds, by path; by default there is no vault.

    Returns:
        The output as JSON values.

    Raises:
        CallError: What a remote caller would get.
    """
    vault = None if secrets is None else FixedSecrets(secrets)
    async with _admitted(operation, input, identity, ownership, beside, vault) as call:
        _feed(call, items)
        return msgspec.json.decode(await call.run())


async def collect_items(  # noqa: PLR0913  as call_operation, all named
    operation: Operation[..., Any],
    input: object = None,  # noqa: A002  the protocol's word
    *,
    items: Iterable[object] = (),
    limit: int | None = None,
    beside: Sequence[Operation[..., Any]] = (),
    identity: Identity = OWNER,
    ownership: OwnershipProvider | Resources | None = None,
    secrets: Mapping[str, bytes] | None = None,
) -> list[Any]:
    """Run what gives items like `call_operation`, and return the first *limit* of them at most."""
    found: list[Any] = []
    vault = None if secrets is None else FixedSecrets(secrets)
    async with _admitted(operation, input, identity, ownership, beside, vault) as call:
        _feed(call, items)
        async with call.stream() as stream:
            if limit == 0:
                return found
            async for item in stream:
                found.append(msgspec.json.decode(item))
                if len(found) == limit:
                    break
    return found


def admit_request(  # noqa: PLR0913  the parts of a dispatcher, all named
    registry: Registry,
    connection: Connection,
    request: Requested,
    *,
    identities: IdentityProvider | None = None,
    ownership: OwnershipProvider | None = None,
    limits: Limits | None = None,
    secrets: SecretProvider | None = None,
    resources: Resources | None = None,
) -> Admitted:
    """Put one request to a dispatcher over *registry*. Raises CallError as a dispatcher does."""
    dispatcher = OperationDispatcher(
        registry,
        identities=identities or FixedIdentities(),
        ownership=ownership or FixedOwnership(),
        limits=limits or Limits(),
        secrets=secrets,
        resources=resources,
    )
    admitted = dispatcher.admit(request, connection=connection, session=None)
    assert isinstance(admitted, Admitted)  # without a forwarder no route leads anywhere
    return admitted


async def assert_list_operations_filter(
    registry: Registry, inputs: Mapping[str, object] | None = None, *, timeout_s: float = 5.0
) -> None:
    """Assert that each list operation asks `Context.visible` about its resource type.

    A list operation has a resource type and no ``resource_id_path``. Each is run, as a caller that
    holds its scopes and owns nothing; of a subscription, the first item counts.

    Args:
        registry: Internal operations are run too.
        inputs: By name, for those that need more than ``{}``.
        timeout_s: For each to answer.

    Raises:
        AssertionError: One that does not ask, or cannot be run with its input.
    """
    for entry in registry:
        spec = entry.operation.spec
        if not spec.is_list:
            continue
        beside = [other.operation for other in registry if other is not entry]
        asked = await _asked(entry.operation, (inputs or {}).get(spec.name), beside, timeout_s)
        if spec.access.resource_type not in asked:
            raise AssertionError(
                f"{spec.name} lists {spec.access.resource_type!r} and does not ask "
                "ctx.visible which of them the caller may see"
            )


async def _asked(
    operation: Operation[..., Any],
    value: object,
    beside: Sequence[Operation[..., Any]],
    timeout_s: float,
) -> Collection[str]:
    """Return the resource types that *operation* asks about, run as one who owns nothing."""
    spec = operation.spec
    caller = peer("lister", *spec.access.scopes_all, *spec.access.scopes_any)
    # Internal ones have no callers, but leak through those that they have.
    exposed = operation.replace_spec(msgspec.structs.replace(spec, internal=False))
    try:
        async with _admitted(exposed, value, caller, None, beside) as call:
            with trio.move_on_after(timeout_s):
                await _begin(call)
            return call.context.asked_visible
    except CallError as exc:
        raise AssertionError(f"{spec.name} cannot be run with its input: {exc}") from exc


async def _begin(call: Admitted) -> None:
    if not OpType(call.op_type).has_items:
        await call.run()
        return
    async with call.stream() as items:
        await anext(items, b"")


def _feed(call: Admitted, items: Iterable[object]) -> None:
    if OpType(call.op_type).takes_items:
        call.feed(_GivenItems(items))


class _GivenItems:
    def __init__(self, items: Iterable[object]) -> None:
        self._items = iter(items)

    def __aiter__(self) -> _GivenItems:
        return self

    async def __anext__(self) -> msgspec.Raw:
        await trio.lowlevel.checkpoint()
        item = next(self._items, _END)
        if item is _END:
            raise StopAsyncIteration
        return msgspec.Raw(msgspec.json.encode(item))


@asynccontextmanager
async def _admitted(
    operation: Operation[..., Any],
    value: object,
    identity: Identity,
    ownership: OwnershipProvider | Resources | None,
    beside: Sequence[Operation[..., Any]] = (),
    secrets: SecretProvider | None = None,
) -> AsyncIterator[Admitted]:
    if operation.spec.internal:
        raise LocalError(f"{operation.spec.name} is internal: no caller reaches it")
    registry = Registry()
    registry.add(operation, builtin=True)
    registry.extend(beside, builtin=True)
    data = b"{}" if value is None else msgspec.json.encode(value)
    request = Requested(id="d1", operation=operation.spec.name, input=msgspec.Raw(data))
    resources = ownership if isinstance(ownership, Resources) else None
    dispatcher = OperationDispatcher(
        registry,
        identities=FixedIdentities(),
        ownership=FixedOwnership() if ownership is None else _provider(ownership),
        limits=Limits(),
        secrets=secrets,
        resources=resources,
    )
    async with memory_connection_pair() as (_, connection), open_background() as nursery:
        connection.identity = identity
        await nursery.start(dispatcher.survivors.serve)
        admitted = dispatcher.admit(request, connection=connection, session=None)
        assert isinstance(admitted, Admitted)  # without a forwarder no route leads anywhere
        yield admitted
        await dispatcher.survivors.drain(math.inf)


def _provider(ownership: OwnershipProvider | Resources) -> OwnershipProvider:
    return ownership.ownership if isinstance(ownership, Resources) else ownership


_END = object()

_identities: type[IdentityProvider] = FixedIdentities
_ownership: type[OwnershipProvider] = FixedOwnership
_secrets: type[SecretProvider] = FixedSecrets
