"""The operations of a node by name: filled at start, then frozen."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from alknet.call.changes import Changes
from alknet.call.operations import Operation
from alknet.call.spec import check_operation_name
from alknet.errors import LocalError

__all__ = ["BUILTIN_NAMESPACES", "Entry", "Provenance", "Registry"]

BUILTIN_NAMESPACES = frozenset({"services", "node", "vault", "peers"})
"""First segments that only the node registers, so that they mean the same everywhere."""


class Provenance(enum.StrEnum):
    """Where an operation comes from."""

    LOCAL = "local"
    BUILTIN = "builtin"
    COMMAND = "command"
    FROM_CALL = "from_call"
    SESSION = "session"


class Entry(msgspec.Struct, frozen=True):
    """A registered operation.

    Attributes:
        operation: What to run.
        provenance: Where it comes from.
    """

    operation: Operation[..., Any]
    provenance: Provenance


class Registry:
    """Operations by name, sorted when iterated.

    Attributes:
        changes: Rung when what callers may call has changed: their rights, or what is registered.
    """

    def __init__(self, operations: Iterable[Operation[..., Any]] = ()) -> None:
        """Begin with *operations*. Raises like `add`."""
        self.changes = Changes()
        self._entries: dict[str, Entry] = {}
        self._commands: dict[str, Entry] = {}
        self._is_frozen = False
        self.extend(operations)

    def __len__(self) -> int:
        return len(self._entries) + len(self._commands)

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._commands

    def __iter__(self) -> Iterator[Entry]:
        entries = {**self._entries, **self._commands}
        return iter([entries[name] for name in sorted(entries)])

    @property
    def is_frozen(self) -> bool:
        """Nothing can be added any more."""
        return self._is_frozen

    def add(self, operation: Operation[..., Any], *, builtin: bool = False) -> None:
        """Register an operation under its name.

        Args:
            operation: A method's must be bound to its instance.
            builtin: It is the node's own, and may stand in a reserved namespace.

        Raises:
            LocalError: The name is taken or reserved, a method is not bound, or the registry is
                frozen.
        """
        if not isinstance(operation, Operation):
            raise LocalError(f"{operation!r} is not an operation: decorate it with @operation(…)")
        name = operation.spec.name
        if self._is_frozen:
            raise LocalError(f"operation {name!r} comes too late: the registry is frozen")
        check_operation_name(name)
        if operation.spec.namespace in BUILTIN_NAMESPACES and not builtin:
            raise LocalError(f"operation {name!r}: the namespace is reserved for the node itself")
        if not operation.is_bound:
            raise LocalError(
                f"operation {name!r} is a method: register instance.{operation.__name__}"
            )
        if name in self._entries:
            raise LocalError(f"operation {name!r} is registered twice")
        provenance = Provenance.BUILTIN if builtin else Provenance.LOCAL
        self._entries[name] = Entry(operation, provenance)

    def extend(self, operations: Iterable[Operation[..., Any]], *, builtin: bool = False) -> None:
        """Register several. Raises like `add`; those before the bad one stay registered."""
        for operation in operations:
            self.add(operation, builtin=builtin)

    def set_commands(self, operations: Iterable[Operation[..., Any]]) -> None:
        """Serve these beside what was added, instead of the last that were set; frozen or not.

        They are what the node's configuration makes operations of, and change with it. Calls that
        run go on with what they began with, until they are judged again: then those end that
        could not be made now.

        Raises:
            LocalError: A name is taken or reserved, or stands twice; nothing was changed.
        """
        entries: dict[str, Entry] = {}
        for operation in operations:
            name = operation.spec.name
            check_operation_name(name)
            if operation.spec.namespace in BUILTIN_NAMESPACES:
                raise LocalError(f"command {name!r}: the namespace is reserved for the node itself")
            if name in self._entries or name in entries:
                raise LocalError(f"command {name!r}: an operation of this name is there already")
            entries[name] = Entry(operation, Provenance.COMMAND)
        self._commands = entries
        self.changes.ring()

    def freeze(self) -> None:
        """Refuse further operations. Idempotent.

        Raises:
            LocalError: An operation declares that it calls one which is not here.
        """
        for entry in self:
            for missing in entry.operation.reach.missing({**self._entries, **self._commands}):
                raise LocalError(
                    f"operation {entry.operation.spec.name!r} calls {missing!r}, "
                    "which is not registered: add it, or take it out of calls"
                )
        self._is_frozen = True

    def lookup(self, name: str) -> Entry | None:
        """Return what is registered under *name* (no leading slash), internal or not."""
        found = self._entries.get(name)
        return self._commands.get(name) if found is None else found
