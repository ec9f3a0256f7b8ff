"""Whatever happens in whatever order: what runs has a row, and what has a row runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from alknet.call.codes import CallError
from alknet.call.resources import Resources
from alknet.core.identity import NodeId, Peer
from alknet.core.limits import Limits
from alknet.errors import Conflict, NotFound
from alknet.stores.memory import MemoryIdentityStore
from alknet.stores.ownership import StoredOwnership
from alknet.testing.operations import peer
from alknet.testing.resources import open_resources

LIMITS = Limits(resources=3, resources_per_identity=2)
NAMES = ("a", "b")
IDS = ("1", "2", "3")


class Step(NamedTuple):
    """What happens: to which resource, by whom, and how long it is let go on."""

    what: str
    resource: str
    who: str
    rounds: int


class World:
    """A node that starts and stops, and what runs on it."""

    def __init__(self) -> None:
        self.identities = MemoryIdentityStore([Peer(name=name) for name in NAMES])
        self.ownership = StoredOwnership(self.identities, NodeId(b"\x01" * 32))
        self.running: dict[str, trio.Event] = {}
        self.crashing: set[str] = set()
        self.removed: set[str] = set()
        self.seen: set[str] = set()

    async def run(self, steps: Sequence[Step]) -> None:
        rest = list(steps)
        while rest:
            async with open_resources(ownership=self.ownership, limits=LIMITS) as resources:
                while rest:
                    step = rest.pop(0)
                    if step.what == "restart":
                        break
                    await self.do(resources, step)
                    await wait_all_tasks_blocked()
                    self.check(resources)
            assert self.running == {}
            assert self.ownership.recorded() == []
            self.removed.clear()

    async def do(self, resources: Resources, step: Step) -> None:
        if step.what == "spawn":
            await self.spawn(resources, step)
        elif step.what == "release":
            with suppress(NotFound):
                await resources.release("job", step.resource)
        elif step.what == "replace":
            owned = self.ownership.owned(f"peer:{step.who}", "job")
            self.removed.update(owned)
            await self.identities.remove_peer(step.who)
            await self.identities.put_peer(Peer(name=step.who))
        elif step.resource in self.running:
            if step.what == "crash":
                self.crashing.add(step.resource)
            self.running[step.resource].set()

    async def spawn(self, resources: Resources, step: Step) -> None:
        """Spawn, and be cancelled after some rounds of the scheduler."""

        async def life(*, task_status: trio.TaskStatus[None]) -> None:
            end = self.running[step.resource] = trio.Event()
            try:
                await trio.lowlevel.checkpoint()
                task_status.started()
                await end.wait()
                if step.resource in self.crashing:
                    raise ZeroDivisionError
            finally:
                self.crashing.discard(step.resource)
                del self.running[step.resource]

        async def own() -> None:
            with suppress(Conflict, CallError):
                await resources.own(peer(step.who), "job", step.resource, life)
                self.seen.add("spawned")
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(own)
            for _ in range(step.rounds):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    def check(self, resources: Resources) -> None:
        rows = {row.resource_id for row in self.ownership.recorded()}
        self.removed &= set(self.running)  # what nobody owns runs on until it ends
        assert rows == set(self.running) - self.removed
        assert resources.counts() == ({"job": len(self.running)} if self.running else {})
        assert len(self.running) <= LIMITS.resources
        for name in NAMES:
            assert len(self.ownership.owned(f"peer:{name}", "job")) <= 2


STEPS = st.builds(
    Step,
    st.sampled_from(["spawn"] * 5 + ["release", "end", "crash", "replace", "restart"]),
    st.sampled_from(IDS),
    st.sampled_from(NAMES),
    st.integers(0, 12),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=12))
def test_rows_and_lives_agree_after_every_step(steps: list[Step]) -> None:
    trio.run(World().run, steps)


def test_the_steps_do_spawn() -> None:
    world = World()
    trio.run(world.run, [Step("spawn", "1", "a", 100), Step("spawn", "2", "a", 100)])
    assert world.seen == {"spawned"}
