"""Trees of calls, aborted at any time: who finishes, who is cancelled, who never starts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.operations import Operation, operation, public
from alknet.core.limits import Limits
from tests.call.nodes import open_hop

LONG = Limits(call_timeout_s=3_000)


class Tree(msgspec.Struct):
    """A call: how long it works before and after those below, and how it calls them."""

    before: int
    after: int
    is_survivor: bool
    is_together: bool
    children: list[Tree]
    path: tuple[int, ...] = ()

    def numbered(self, path: tuple[int, ...] = ()) -> Tree:
        """Return the same with each call's place in the tree."""
        below = [child.numbered((*path, n)) for n, child in enumerate(self.children)]
        return msgspec.structs.replace(self, path=path, children=below)

    def walk(self) -> Iterator[Tree]:
        yield self
        for child in self.children:
            yield from child.walk()


def _trees() -> st.SearchStrategy[Tree]:
    times = st.integers(0, 6)

    def above(below: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        return st.builds(
            Tree, times, times, st.booleans(), st.booleans(), st.lists(below, max_size=3)
        )

    leaf = st.builds(Tree, times, times, st.booleans(), st.just(False), st.just([]))
    return st.recursive(leaf, above, max_leaves=8)


class Run:
    """What became of each call, by its place in the tree."""

    def __init__(self) -> None:
        self.begun: dict[tuple[int, ...], float] = {}
        self.ended: dict[tuple[int, ...], tuple[float, str]] = {}
        self.refused: dict[tuple[int, ...], str] = {}

    def operation(self) -> Operation[..., Any]:
        @operation("t/node", access=public(), calls=["t/node"])
        async def node(ctx: Context, tree: Tree) -> None:
            assert tree.path not in self.begun
            self.begun[tree.path] = trio.current_time()
            outcome = "cancelled"
            try:
                await trio.sleep(tree.before)
                await self._below(ctx, tree)
                await trio.sleep(tree.after)
                outcome = "finished"
            finally:
                assert tree.path not in self.ended
                self.ended[tree.path] = (trio.current_time(), outcome)

        return node

    async def _below(self, ctx: Context, tree: Tree) -> None:
        async def call(child: Tree) -> None:
            try:
                await ctx.call("t/node", child, continue_running=child.is_survivor)
            except CallError as exc:
                self.refused[child.path] = exc.code

        if not tree.is_together:
            for child in tree.children:
                await call(child)
            return
        async with trio.open_nursery() as nursery:
            for child in tree.children:
                nursery.start_soon(call, child)


async def _aborted(run: Run, tree: Tree, abort_after_s: float) -> float:
    """Make the calls of *tree*, abort them, and return when."""
    async with open_hop(run.operation(), limits=LONG) as hop, hop.connect() as session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call, "t/node", tree)
            await trio.sleep(abort_after_s)
            aborted_at = trio.current_time()
            nursery.cancel_scope.cancel()
        await trio.sleep(1_000)  # long after the last of them
        assert len(hop.dispatcher.survivors) == 0
        assert hop.served[0].serving.calls == {}
    return aborted_at


@settings(max_examples=25, deadline=None)
@given(tree=_trees(), abort_after=st.integers(0, 30))
def test_every_call_of_an_aborted_tree_ends_once_as_its_policy_says(
    tree: Tree, abort_after: int
) -> None:
    run = Run()
    tree = tree.numbered()
    clock = trio.testing.MockClock(autojump_threshold=0)
    # Half a second off, so that nothing else happens at the time of the abort.
    aborted_at = trio.run(partial(_aborted, run, tree, abort_after + 0.5), clock=clock)
    survivors = {call.path for call in tree.walk() if call.is_survivor and call.path}
    assert run.begun.keys() == run.ended.keys()
    assert not run.begun.keys() & run.refused.keys()
    assert set(run.refused.values()) <= {"ABORTED"}
    for path, begun_at in run.begun.items():
        assert begun_at < aborted_at
        ended_at, outcome = run.ended[path]
        may_go_on = any(path[:n] in survivors for n in range(1, len(path) + 1))
        if ended_at < aborted_at or may_go_on:
            assert outcome == "finished"
        else:
            assert (ended_at, outcome) == (aborted_at, "cancelled")
