from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from alknet.call.context import Context
from alknet.call.operations import (
    ErrorSpec,
    Operation,
    OperationError,
    OpType,
    any_scope,
    check_operation_name,
    operation,
    public,
    resource,
    scopes,
)
from alknet.core.access import PUBLIC, AccessRules
from alknet.errors import LocalError
from alknet.testing.operations import call_operation, collect_items


class Sum(msgspec.Struct):
    a: int
    b: int


class Box(msgspec.Struct):
    id: str
    size: int = 0


class Details(msgspec.Struct):
    left: int


@operation("math/add", access=scopes("math"))
async def add(terms: Sum) -> int:
    """Add two integers.

    They may be negative.
    """
    return terms.a + terms.b


async def test_stays_callable_as_written() -> None:
    assert await add(Sum(1, 2)) == 3
    assert await add(terms=Sum(1, 2)) == 3


async def test_runs_by_name() -> None:
    assert await call_operation(add, {"a": 1, "b": 2}) == 3
    assert await call_operation(add, Sum(3, 4)) == 7


def test_takes_title_and_description_from_the_docstring() -> None:
    assert add.spec.title == "Add two integers"
    assert add.spec.description == "Add two integers.\n\nThey may be negative."
    assert inspect.getdoc(add) == add.spec.description


def test_given_title_and_description_win() -> None:
    @operation("a/b", access=public(), title="T", description="D")
    async def described() -> None:
        """Ignored."""

    assert (described.spec.title, described.spec.description) == ("T", "D")


def test_defaults_of_the_spec() -> None:
    assert add.spec.op_type is OpType.QUERY
    assert add.spec.namespace == "math"
    assert add.spec.access == AccessRules(scopes_all=("math",))
    assert not add.spec.internal
    assert not add.spec.large_output
    assert add.spec.max_duration_s is None
    assert repr(add) == "<Operation math/add (query)>"


@pytest.mark.parametrize("options", [{"mutation": True}, {"op_type": "mutation"}])
def test_mutation(options: dict[str, Any]) -> None:
    @operation("a/b", access=public(), **options)
    async def change() -> None: ...

    assert change.spec.op_type is OpType.MUTATION


def test_a_query_is_idempotent_and_a_mutation_if_it_says_so() -> None:
    @operation("a/b", access=public(), mutation=True)
    async def change() -> None: ...

    @operation("a/c", access=public(), mutation=True, idempotent=True)
    async def put() -> None: ...

    assert add.spec.is_idempotent
    assert not change.spec.is_idempotent
    assert put.spec.is_idempotent


def test_items_are_not_idempotent() -> None:
    with pytest.raises(LocalError, match="a subscription has no one answer"):

        @operation("a/b", access=public(), idempotent=True)
        async def count() -> AsyncIterator[int]:
            yield 1


def test_access_helpers() -> None:
    assert public() == PUBLIC
    assert scopes("a", "b") == AccessRules(scopes_all=("a", "b"))
    assert any_scope("a", "b") == AccessRules(scopes_any=("a", "b"))
    assert resource("box", action="open", scopes_any=["x"]) == AccessRules(
        resource_type="box", action="open", scopes_any=("x",)
    )


async def test_signature_forms() -> None:
    @operation("f/none", access=public())
    async def none() -> str:
        return "none"

    @operation("f/ctx", access=public())
    async def ctx_only(ctx: Context) -> str:
        return ctx.operation

    @operation("f/both", access=public())
    async def both(ctx: Context, box: Box) -> str:
        return ctx.operation + box.id

    @operation("f/keyword", access=public())
    async def keyword(*, box: Box, ctx: Context) -> str:
        return ctx.operation + box.id

    @operation("f/dict", access=public())
    async def mapping(box: dict[str, Any]) -> dict[str, Any]:
        return box

    @operation("f/any", access=public())
    async def anything(box: Any) -> Any:
        return box

    assert await call_operation(none) == "none"
    assert await call_operation(ctx_only) == "f/ctx"
    assert await call_operation(both, Box("!")) == "f/both!"
    assert await call_operation(keyword, Box("!")) == "f/keyword!"
    assert await call_operation(mapping, {"x": 1}) == {"x": 1}
    assert await call_operation(anything, [1, None]) == [1, None]


