"""Random trees of calls over three nodes, with aborts, deadlines and disconnects at any moment.

Whatever happens: every call ends exactly once, nothing of it runs on any node afterwards, and
nobody owns what was torn down. Where nothing disturbs a tree, its outcome is the one that counting
its calls by hand gives.

Trio runs as a guest under a clock that stands still, so that each step of the state machine acts on
calls that are under way.
"""

from __future__ import annotations

import math
import queue
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from functools import partial
from itertools import count
from random import Random  # noqa: TID251  seeded
from typing import Any, Generic, TypeVar, cast

import msgspec
import outcome
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from outcome import Outcome
from trio.testing import MockClock

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.dispatch import OperationDispatcher
from alknet.call.operations import operation, public, scopes
from alknet.call.peers import PeerEnvironment, PeerRef
from alknet.call.registry import Registry
from alknet.call.resources import Resources
from alknet.call.session import CallSession, open_session
from alknet.call.spec import CompositionAuthority, OperationError
from alknet.core.identity import Identity, NodeId, Peer
from alknet.core.limits import Limits
from alknet.core.ownership import OwnedResource
from alknet.stores.memory import MemoryIdentityStore
from alknet.stores.ownership import StoredOwnership
from alknet.testing.memory import memory_connection_pair
from alknet.testing.resources import open_resources
from tests.call.peers.fleet import offers
from tests.chance import seed_scheduler

NAMES = ("a", "b", "c")
LINKS = (("a", "b"), ("b", "c"), ("c", "a"))
OFFERED = ("tree/run", "tree/items")
SCOPE = "tree"
LIMITS = Limits()
# Longer than the deadline of any call, and than what is left running after its caller may take.
LONG_S = LIMITS.call_timeout_s + 10
# Nothing here waits for anything outside: if nothing is ready for so long, it hangs.
STUCK_S = 20

T = TypeVar("T")
R = TypeVar("R")
Tree = dict[str, Any]
Found = dict[str, Any] | None


# What a tree is: `run` waits, has its children run, and says where it ran and what they said.

moments = st.sampled_from((0.0, 0.5, 1.0, 2.0))


