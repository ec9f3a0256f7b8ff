"""Operations whose calls are noted: who called what, once it was done."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

from alknet.call.context import Context
from alknet.call.operations import Operation
from alknet.call.spec import OpType

__all__ = ["Note", "action_of", "audited", "is_audited", "target_of"]

Note = Callable[[str, str, str], Awaitable[None]]
"""Notes that an identity did something to something: id, action, target."""

# Fields of inputs that name what was acted upon.
TARGETS = ("path", "id", "name")
# Queries that are noted too.
TELLING = frozenset({"vault/get"})


def audited(operations: Iterable[Operation[..., Any]], note: Note) -> Iterator[Operation[..., Any]]:
    """Have those of *operations* that `is_audited` noted when they succeed."""
    for operation in operations:
        yield _Audited(operation, note) if is_audited(operation) else operation


def is_audited(operation: Operation[..., Any]) -> bool:
    """Whether calls of it are noted: it is a mutation, or gives away a secret."""
    return operation.spec.op_type is OpType.MUTATION or operation.spec.name in TELLING


def action_of(operation: Operation[..., Any]) -> str:
    """Return the name under which its calls are noted."""
    return operation.spec.name.replace("/", ".")


def target_of(value: object) -> str:
    """Return what an input names, or nothing."""
    return next((str(getattr(value, name)) for name in TARGETS if hasattr(value, name)), "")


class _Audited(Operation[..., Any]):
    """Runs as another operation does, and notes it."""

    def __init__(self, operation: Operation[..., Any], note: Note) -> None:
        self.__dict__.update(operation.__dict__)
        self._note = note

    async def start(
        self, ctx: Context, value: object, items: AsyncIterator[object] | None = None
    ) -> object:
        result = await super().start(ctx, value, items)
        await self._note(ctx.identity.id, action_of(self), target_of(value))
        return result
