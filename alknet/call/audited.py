"""Operations whose calls are noted: who called what, once it was done."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

from alknet.call.context import Context
from alknet.call.operations import Operation
from alknet.call.spec import OpType

__all__ = ["Note", "audited"]

Note = Callable[[str, str, str], Awaitable[None]]
"""Notes that an identity did something to something: id, action, target."""

# Fields of inputs that name what was acted upon.
TARGETS = ("path", "id", "name")


def audited(
    operations: Iterable[Operation[..., Any]], note: Note, *, also: Iterable[str] = ()
) -> Iterator[Operation[..., Any]]:
    """Have the mutations among *operations*, and those named in *also*, noted when they succeed."""
    names = frozenset(also)
    for operation in operations:
        if operation.spec.op_type is OpType.MUTATION or operation.spec.name in names:
            yield _Audited(operation, note)
        else:
            yield operation


class _Audited(Operation[..., Any]):
    """Runs as another operation does, and notes it."""

    def __init__(self, operation: Operation[..., Any], note: Note) -> None:
        self.__dict__.update(operation.__dict__)
        self._note = note

    async def start(
        self, ctx: Context, value: object, items: AsyncIterator[object] | None = None
    ) -> object:
        result = await super().start(ctx, value, items)
        target = next((str(getattr(value, name)) for name in TARGETS if hasattr(value, name)), "")
        await self._note(ctx.identity.id, self.spec.name.replace("/", "."), target)
        return result