def branches(tree: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    child = st.fixed_dictionaries(
        {
            "to": st.sampled_from(("here", "any", *NAMES)),
            "how": st.sampled_from(("call", "call", "items", "left", "goes on")),
            "within": st.sampled_from((None, None, None, 0.0, 1.0)),
            "tree": tree,
        }
    )
    return st.fixed_dictionaries(
        {
            "delay": moments,
            "fails": st.just(False),
            "owns": st.booleans(),
            "together": st.booleans(),
            "children": st.lists(child, max_size=3),
        }
    )


leaves: st.SearchStrategy[Tree] = st.fixed_dictionaries(
    {
        "delay": moments,
        "fails": st.sampled_from((False, False, False, True)),
        "owns": st.booleans(),
        "together": st.just(False),
        "children": st.just([]),
    }
)
trees = st.recursive(leaves, branches, max_leaves=6)
# Hypothesis likes the small ones best: most calls from outside have children.
roots = st.one_of(branches(trees), branches(trees), leaves)


def is_calm(tree: Tree) -> bool:
    """Whether nothing in it is given up for time."""
    return all(c["within"] is None and is_calm(c["tree"]) for c in tree["children"])


def goes_on(tree: Tree) -> bool:
    """Whether a part of it may survive the rest."""
    return any(c["how"] == "goes on" or goes_on(c["tree"]) for c in tree["children"])


def check(tree: Tree, at: str, found: Found) -> None:
    """Compare what came of an undisturbed tree, asked of node *at*, with what must come."""
    if tree["fails"]:
        assert found is None
        return
    assert found is not None
    assert found["at"] == at
    assert len(found["children"]) == len(tree["children"])
    for child, came in zip(tree["children"], found["children"], strict=True):
        to = child["to"]
        if child["how"] == "left" or to == at:  # nobody is a peer of its own
            assert came is None
        elif to == "any":
            where = set(NAMES) - {at} if came is None else {came["at"]}
            assert at not in where
            check(child["tree"], where.pop(), came)
        else:
            check(child["tree"], at if to == "here" else to, came)


class World:
    """One node: its operations, its peers, and what its handlers do."""

    def __init__(self, name: str, resources: Resources, ownership: StoredOwnership) -> None:
        self.name = name
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.ids = count()
        self.resources = resources
        self.ownership = ownership
        self.environment = PeerEnvironment(NodeId(name.encode() * 32), draw=Random(0).random)
        self.dispatcher = OperationDispatcher(
            self._registry(),
            identities=MemoryIdentityStore(),
            ownership=ownership,
            limits=LIMITS,
            peers=self.environment,
            resources=resources,
        )

    @contextmanager
    def noted(self, what: str) -> Iterator[None]:
        self.begun[what] += 1
        try:
            yield
        finally:
            self.ended[what] += 1

    def _registry(self) -> Registry:
        declared: Any = {
            "access": scopes(SCOPE),
            "calls": (*OFFERED, *(f"@*/{name}" for name in OFFERED)),
            "authority": CompositionAuthority("tree", (SCOPE,)),
        }

        @operation("tree/run", mutation=True, **declared)
        async def run(ctx: Context, tree: dict[str, Any]) -> dict[str, Any]:
            with self.noted("run"):
                return await self._run(ctx, tree)

        @operation("tree/items", **declared)
        async def items(ctx: Context, tree: dict[str, Any]) -> AsyncIterator[Any]:
            with self.noted("items"):
                yield None
                yield await self._run(ctx, tree)

        @operation("node/ping", access=public())
        async def ping() -> int:
            return 0

        registry = Registry([run, items])
        registry.add(ping, builtin=True)
        return registry

    async def _run(self, ctx: Context, tree: Tree) -> dict[str, Any]:
        if tree["owns"]:
            await ctx.own("thing", f"{self.name}{next(self.ids)}", self._live)
        await trio.sleep(tree["delay"])
        if tree["fails"]:
            raise OperationError("CONFLICT", "this one fails")
        found: list[Found] = [None] * len(tree["children"])

        async def ask(index: int) -> None:
            found[index] = await self._ask(ctx, tree["children"][index])

        if tree["together"]:
            async with trio.open_nursery() as nursery:
                for index in range(len(found)):
                    nursery.start_soon(ask, index)
        else:
            for index in range(len(found)):
                await ask(index)
        return {"at": self.name, "children": found}

    async def _live(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.noted("thing"):
            task_status.started()
            await trio.sleep_forever()

    async def _ask(self, ctx: Context, child: Tree) -> Found:
        peer = None if child["to"] == "here" else PeerRef.named(child["to"])
        with suppress(CallError), trio.move_on_after(_or_inf(child["within"])):
            if child["how"] in {"call", "goes on"}:
                goes_on = child["how"] == "goes on"
                call = ctx.call("tree/run", child["tree"], peer=peer, continue_running=goes_on)
                return decoded(await call)
            async with ctx.subscribe("tree/items", child["tree"], peer=peer) as items:
                found = None
                async for item in items:
                    if child["how"] == "left":
                        return None
                    found = decoded(item)
                return found
        return None


def decoded(output: msgspec.Raw) -> Found:
    return cast("Found", msgspec.json.decode(output))


def _or_inf(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


class Root:
    """A call from outside, and what became of it."""

    def __init__(self, tree: Tree, at: str, timeout_s: float | None) -> None:
        self.tree = tree
        self.at = at
        self.timeout_s = timeout_s
        self.scope = trio.CancelScope()
        self.ends: list[Found | CallError | None] = []
        self.is_calm = timeout_s is None and is_calm(tree)

    async def run(self, session: CallSession) -> None:
        with self.scope:
            try:
                output = await session.call("tree/run", self.tree, timeout_s=self.timeout_s)
                self.ends.append(decoded(output))
            except CallError as exc:
                self.ends.append(exc)
        if self.scope.cancelled_caught:
            self.ends.append(None)


class Guest(Generic[T]):
    """Trio, run a step at a time by a thread that does other things between; its clock stands."""

    def __init__(self, living: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        """Enter *living* and keep it open until `close`."""
        self.clock = MockClock()
        self._ready: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._over: list[Outcome[None]] = []
        self._begun: list[T] = []

        async def main() -> None:
            async with trio.open_nursery() as self.nursery, living() as lives:
                self._begun.append(lives)
                self._closing = trio.Event()
                await self._closing.wait()

        trio.lowlevel.start_guest_run(
            main,
            run_sync_soon_threadsafe=self._ready.put,
            done_callback=self._over.append,
            clock=self.clock,
        )
        self._pump(self._begun)
        for over in self._over:
            over.unwrap()
        self.lives = self._begun[0]

    def do(self, job: Callable[[], Awaitable[R]]) -> R:
        """Run *job* in Trio, and what it sets off, until nothing moves any more."""
        done: list[Outcome[R]] = []

        async def run() -> None:
            result = await outcome.acapture(job)
            await trio.testing.wait_all_tasks_blocked()
            done.append(result)

        self.nursery.start_soon(run)
        self._pump(done)
        return done[0].unwrap()

    def pass_time(self, seconds: float) -> None:
        """Let so many seconds pass, and what is due in them happen in its order."""

        async def wait() -> None:
            ends_at = trio.current_time() + seconds
            while (left := ends_at - trio.current_time()) > 0:
                next_s = trio.lowlevel.current_statistics().seconds_to_next_deadline
                self.clock.jump(max(0.0, min(left, next_s)))
                await trio.testing.wait_all_tasks_blocked()

        self.do(wait)

    @property
    def is_well(self) -> bool:
        """Nothing has failed in Trio."""
        return not self._over

    def close(self) -> None:
        """Leave what was entered. Raises what went wrong in it."""
        self._closing.set()
        self._pump(self._over)
        self._over[0].unwrap()

    def _pump(self, until: Sequence[object]) -> None:
        while not until and not self._over:
            self._ready.get(timeout=STUCK_S)()


class Net:
    """The three nodes, what links them, and who calls them from outside."""

    def __init__(self, nursery: trio.Nursery, worlds: dict[str, World]) -> None:
        self.worlds = worlds
        self.roots: list[Root] = []
        self.users: dict[str, CallSession] = {}
        self.sessions: list[CallSession] = []
        self.links: dict[tuple[str, str], trio.CancelScope] = {}
        self._nursery = nursery

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncGenerator[Net]:
        peers = [Peer(name=name) for name in (*NAMES, "user")]
        async with AsyncExitStack() as stack:
            worlds = {}
            for name in NAMES:
                ownership = StoredOwnership(MemoryIdentityStore(peers), NodeId(name.encode() * 32))
                resources = await stack.enter_async_context(open_resources(ownership=ownership))
                worlds[name] = World(name, resources, ownership)
            async with trio.open_nursery() as nursery:
                net = cls(nursery, worlds)
                for name, world in worlds.items():
                    await nursery.start(world.environment.run)
                    await nursery.start(world.dispatcher.survivors.serve)
                    net.users[name] = await nursery.start(net._serve_user, world)
                for link in LINKS:
                    await net.join(link)
                yield net
                nursery.cancel_scope.cancel()

    async def call(self, root: Root) -> None:
        self.roots.append(root)
        self._nursery.start_soon(root.run, self.users[root.at])

    async def join(self, link: tuple[str, str]) -> None:
        one, two = link
        self.links[link] = await self._nursery.start(self._join, self.worlds[one], self.worlds[two])

    async def cut(self, link: tuple[str, str]) -> None:
        self.links.pop(link).cancel()

    async def _serve_user(
        self, world: World, task_status: trio.TaskStatus[CallSession] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with self._sessions(None, world, "user", "") as (session, _):
            task_status.started(session)
            await trio.sleep_forever()

    async def _join(
        self,
        one: World,
        two: World,
        task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with trio.CancelScope() as scope:
            async with self._sessions(one, two, one.name, two.name) as (ours, theirs):
                with (
                    one.environment.attach(two.name, ours) as far,
                    two.environment.attach(one.name, theirs) as near,
                ):
                    far.set_operations(ours, offers(OFFERED), "1")
                    near.set_operations(theirs, offers(OFFERED), "1")
                    task_status.started(scope)
                    await trio.sleep_forever()

    @asynccontextmanager
    async def _sessions(
        self, one: World | None, two: World, dialer: str, acceptor: str
    ) -> AsyncGenerator[tuple[CallSession, CallSession]]:
        async with memory_connection_pair(alpn="alknet/call") as (near, far):
            near.identity = Identity(f"peer:{acceptor}", (SCOPE,))
            far.identity = Identity(f"peer:{dialer}", (SCOPE,))
            dispatcher = None if one is None else one.dispatcher
            async with (
                open_session(far, two.dispatcher, limits=LIMITS) as theirs,
                open_session(near, dispatcher, limits=LIMITS) as ours,
            ):
                self.sessions += [ours, theirs]
                yield ours, theirs


class CallTrees(RuleBasedStateMachine):
    """Calls, aborts, time, cuts and new links, in any order."""

    guest: Guest[Net]
    net: Net
    has_begun = False

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        seed_scheduler(seed)
        self.guest = Guest(Net.open)
        self.net = self.guest.lives
        self.has_begun = True

    @rule(tree=roots, at=st.sampled_from(NAMES), timeout_s=st.sampled_from((None, None, 1.0)))
    def call(self, tree: Tree, at: str, timeout_s: float | None) -> None:
        root = Root(tree, at, timeout_s)
        root.is_calm &= len(self.net.links) == len(LINKS) and self.is_calm
        self.guest.do(partial(self.net.call, root))

    @rule(seconds=st.sampled_from((0.0, 0.5, 1.0, 3.0, 20.0)))
    def wait(self, seconds: float) -> None:
        self.guest.pass_time(seconds)

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        root = data.draw(st.sampled_from(self.living))

        async def cancel() -> None:
            root.is_calm = False
            root.scope.cancel()

        self.guest.do(cancel)

    @rule(link=st.sampled_from(LINKS))
    def cut_or_join(self, link: tuple[str, str]) -> None:
        is_joined = link in self.net.links
        if is_joined:
            for root in self.living:
                root.is_calm = False
        self.guest.do(partial(self.net.cut if is_joined else self.net.join, link))

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        world, what = data.draw(st.sampled_from(self.owned))
        self.guest.do(partial(world.resources.release, what.resource_type, what.resource_id))

    @property
    def owned(self) -> list[tuple[World, OwnedResource]]:
        worlds = self.net.worlds.values()
        return [(world, what) for world in worlds for what in world.ownership.recorded()]

    @property
    def living(self) -> list[Root]:
        return [root for root in self.net.roots if not root.ends]

    @property
    def is_calm(self) -> bool:
        """Whether no peer may have been ejected for what it could not help."""
        return all(peer.is_healthy for w in self.net.worlds.values() for peer in w.environment)

    @invariant()
    def each_call_ends_at_most_once(self) -> None:
        assert all(len(root.ends) <= 1 for root in self.net.roots)

    @invariant()
    def nothing_runs_for_nobody(self) -> None:
        if not self.living and not any(goes_on(root.tree) for root in self.net.roots):
            for world in self.net.worlds.values():
                assert world.begun["run"] == world.ended["run"]
                assert world.begun["items"] == world.ended["items"]

    @invariant()
    def a_resource_has_a_row_and_a_row_a_resource(self) -> None:
        for world in self.net.worlds.values():
            living = world.resources.counts().get("thing", 0)
            assert living == len(world.ownership.recorded())

    def teardown(self) -> None:
        if not self.has_begun:
            return
        try:
            if self.guest.is_well:  # else something has failed already
                self._check_quiet()
        finally:
            self.guest.close()

    def _check_quiet(self) -> None:
        net = self.net
        self.guest.pass_time(LONG_S)
        assert [len(root.ends) for root in net.roots] == [1] * len(net.roots)
        for root in net.roots:
            if root.is_calm:
                check_end(root)
        for world, what in self.owned:
            self.guest.do(partial(world.resources.release, what.resource_type, what.resource_id))
        for world in net.worlds.values():
            assert world.begun == world.ended
            assert not world.ownership.recorded()
            assert world.resources.counts() == {}
            assert [peer.in_flight for peer in world.environment] == [0] * len(world.environment)
        for session in net.sessions:
            assert not session.serving.calls
            assert not session.calling.pending


def check_end(root: Root) -> None:
    (end,) = root.ends
    if root.tree["fails"]:
        assert isinstance(end, CallError)
        assert end.code == "CONFLICT"
    else:
        assert not isinstance(end, CallError), end
        check(root.tree, root.at, end)


def test_trees_of_calls_leave_nothing_behind() -> None:
    run_state_machine_as_test(
        CallTrees,
        settings=settings(
            max_examples=50,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
