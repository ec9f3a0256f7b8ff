"""Operations with a lifetime: those that a handler adds while it runs, for itself or a session.

An agent makes tools of what it finds, and calls them as it calls the node's own operations:

```python
async with ctx.overlay(*tools):
    await ctx.call("tools/search", {"words": ["trio"]})
```

- They are found after the node's operations, and never instead of one: a name that is taken stays
  what it was.
- Who adds an operation gives it no more than it has itself: of its authority, its reach and its
  secrets. The label of the authority stays too, for by it resources are owned.
- `alknet.call.context.Context.overlay` shows them to the call that adds them and to one another,
  as far as they declare it. `alknet.call.context.Context.session_overlay` shows those that are not
  internal to all who call on the same connection.
- At the end of the block or session they are gone, and their calls cancelled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from alknet.call.changes import Changes
from alknet.call.codes import CallError, ErrorCode
from alknet.call.operations import Operation
from alknet.call.registry import BUILTIN_NAMESPACES, Entry, Provenance, Registry
from alknet.call.session import CallSession
from alknet.core.identity import Identity
from alknet.errors import Conflict, LocalError

if TYPE_CHECKING:
    from alknet.call.callers import LocalCaller
    from alknet.call.context import Context

__all__ = [
    "MOST_OPERATIONS",
    "Layer",
    "LayeredEntry",
    "LayeredItems",
    "Overlay",
    "Running",
    "layer_of",
    "open_layer",
    "session_entries",
    "session_entry",
]

MOST_OPERATIONS = 128
"""In one layer: the interfaces of language models take no more tools than that."""


class LayeredEntry(Entry, frozen=True):
    """An operation of a layer.

    Attributes:
        compose: Makes what makes its calls.
        running: Its calls.
    """

    compose: Callable[[Context], LocalCaller]
    running: Running


class Layer:
    """The operations of one block or session, by name.

    Attributes:
        is_closed: Nothing can be added or found any more.
        changes: Rung when one is added or taken out.
    """

    def __init__(self) -> None:
        self.is_closed = False
        self.changes = Changes()
        self._entries: dict[str, LayeredEntry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[LayeredEntry]:
        return iter([self._entries[name] for name in sorted(self._entries)])

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def lookup(self, name: str) -> LayeredEntry | None:
        """Return the operation *name*."""
        return self._entries.get(name)

    def put(self, entry: LayeredEntry) -> None:
        """Add an operation that `Overlay.add` has checked."""
        self._entries[entry.operation.spec.name] = entry
        self.changes.ring()

    def remove(self, name: str) -> None:
        """Take an operation out, and cancel its calls. Not there: no effect."""
        entry = self._entries.pop(name, None)
        if entry is not None:
            entry.running.end()
            self.changes.ring()

    def close(self) -> None:
        """Take all out, for good, and cancel their calls, which end in their own time."""
        self.is_closed = True
        for name in list(self._entries):
            self.remove(name)


class Overlay:
    """What one handler adds to a layer; it can be used as long as its block or session lives."""

    def __init__(
        self,
        layer: Layer,
        opener: Operation[..., Any],
        registry: Registry,
        compose: Callable[[Operation[..., Any], Context], LocalCaller],
    ) -> None:
        """Make one; handlers get theirs from `alknet.call.context.Context.overlay`.

        Args:
            opener: The operation of the handler, whose rights bound those that are added.
            registry: The node's operations.
            compose: Makes what makes the calls of an operation of the layer.
        """
        self._layer = layer
        self._opener = opener
        self._registry = registry
        self._compose = compose

    def __len__(self) -> int:
        return len(self._layer)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._layer)

    def add(self, *operations: Operation[..., Any]) -> None:
        """Add *operations*, all or none. They may call one another, where they declare it.

        Raises:
            LocalError: One asks for more than the adding operation has, declares a call to what is
                not there, stands in a namespace of the node, or is an unbound method.
            Conflict: A name is taken.
            CallError: RESOURCE_EXHAUSTED, the layer is full.
        """
        if self._layer.is_closed:
            raise LocalError("the overlay is closed")
        if len(self._layer) + len(operations) > MOST_OPERATIONS:
            why = f"an overlay has at most {MOST_OPERATIONS} operations"
            raise CallError(ErrorCode.RESOURCE_EXHAUSTED, why, retryable=False)
        names = [operation.spec.name for operation in operations]
        for operation in operations:
            self._check(operation, names)
        for operation in operations:
            compose = partial(self._compose, operation)
            entry = LayeredEntry(operation, Provenance.SESSION, compose, Running())
            self._layer.put(entry)

    def remove(self, name: str) -> None:
        """Take an operation out again, and cancel its calls. Not there: no effect."""
        self._layer.remove(name)

    def _check(self, operation: Operation[..., Any], names: list[str]) -> None:
        spec = operation.spec
        if spec.namespace in BUILTIN_NAMESPACES:
            raise LocalError(f"operation {spec.name!r}: the namespace is the node's own")
        if not operation.is_bound:
            raise LocalError(f"operation {spec.name!r} is a method of no instance")
        if spec.name in self._registry or spec.name in self._layer or names.count(spec.name) > 1:
            raise Conflict(f"there is an operation {spec.name!r} already")
        try:
            self._check_authority(operation)
            self._check_reach(operation, names)
        except LocalError as exc:
            who = f"operation {spec.name!r}, added by {self._opener.spec.name!r},"
            raise LocalError(f"{who} {exc}") from exc

    def _check_authority(self, operation: Operation[..., Any]) -> None:
        spec, opener = operation.spec, self._opener.spec
        for path in spec.secrets:
            if path not in opener.secrets:
                raise LocalError(f"declares the secret {path!r}, which the other does not")
        if spec.authority is None:
            return
        if opener.authority is None or spec.authority.label != opener.authority.label:
            raise LocalError("has the authority of another label")
        _check_within(spec.authority.identity, opener.authority.identity)

    def _check_reach(self, operation: Operation[..., Any], names: list[str]) -> None:
        reach = self._opener.reach
        for name in operation.reach.local:
            if name not in names and name not in self._layer and not reach.allows_local(name):
                raise LocalError(f"calls {name!r}, which the other does not")
        for peer, name in operation.reach.peers:
            if not reach.allows_peer(peer, name):
                raise LocalError(f"calls '@{peer}/{name}', which the other does not")


class LayeredItems:
    """The items of a call that end with its operation."""

    def __init__(self, items: AsyncIterator[bytes], running: Running) -> None:
        self._items = items
        self._running = running

    def __aiter__(self) -> LayeredItems:
        return self

    async def __anext__(self) -> bytes:
        with self._running.call():
            return await anext(self._items)
        raise _gone()  # pragma: no cover  the block has raised


@asynccontextmanager
async def open_layer() -> AsyncIterator[Layer]:
    """Give a layer for as long as the block; at its end its calls have ended."""
    layer = Layer()
    try:
        yield layer
    finally:
        running = [entry.running for entry in layer]
        layer.close()
        # It waits for tasks that are cancelled, as a nursery does.
        with trio.CancelScope(shield=True):
            for calls in running:
                await calls.wait_ended()


def layer_of(session: CallSession) -> Layer:
    """Return the operations that *session* alone has, which end with it."""
    if session.layer is None:
        session.layer = Layer()
        if session.close_reason is not None:
            session.layer.close()
    return session.layer


def session_entries(session: object) -> list[LayeredEntry]:
    """Return the operations that *session* alone has, sorted by name."""
    if not isinstance(session, CallSession) or session.layer is None:
        return []
    return list(session.layer)


def session_entry(session: object, name: str) -> LayeredEntry | None:
    """Return the operation *name* that *session* alone has."""
    if not isinstance(session, CallSession) or session.layer is None:
        return None
    return session.layer.lookup(name)


class Running:
    """The calls of one operation of a layer, until it is taken out."""

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self._has_ended = False
        self._emptied = trio.lowlevel.ParkingLot()

    @contextmanager
    def call(self) -> Iterator[None]:
        """End what runs inside with the operation. Raises CallError if that happens."""
        if self._has_ended:
            raise _gone()
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
                if not self._scopes:
                    self._emptied.unpark_all()
        if scope.cancelled_caught:
            raise _gone()

    def end(self) -> None:
        """Cancel them; there are no more."""
        self._has_ended = True
        for scope in self._scopes:
            scope.cancel()

    async def wait_ended(self) -> None:
        """Wait until none is being run."""
        while self._scopes:
            await self._emptied.park()


def _check_within(wanted: Identity, has: Identity) -> None:
    """Raise LocalError if *wanted* has a right that *has* does not give."""
    for scope in wanted.scopes:
        if scope not in has.scopes and not has.has_scope(scope):
            raise LocalError(f"has the scope {scope!r}, which the other does not")
    for grant in wanted.resources:
        if not has.has_grant(grant.type, grant.id, grant.action):
            raise LocalError(f"has the grant {grant}, which the other does not")


def _gone() -> CallError:
    return CallError(ErrorCode.ABORTED, "the operation has gone with its session")