async def test_generators_are_subscriptions() -> None:
    @operation("f/iterator", access=public())
    async def iterator(box: Box) -> AsyncIterator[Box]:
        for n in range(box.size):
            yield Box(box.id, n)

    @operation("f/generator", access=public())
    async def generator() -> AsyncGenerator[int, None]:
        yield 1

    assert iterator.spec.op_type is OpType.SUBSCRIPTION
    assert iterator.output.schema["title"] == "Box"
    assert await collect_items(iterator, Box("x", 2)) == [
        {"id": "x", "size": 0},
        {"id": "x", "size": 1},
    ]
    assert await collect_items(generator) == [1]
    assert [item async for item in iterator(Box("y", 1))] == [Box("y", 0)]


async def test_methods_work_bound_and_keep_their_instance() -> None:
    class Counter:
        def __init__(self, start: int) -> None:
            self.value = start

        @operation("counter/add", access=public(), mutation=True)
        async def add(self, ctx: Context, by: int) -> int:
            """Add."""
            self.value += by
            return self.value

        @operation("counter/watch", access=public())
        async def watch(self) -> AsyncIterator[int]:
            yield self.value

        @staticmethod
        @operation("counter/static", access=public())
        async def static(by: int) -> int:
            return by

        async def plain(self, by: int) -> int:
            return self.value * by

    one, two = Counter(1), Counter(2)
    assert await call_operation(one.add, 10) == 11
    assert await call_operation(two.add, 10) == 12
    assert await collect_items(one.watch) == [11]
    assert await call_operation(operation("counter/plain", access=public())(two.plain), 2) == 24
    assert await call_operation(Counter.static, 3) == 3
    assert not Counter.add.is_bound
    assert one.add.is_bound
    assert one.add.__doc__ == "Add."


async def test_local_types_can_be_named() -> None:
    class Local(msgspec.Struct):
        x: int

    class Service:
        class Nested(msgspec.Struct):
            y: int

        @operation("local/both", access=public())
        async def both(self, value: Local) -> Nested:
            return Service.Nested(value.x)

    @operation("local/type", access=public())
    async def local(value: Local) -> Local:
        return value

    assert await call_operation(local, {"x": 1}) == {"x": 1}
    assert await call_operation(Service().both, {"x": 2}) == {"y": 2}


async def good() -> int:
    return 1


async def stream() -> AsyncIterator[int]:
    yield 1


def not_async() -> int:
    return 1


async def no_return(box: Box):  # type: ignore[no-untyped-def]  # the fault under test
    return box


async def no_annotation(box) -> int:  # type: ignore[no-untyped-def]  # the fault under test
    return 1


async def too_many(box: Box, other: Box) -> int:
    return 1


async def two_contexts(a: Context, b: Context) -> int:
    return 1


async def star(*boxes: Box) -> int:
    return 1


async def positional_only(box: Box, /) -> int:
    return 1


async def unknown_type(box: Missing) -> int:  # type: ignore[name-defined]  # noqa: F821
    return 1


async def no_json(value: complex) -> int:
    return 1


async def no_json_output() -> complex:
    return 1j


async def wrong_generator() -> int:  # type: ignore[misc]  # the fault under test
    yield 1


async def bare_generator() -> AsyncIterator:  # type: ignore[type-arg]  # the fault under test
    yield 1


async def boxed(box: Box) -> int:
    return 1


