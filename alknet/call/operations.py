"""Operations: typed async functions that peers may call by name.

```python
class Sum(msgspec.Struct):
    a: int
    b: int

@operation("math/add", access=scopes("math"))
async def add(sum: Sum) -> int:
    '''Add two integers.'''
    return sum.a + sum.b
```

A function takes a `Context` and an input, either, or none; the input and what it returns (or, as
an async generator, yields) are any types that msgspec knows. With a parameter ``AsyncIterator[T]``
it takes a stream of items too, which its caller sends while it runs (an upload; as a generator,
``bidi``). It stays callable as it was written.
Names are as in ``services/list``: without the slash that leads them on the wire.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, cast

import msgspec

from alknet.call.context import Context
from alknet.call.pointer import Pointer
from alknet.call.reach import Reach
from alknet.call.schema import Nothing, Shape
from alknet.call.signature import Signature, caller_names, read_signature
from alknet.call.spec import (
    CompositionAuthority,
    ErrorSpec,
    OperationError,
    OperationSpec,
    OpType,
    check_operation_name,
)
from alknet.core.access import PUBLIC, AccessRules
from alknet.errors import LocalError
from alknet.vault.paths import check_not_ours, check_secret_path

__all__ = [
    "CompositionAuthority",
    "ErrorSpec",
    "OpType",
    "Operation",
    "OperationError",
    "OperationSpec",
    "any_scope",
    "check_operation_name",
    "operation",
    "public",
    "resource",
    "scopes",
]

P = ParamSpec("P")
R = TypeVar("R")


class Operation(Generic[P, R]):
    """A function with a name that peers call it by.

    Calling it calls the function, with no checks. As a method it must be bound
    (``instance.method``) before a registry takes it.

    Attributes:
        spec: What was declared.
        input: The shape of the input.
        item: The shape of each input item of an upload or bidirectional operation; else None.
        output: The shape of the output, or of each item that comes back.
        details: The shape of the details of each declared error that has some.
        resource_id: Where the resource id stands in the input, if the access check needs one.
        reach: What it may call.
    """

    def __init__(self, function: Callable[P, R], spec: OperationSpec, signature: Signature) -> None:
        self.spec = spec
        self.input = _shape(Nothing if signature.input_name is None else signature.input_type)
        self.item = None if signature.items_name is None else Shape(signature.item_type)
        self.output = _shape(signature.output_type)
        self.details = {
            error.code: _details(error) for error in spec.errors if error.details_type is not None
        }
        self.resource_id = None if spec.resource_id_path is None else Pointer(spec.resource_id_path)
        if self.resource_id is not None:
            self.resource_id.check_string(self.input.type)
        self.reach = Reach.parse(spec.calls)
        self._function = function
        self._signature = signature
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", spec.name)
        self.__wrapped__ = function

    def __repr__(self) -> str:
        return f"<Operation {self.spec.name} ({self.spec.op_type})>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Operation[..., R]:
        if instance is None or not self._signature.unbound:
            return self
        # A copy, for shapes and schemas are costly and the same for all instances.
        bound = cast("Operation[..., R]", copy.copy(self))
        bound.__dict__.update(
            _function=self._function.__get__(instance, owner),
            _signature=msgspec.structs.replace(self._signature, unbound=False),
        )
        return bound

    def replace_spec(self, spec: OperationSpec) -> Operation[P, R]:
        """Return the same operation under another declaration (name, access, visibility …).

        Raises:
            LocalError: The resource id path of *spec* is not in the input.
        """
        return Operation(self._function, spec, self._signature)

    @property
    def is_bound(self) -> bool:
        """It can be run: it is no method, or one with its instance."""
        return not self._signature.unbound

    async def run(self, ctx: Context, value: object) -> object:
        """Run a query or mutation on a decoded input. Cancelled, it ends as its function does."""
        return await self.start(ctx, value)

    def iterate(
        self, ctx: Context, value: object, items: AsyncIterator[object] | None = None
    ) -> AsyncGenerator[object, None]:
        """Return the items that come back; the caller closes them (`contextlib.aclosing`)."""
        return cast("AsyncGenerator[object, None]", self._call(ctx, value, items))

    def start(
        self, ctx: Context, value: object, items: AsyncIterator[object] | None = None
    ) -> Coroutine[Any, Any, object]:
        """Return what `run` awaits, for who counts frames; of an upload too, with its *items*."""
        return cast("Coroutine[Any, Any, object]", self._call(ctx, value, items))

    def _call(self, ctx: Context, value: object, items: AsyncIterator[object] | None) -> object:
        signature = self._signature
        arguments: dict[str, object] = {}
        if signature.context_name is not None:
            arguments[signature.context_name] = ctx
        if signature.input_name is not None:
            arguments[signature.input_name] = value
        if signature.items_name is not None:
            arguments[signature.items_name] = items
        return cast("Callable[..., object]", self._function)(**arguments)


def operation(  # noqa: PLR0913  the options of a declaration, all named
    name: str,
    *,
    access: AccessRules | None = None,
    op_type: str | None = None,
    mutation: bool = False,
    internal: bool = False,
    resource_id_path: str | None = None,
    errors: Sequence[ErrorSpec] = (),
    max_duration_s: float | None = None,
    large_output: bool = False,
    idempotent: bool = False,
    calls: Sequence[str] = (),
    authority: CompositionAuthority | None = None,
    secrets: Sequence[str] = (),
    title: str | None = None,
    description: str | None = None,
) -> Callable[[Callable[P, R]], Operation[P, R]]:
    """Make an operation of a typed async function, closure, method or async generator.

    Args:
        name: ``seg(/seg)+``, each seg 1 to 64 of letters, digits, ``_``, ``.`` and ``-``.
        access: Who may call it: `public`, `scopes`, `any_scope` or `resource`. Must be given
            unless *internal*.
        op_type: ``query``, ``mutation``, ``subscription``, ``upload`` or ``bidi``. By default what
            the function is: with an ``AsyncIterator`` among its parameters an upload, as an async
            generator a subscription, as both ``bidi``, and all else a query.
        mutation: Short for ``op_type="mutation"``.
        internal: Not for the outside, where it looks missing.
        resource_id_path: JSON Pointer (RFC 6901) to the resource id in the input. Without it, an
            operation with a resource type is a list: filter what it returns by `Context.visible`.
        errors: The codes that it raises by `OperationError`.
        max_duration_s: Its deadline, above 0.
        large_output: Its output may be large and takes a stream of its own.
        idempotent: For a mutation or upload: the same input twice does the same as once, so that
            callers may repeat it as they like. Queries are so anyway.
        calls: Names of the operations that it calls by `Context.call`; all others look missing.
            ``@w1/math/add`` is one of the peer ``w1``; see `alknet.call.reach`.
        authority: The rights with which it calls them, whoever called it; by default none.
        secrets: Paths in the node's vault that it reads by `Context.secret`; no others are given.
        title: One line; by default the first of the docstring.
        description: By default the whole docstring.

    Raises:
        LocalError: The name, an option or the function's signature is not valid.
    """
    names = caller_names(2)

    def decorate(function: Callable[P, R]) -> Operation[P, R]:
        try:
            check_operation_name(name)
            signature = read_signature(function, names)
            document = inspect.getdoc(function) or ""
            spec = OperationSpec(
                name=name,
                op_type=_op_type(
                    op_type,
                    mutation=mutation,
                    is_generator=signature.is_generator,
                    takes_items=signature.items_name is not None,
                ),
                access=_access(access, internal=internal, resource_id_path=resource_id_path),
                internal=internal,
                resource_id_path=resource_id_path,
                errors=_errors(errors),
                max_duration_s=_duration(max_duration_s),
                large_output=large_output,
                idempotent=idempotent,
                calls=_calls(calls),
                authority=authority,
                secrets=_secrets(secrets),
                title=document.partition("\n")[0].removesuffix(".") if title is None else title,
                description=document if description is None else description,
            )
            return Operation(function, spec, signature)
        except LocalError as exc:
            raise LocalError(f"operation {name!r}: {exc}") from exc

    return decorate


def public() -> AccessRules:
    """Let everybody call it, anonymous peers too."""
    return PUBLIC


def scopes(*names: str) -> AccessRules:
    """Let those call it who hold all of the scopes *names*."""
    if not names:
        raise LocalError("scopes() needs at least one scope; public() is for everybody")
    return AccessRules(scopes_all=names)


def any_scope(*names: str) -> AccessRules:
    """Let those call it who hold at least one of the scopes *names*."""
    if not names:
        raise LocalError("any_scope() needs at least one scope; public() is for everybody")
    return AccessRules(scopes_any=names)


def resource(
    resource_type: str,
    *,
    action: str | None = None,
    scopes_all: Sequence[str] = (),
    scopes_any: Sequence[str] = (),
) -> AccessRules:
    """Let those call it who own the resource, or hold a grant for *action* on it.

    Which resource, the operation's ``resource_id_path`` says; the scopes come on top.
    """
    return AccessRules(
        scopes_all=tuple(scopes_all),
        scopes_any=tuple(scopes_any),
        resource_type=resource_type,
        action=action,
    )


def _op_type(
    declared: str | None, *, mutation: bool, is_generator: bool, takes_items: bool
) -> OpType:
    if mutation and declared not in {None, OpType.MUTATION}:
        raise LocalError(f"both mutation=True and op_type={declared!r}")
    if mutation:
        declared = OpType.MUTATION
    fits = _FITTING[is_generator, takes_items]
    if declared is None:
        return fits[0]
    if declared not in set(OpType):
        known = ", ".join(OpType)
        raise LocalError(f"op type {declared!r} is not one of {known}")
    if declared not in fits:
        what = "an async generator" if is_generator else "a plain async function"
        items = " that takes items" if takes_items else ""
        raise LocalError(f"{what}{items} cannot be a {declared}")
    return OpType(declared)


def _access(
    access: AccessRules | None, *, internal: bool, resource_id_path: str | None
) -> AccessRules:
    if access is None:
        if not internal:
            raise LocalError("no access rules: say public(), scopes(...), resource(...) …")
        access = AccessRules()
    if resource_id_path is not None and access.resource_type is None:
        raise LocalError("a resource_id_path without a resource type")
    if not internal:
        access.validate(has_resource_path=resource_id_path is not None)
    return access


def _errors(errors: Sequence[ErrorSpec]) -> tuple[ErrorSpec, ...]:
    codes = [error.code for error in errors]
    for code in codes:
        if codes.count(code) > 1:
            raise LocalError(f"error {code} is declared twice")
    return tuple(errors)


def _shape(type_: Any) -> Shape:
    """Return the shape of a type, or the shape that stands in the place of one."""
    return type_ if isinstance(type_, Shape) else Shape(type_)


def _details(error: ErrorSpec) -> Shape:
    shape = Shape(error.details_type)
    if shape.schema.get("type", "object") != "object":
        raise LocalError(f"error {error.code}: its details are not an object in JSON")
    return shape


def _calls(entries: Sequence[str]) -> tuple[str, ...]:
    if isinstance(entries, str):  # it would be read as names of one letter each
        raise LocalError("calls is a sequence of names, not one string")
    return tuple(entries)


def _secrets(paths: Sequence[str]) -> tuple[str, ...]:
    if isinstance(paths, str):  # it would be read as paths of one letter each
        raise LocalError("secrets is a sequence of paths, not one string")
    for path in paths:
        check_secret_path(path)
        check_not_ours(path)
    return tuple(paths)


def _duration(seconds: float | None) -> float | None:
    if seconds is not None and not 0 < seconds < float("inf"):
        raise LocalError(f"max_duration_s must be a time above 0, not {seconds}")
    return seconds


# By whether the function is a generator, and whether it takes items; the first is the default.
_FITTING = {
    (False, False): (OpType.QUERY, OpType.MUTATION),
    (True, False): (OpType.SUBSCRIPTION,),
    (False, True): (OpType.UPLOAD,),
    (True, True): (OpType.BIDI,),
}
