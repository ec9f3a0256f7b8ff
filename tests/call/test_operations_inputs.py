"""Operations that take a stream of items: declared, described, checked, and over real carriers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.operations import OpType, operation, public, scopes
from alknet.call.registry import Registry
from alknet.errors import LocalError
from alknet.testing.nodes import open_node_pair
from alknet.testing.operations import (
    assert_list_operations_filter,
    call_operation,
    collect_items,
    peer,
)


class Chunk(msgspec.Struct):
    data: str


class Target(msgspec.Struct):
    name: str


@operation("files/put", access=public())
async def put(ctx: Context, target: Target, chunks: AsyncIterator[Chunk]) -> str:
    """Keep what is sent."""
    return f"{target.name}={''.join([chunk.data async for chunk in chunks])} for {ctx.identity.id}"


@operation("files/upper", access=public())
async def upper(chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
    """Shout back."""
    async for chunk in chunks:
        yield Chunk(chunk.data.upper())


@operation("files/forgiving", access=public())
async def forgiving(chunks: AsyncIterator[Chunk]) -> str:
    """Go on whatever comes."""
    try:
        async for _ in chunks:
            pass
    except CallError:
        return "never mind"
    return "fine"


@operation("files/drain", access=public())
async def drain(chunks: AsyncIterator[Chunk]) -> int:
    """Count characters."""
    count = 0
    async for chunk in chunks:
        count += len(chunk.data)
    return count


OPERATIONS = (put, upper, forgiving, drain)


def test_the_signature_says_which_kind_it_is() -> None:
    assert put.spec.op_type is OpType.UPLOAD
    assert upper.spec.op_type is OpType.BIDI
    assert put.item is not None
    assert put.item.schema["properties"]["data"] == {"type": "string"}
    assert put.input.schema["properties"]["name"] == {"type": "string"}


def test_a_kind_that_does_not_fit_the_function_is_refused() -> None:
    async def takes(items: AsyncIterator[int]) -> int:
        return 0

    async def twice(items: AsyncIterator[int], more: AsyncIterator[int]) -> int:
        return 0

    async def plain() -> int:
        return 0

    with pytest.raises(LocalError, match="that takes items cannot be a query"):
        operation("a/b", access=public(), op_type="query")(takes)
    with pytest.raises(LocalError, match="that takes items cannot be a bidi"):
        operation("a/b", access=public(), op_type="bidi")(takes)
    with pytest.raises(LocalError, match="cannot be a upload"):
        operation("a/b", access=public(), op_type="upload")(plain)
    with pytest.raises(LocalError, match="cannot be a mutation"):
        operation("a/b", access=public(), mutation=True)(takes)
    with pytest.raises(LocalError, match="'more' is too many"):
        operation("a/b", access=public())(twice)


async def test_the_kit_feeds_items() -> None:
    output = await call_operation(put, {"name": "a"}, items=[Chunk("x"), {"data": "y"}])
    assert output == "a=xy for owner"
    assert await call_operation(put, {"name": "a"}) == "a= for owner"
    assert await collect_items(upper, items=[Chunk("x"), Chunk("y")]) == [
        {"data": "X"},
        {"data": "Y"},
    ]
    assert await collect_items(upper, items=[Chunk("x"), Chunk("y")], limit=1) == [{"data": "X"}]
    await assert_list_operations_filter(Registry(OPERATIONS))


async def test_an_item_of_another_shape_ends_the_call_even_if_the_handler_goes_on() -> None:
    items = [{"data": "x"}, {"data": 1}]
    for one in (forgiving, drain):
        with pytest.raises(CallError, match="INVALID_INPUT: invalid input item 1 at /data") as got:
            await call_operation(one, items=items)
        assert got.value.details == {"path": "/data", "item": 1}
    with pytest.raises(CallError, match="INVALID_INPUT"):
        await collect_items(upper, items=items)


async def test_a_generator_that_swallows_a_bad_item_ends_too() -> None:
    @operation("t/stubborn", access=public())
    async def stubborn(items: AsyncIterator[int]) -> AsyncIterator[int]:
        while True:
            try:
                yield await anext(items)
            except CallError:
                yield -1

    with pytest.raises(CallError, match="INVALID_INPUT"):
        await collect_items(stubborn, items=[1, "x"])


async def test_the_scopes_are_checked_before_any_item_is_read() -> None:
    @operation("t/secret", access=scopes("secret"))
    async def secret(items: AsyncIterator[int]) -> int:
        raise AssertionError("it must not run")

    with pytest.raises(CallError, match="FORBIDDEN"):
        await call_operation(secret, items=["not even an integer"], identity=peer("bob"))


@pytest.mark.parametrize("transport", ["quic", "tcp"])
async def test_uploads_pass_between_nodes(transport: str) -> None:
    async with (
        open_node_pair(operations=OPERATIONS) as pair,
        pair.session(transports=[transport]) as session,
    ):
        async with session.upload("files/put", {"name": "a"}) as upload:
            for letter in "xyz":
                await upload.send(Chunk(letter))
            assert bytes(await upload.finish()) == b'"a=xyz for peer:left"'
        async with session.upload("files/drain") as upload:
            for _ in range(50):
                await upload.send(Chunk("x" * 20_000))
            assert bytes(await upload.finish()) == b"1000000"
        got: list[str] = []
        async with session.bidi("files/upper") as talk, trio.open_nursery() as nursery:

            async def send() -> None:
                for n in range(300):
                    await talk.send(Chunk(f"n{n}"))
                await talk.finish()

            nursery.start_soon(send)
            got.extend([msgspec.json.decode(item)["data"] async for item in talk])
        assert got == [f"N{n}" for n in range(300)]
        async with session.upload("files/drain") as upload:
            await upload.send({"data": 1})
            with pytest.raises(CallError, match="invalid input item 0 at /data"):
                await upload.finish()
        described = await session.call_as(
            dict[str, object], "services/schema", {"name": "files/put"}
        )
        assert described["op_type"] == "upload"
        assert isinstance(described["item_schema"], dict)
        described = await session.call_as(
            dict[str, object], "services/schema", {"name": "node/ping"}
        )
        assert "item_schema" not in described


@pytest.mark.parametrize("transport", ["quic", "tcp"])
async def test_a_stuck_upload_ends_when_its_caller_leaves(transport: str) -> None:
    ended = trio.Event()

    @operation("t/stuck", access=public())
    async def stuck(items: AsyncIterator[str]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with (
        open_node_pair(operations=[stuck]) as pair,
        pair.session(transports=[transport]) as session,
    ):
        async with session.upload("t/stuck") as upload, trio.open_nursery() as nursery:
            sent = 0

            async def send() -> None:
                nonlocal sent
                while True:
                    await upload.send("x" * 60_000)
                    sent += 1

            nursery.start_soon(send)
            await session.call("node/ping")
            nursery.cancel_scope.cancel()
        with trio.fail_after(30):
            await ended.wait()
        assert await session.call("node/ping")
