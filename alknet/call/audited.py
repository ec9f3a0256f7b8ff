"""Operations whose calls are noted: who called what, once it was done."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

from alknet.call.codes import ErrorCode, call_error_from
from alknet.call.context import Context
from alknet.call.operations import Operation
from alknet.call.spec import OperationError, OpType
from alknet.errors import AlknetError, LocalError
from alknet.vault.paths import check_secret_path

__all__ = ["Note", "action_of", "audited", "is_audited", "target_of"]

Note = Callable[[str, str, str, Mapping[str, str]], Awaitable[None]]
"""Notes that an identity did something to something: id, action, target, details."""

FAILED = ".failed"
"""Ends the action of what was tried in vain."""

# Fields of inputs that name what was acted upon, and with what. None holds a secret.
TARGETS = ("path", "id", "name", "purpose")
DETAILS = ("key", "by")
# Queries that are noted too.
TELLING = frozenset({"vault/get"})
# What programs do with keys, as often as they like.
USING = frozenset(
    {
        "vault/datakey",
        "vault/decrypt",
        "vault/hmac",
        "vault/sign",
        "vault/ssh-sign",
        "vault/x25519",
    }
)
# What is noted also when it fails.
TRYING = frozenset({"vault/unlock", *TELLING, *USING})


def audited(
    operations: Iterable[Operation[..., Any]], note: Note, often: Note | None = None
) -> Iterator[Operation[..., Any]]:
    """Have those of *operations* that `is_audited` noted when they succeed.

    Args:
        often: Notes what may come often, uses of keys and failures; None, and they are not noted.
    """
    for operation in operations:
        name = operation.spec.name
        if is_audited(operation):
            failed = often if name in TRYING else None
            yield _Audited(operation, done=note, failed=failed)
        elif often is not None and name in USING:
            yield _Audited(operation, done=often, failed=often)
        else:
            yield operation


def is_audited(operation: Operation[..., Any]) -> bool:
    """Whether each call of it is noted: it is a mutation, or gives away a secret."""
    return operation.spec.op_type is OpType.MUTATION or operation.spec.name in TELLING


def action_of(operation: Operation[..., Any]) -> str:
    """Return the name under which its calls are noted."""
    return operation.spec.name.replace("/", ".")


def target_of(value: object) -> str:
    """Return what an input names, or nothing."""
    return next((str(getattr(value, name)) for name in TARGETS if hasattr(value, name)), "")


class _Audited(Operation[..., Any]):
    """Runs as another operation does, and notes it."""

    def __init__(self, operation: Operation[..., Any], *, done: Note, failed: Note | None) -> None:
        self.__dict__.update(operation.__dict__)
        self._done = done
        self._failed = failed

    async def start(
        self, ctx: Context, value: object, items: AsyncIterator[object] | None = None
    ) -> object:
        try:
            result = await super().start(ctx, value, items)
        except AlknetError as exc:
            if self._failed is not None:
                await self._note_failure(self._failed, ctx, value, exc)
            raise
        await self._done(ctx.identity.id, action_of(self), target_of(value), _details_of(value))
        return result

    async def _note_failure(
        self, failed: Note, ctx: Context, value: object, exc: AlknetError
    ) -> None:
        details = {**_details_of(value), "code": _code_of(exc)}
        await failed(ctx.identity.id, action_of(self) + FAILED, _tried_on(value), details)


def _tried_on(value: object) -> str:
    """Return what an input names, unless it may be anything, a secret in the wrong place too."""
    target = target_of(value)
    try:
        check_secret_path(target)
    except LocalError:
        return ""
    return target


def _details_of(value: object) -> dict[str, str]:
    found = {name: getattr(value, name, None) for name in DETAILS}
    return {name: str(known) for name, known in found.items() if known is not None}


def _code_of(exc: AlknetError) -> str:
    if isinstance(exc, OperationError):
        return exc.code
    error = call_error_from(exc)
    return ErrorCode.INTERNAL if error is None else error.code
