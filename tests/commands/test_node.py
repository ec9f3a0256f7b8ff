"""Commands of a node: they change while it runs, and those who watch are told."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.commands.operations import command_operations
from alknet.core.config import NodeConfig
from alknet.errors import LocalError
from alknet.node import Node
from alknet.testing.nodes import open_node, open_peer_session
from tests.commands.kit import Place


def with_commands(node: Node, place: Place, **commands: str) -> NodeConfig:
    made = tuple(
        place.command(body, name=f"test/{name}", public=True) for name, body in commands.items()
    )
    return msgspec.structs.replace(node.config, commands=made)


async def test_who_watches_is_told_of_commands_that_come_and_go(place: Place) -> None:
    async with (
        open_node() as node,
        open_peer_session(node) as session,
        session.subscribe_as(dict[str, str], "services/watch") as versions,
    ):
        before = await anext(versions)
        assert node.apply(with_commands(node, place, one="echo 1")) == []
        with trio.fail_after(30):
            after = await anext(versions)
        assert after != before
        assert bytes(await session.call("test/one")) == b"1"
        node.apply(with_commands(node, place))
        with trio.fail_after(30):
            assert await anext(versions) == before
        with pytest.raises(CallError, match="NOT_FOUND"):
            await session.call("test/one")


async def test_a_call_that_runs_ends_as_it_began(place: Place) -> None:
    go = place.directory / "go"
    async with open_node() as node, open_peer_session(node) as session:
        body = f"echo '\"begun\"'; while [ ! -e {go} ]; do sleep 0.01; done; echo '\"old\"'"
        command = place.command(body, op_type="subscription", read=[str(place.directory)])
        node.apply(msgspec.structs.replace(node.config, commands=(command,)))
        async with session.subscribe("test/command") as items:
            assert bytes(await anext(items)) == b'"begun"'
            other = place.command("echo '\"new\"'", op_type="subscription")
            node.apply(msgspec.structs.replace(node.config, commands=(other,)))
            go.touch()
            assert [bytes(item) async for item in items] == [b'"old"']


LOST = "FORBIDDEN: the right to it was taken away: "


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        (None, "no operation named 'test/command'"),
        ({"scopes_all": ["other"]}, "scope 'other' missing"),
        ({"internal": True}, "no operation named 'test/command'"),
        ({"scopes_any": ["other", "jobs"], "title": "Another"}, None),
    ],
)
async def test_a_call_ends_that_its_caller_could_not_make_any_more(
    place: Place, changed: dict[str, Any] | None, refusal: str | None
) -> None:
    body = ["/bin/sh", "-c", "while echo 1; do sleep 0.01; done"]
    keys: dict[str, Any] = {"op_type": "subscription", "public": False}
    before = place.command(body, scopes_all=["jobs"], **keys)
    beside = place.command(body, name="test/beside", scopes_all=["jobs"], **keys)
    after = () if changed is None else (place.command(body, **keys, **changed),)
    async with open_node() as node, open_peer_session(node, scopes=["jobs"]) as session:
        node.apply(msgspec.structs.replace(node.config, commands=(before, beside)))
        async with (
            session.subscribe("test/command") as items,
            session.subscribe("test/beside") as others,
        ):
            for one in (items, others):
                assert bytes(await anext(one)) == b"1"
            node.apply(msgspec.structs.replace(node.config, commands=(*after, beside)))
            if refusal is None:
                await _take(items, 50)
            else:
                with pytest.raises(CallError) as caught, trio.fail_after(30):
                    await _take(items)
                assert str(caught.value) == LOST + refusal
            await _take(others, 50)


async def _take(items: AsyncIterator[Any], count: int | None = None) -> None:
    for _ in itertools.count() if count is None else range(count):
        await anext(items)


async def test_a_command_that_cannot_be_changes_nothing(place: Place) -> None:
    async with open_node() as node, open_peer_session(node) as session:
        node.apply(with_commands(node, place, one="echo 1"))
        wrong = place.command("echo 2", name="echo/unary")
        with pytest.raises(LocalError, match=r"'echo/unary': an operation of this name"):
            node.apply(msgspec.structs.replace(node.config, commands=(wrong,)))
        assert bytes(await session.call("test/one")) == b"1"


async def test_an_abort_ends_the_program_and_then_the_call(place: Place) -> None:
    async with open_node() as node, open_peer_session(node) as session:
        body = "echo $$; exec sleep 600"
        command = place.command(body, op_type="subscription")
        node.apply(msgspec.structs.replace(node.config, commands=(command,)))
        async with session.subscribe("test/command") as items:
            assert int(bytes(await anext(items)))
            assert node._commands.running
        with trio.fail_after(30):
            while node._commands.running:
                await trio.sleep(0.01)


def test_a_home_that_every_program_may_read_is_refused(place: Place) -> None:
    command = place.command("echo 1")
    wrong = msgspec.structs.replace(command, home=Path("/usr/lib/alknet"))
    with pytest.raises(LocalError, match="lies in /usr, which every command may read"):
        command_operations([wrong], place.runner)