@pytest.mark.parametrize(
    ("function", "options", "says"),
    [
        (not_async, {}, "not an async function"),
        (no_return, {}, "return annotation is missing"),
        (no_annotation, {}, "'box' has no annotation"),
        (too_many, {}, "'other' is too many"),
        (two_contexts, {}, "'b' is too many"),
        (star, {}, "cannot be given by its name"),
        (positional_only, {}, "cannot be given by its name"),
        (unknown_type, {}, "'Missing', which is not known"),
        (no_json, {}, "complex has no JSON form"),
        (no_json_output, {}, "complex has no JSON form"),
        (wrong_generator, {}, "annotated AsyncIterator"),
        (bare_generator, {}, "annotated AsyncIterator"),
        (good, {"name": "/a/b"}, "no leading slash"),
        (good, {"name": "a"}, "two or more segments"),
        (good, {"name": "a//b"}, "two or more segments"),
        (good, {"name": "a/b/"}, "two or more segments"),
        (good, {"name": "a/b c"}, "two or more segments"),
        (good, {"name": "a/b\n"}, "two or more segments"),
        (good, {"name": "a/é"}, "two or more segments"),
        (good, {"name": "a/" + "b" * 65}, "two or more segments"),
        (good, {"name": "/".join(["a" * 63] * 4) + "/b"}, "at most 255 bytes"),
        (good, {"op_type": "thing"}, "not one of query, mutation, subscription"),
        (good, {"op_type": "subscription"}, "plain async function cannot be a subscription"),
        (stream, {"op_type": "query"}, "async generator cannot be a query"),
        (stream, {"mutation": True}, "async generator cannot be a mutation"),
        (good, {"op_type": "query", "mutation": True}, "both"),
        (good, {"access": None}, "no access rules"),
        (good, {"access": AccessRules()}, "without rules"),
        (good, {"access": AccessRules(public=True, scopes_all=("a",))}, "public and restricted"),
        (good, {"access": scopes("fs:*")}, "only grants may have wildcards"),
        (good, {"access": resource("box")}, "list operation without a scope"),
        (boxed, {"resource_id_path": "/id"}, "without a resource type"),
        (boxed, {"access": resource("box"), "resource_id_path": "id"}, "not a JSON Pointer"),
        (boxed, {"access": resource("box"), "resource_id_path": "/name"}, "no 'name'"),
        (boxed, {"access": resource("box"), "resource_id_path": "/size"}, "not a string"),
        (good, {"access": resource("box"), "resource_id_path": "/id"}, "no 'id'"),
        (good, {"max_duration_s": 0}, "above 0"),
        (good, {"max_duration_s": -1}, "above 0"),
        (good, {"max_duration_s": float("nan")}, "above 0"),
        (good, {"max_duration_s": float("inf")}, "above 0"),
        (good, {"errors": [ErrorSpec("A"), ErrorSpec("A")]}, "declared twice"),
        (good, {"errors": [ErrorSpec("A", details_type=complex)]}, "no JSON form"),
        (good, {"errors": [ErrorSpec("A", details_type=int)]}, "not an object"),
    ],
)
def test_bad_declarations_fail_at_once(
    function: Callable[..., Any], options: dict[str, Any], says: str
) -> None:
    declared: dict[str, Any] = {"name": "a/b", "access": public(), **options}
    with pytest.raises(LocalError, match=says) as caught:
        operation(**declared)(function)
    assert repr(declared["name"]) in str(caught.value)


def test_action_without_type_is_an_error() -> None:
    with pytest.raises(LocalError, match="without resource type"):
        AccessRules(action="open")


@pytest.mark.parametrize("make", [scopes, any_scope])
def test_scopes_need_a_scope(make: Callable[[], AccessRules]) -> None:
    with pytest.raises(LocalError, match="at least one scope"):
        make()


@pytest.mark.parametrize(
    ("code", "status", "says"),
    [
        ("lower", 422, "must match"),
        ("", 422, "must match"),
        ("A" * 65, 422, "must match"),
        ("NOT_FOUND", 404, "belongs to the protocol"),
        ("OUT", 200, "not 400 to 599"),
    ],
)
def test_bad_error_specs(code: str, status: int, says: str) -> None:
    with pytest.raises(LocalError, match=says):
        ErrorSpec(code, "", None, status)


def test_error_spec_in_full() -> None:
    @operation("a/b", access=public(), errors=[ErrorSpec("OUT_OF_STOCK", "none", Details, 409)])
    async def buy() -> None:
        raise OperationError("OUT_OF_STOCK", "sold", details=Details(0))

    assert buy.details["OUT_OF_STOCK"].schema["title"] == "Details"


def test_internal_operations_need_no_rules() -> None:
    @operation("a/b", internal=True)
    async def inner() -> None: ...

    assert inner.spec.internal
    assert inner.spec.access.is_empty


def test_names_at_the_limits() -> None:
    check_operation_name("a/" + "b" * 64)
    check_operation_name("/".join(["a" * 63] * 3) + "/" + "b" * 63)
    check_operation_name("A.b-c_9/./..")


def test_resource_id_may_be_unknowable() -> None:
    @operation("a/b", access=resource("box"), resource_id_path="/deep/id")
    async def loose(box: dict[str, Any]) -> None: ...

    assert isinstance(loose, Operation)
    assert not loose.spec.is_list
