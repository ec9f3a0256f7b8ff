from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.core.endpoint.tasks import TaskNode, render, task_tree


async def leaf() -> None:
    await trio.sleep_forever()


async def branch() -> None:
    async with trio.open_nursery() as outer:
        outer.start_soon(leaf, name="first leaf")
        outer.start_soon(leaf, name="second leaf")
        async with trio.open_nursery() as inner:
            inner.start_soon(leaf, name="inner leaf")


@asynccontextmanager
async def grown(count: int = 1) -> AsyncGenerator[trio.lowlevel.Task]:
    """A task with *count* branches below it."""
    async with trio.open_nursery() as nursery:

        async def root(task_status: trio.TaskStatus[trio.lowlevel.Task]) -> None:
            async with trio.open_nursery() as branches:
                for _ in range(count):
                    branches.start_soon(branch)
                task_status.started(trio.lowlevel.current_task())

        task = await nursery.start(root, name="root")
        await wait_all_tasks_blocked()
        yield task
        nursery.cancel_scope.cancel()


def count(tree: TaskNode) -> int:
    return 1 + sum(count(child) for nursery in tree.nurseries for child in nursery)


async def test_the_tree_shows_each_nursery_of_each_task() -> None:
    async with grown() as task:
        tree = task_tree(task)
    assert tree.name == "root"
    (below,) = tree.nurseries[0]
    assert below.name == f"{__name__}.branch"
    assert [[leaf.name for leaf in nursery] for nursery in below.nurseries] == [
        ["first leaf", "second leaf"],
        ["inner leaf"],
    ]


async def test_a_task_tells_where_it_waits() -> None:
    async with grown() as task:
        tree = task_tree(task)
    inner = tree.nurseries[0][0].nurseries[1][0]
    assert inner.waits_in == f"{__name__}.leaf"


async def test_without_a_root_all_of_the_run_is_shown() -> None:
    async with grown():
        text = render(task_tree())
    assert "test_without_a_root_all_of_the_run_is_shown" in text or "inner leaf" in text
    assert "inner leaf" in text


async def test_a_large_tree_is_cut_and_says_by_how_much() -> None:
    async with grown(10) as task:
        assert count(task_tree(task)) == 41
        small = task_tree(task, max_tasks=5)
    assert count(small) == 5
    assert small.cut + sum(child.cut for child in small.nurseries[0]) > 0
    assert "more" in render(small)


async def test_a_deep_tree_is_cut() -> None:
    async def deep(levels: int) -> None:
        async with trio.open_nursery() as nursery:
            if levels:
                nursery.start_soon(deep, levels - 1)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deep, 200)
        await wait_all_tasks_blocked()
        tree = task_tree()
        nursery.cancel_scope.cancel()
    encoded = msgspec.json.encode(tree)
    assert json.loads(encoded)
    assert encoded.count(b'"cut":1') == 1


def test_people_see_a_line_per_task() -> None:
    tree = TaskNode(
        "main",
        "app.serve",
        (
            (TaskNode("a", nurseries=((TaskNode("b"),),)), TaskNode("c", "c")),
            (TaskNode("d"),),
        ),
        cut=2,
    )
    assert render(tree).splitlines() == [
        "main  (app.serve)",
        "├─ a",
        "│  └─ b",
        "├─ c",
        "├~ d",
        "└─ … 2 more",
    ]
