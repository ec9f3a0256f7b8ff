"""Requests, aborts and ends in any order: a shared run runs once, and nothing of it is left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import msgspec
import trio
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.codes import CallError, ErrorCode
from alknet.call.idempotency import CallKey
from alknet.call.sharing import KeyedCall, RepeatedCalls
from alknet.core.identity import Identity
from alknet.core.limits import Limits

KEYS = "kl"
INPUTS = (b"1", b"2")

Step = tuple[str, str, bytes, int]

asks = st.tuples(st.just("ask"), st.sampled_from(KEYS), st.sampled_from(INPUTS), st.just(0))
leaves = st.tuples(st.just("leave"), st.just(""), st.just(b""), st.integers(0, 9))
ends = st.tuples(
    st.sampled_from(["succeed", "refuse", "busy"]),
    st.sampled_from(KEYS),
    st.just(b""),
    st.just(0),
)


class World:
    """Handlers that end when they are told to, and the callers that wait for them.

    Attributes:
        running: What ends the handlers that run, by key.
        began: How many have begun, by key.
        lasting: The input and the answer that a key must have from now on.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.repeated = RepeatedCalls(Limits)
        self.running: dict[str, trio.Event] = {}
        self.how: dict[str, str] = {}
        self.began = dict.fromkeys(KEYS, 0)
        self.lasting: dict[str, tuple[bytes, str]] = {}
        self.callers: list[Caller] = []
        self._nursery = nursery

    def ask(self, key: str, data: bytes) -> None:
        caller = Caller(self, key, data)
        self.callers.append(caller)
        self._nursery.start_soon(caller.run)

    def spawn(self, task: Callable[..., Awaitable[object]], *args: object, name: str) -> None:
        self._nursery.start_soon(task, *args, name=name)

    def leave(self, number: int) -> None:
        waiting = self.waiting
        if waiting:
            waiting[number % len(waiting)].scope.cancel()

    def end(self, how: str, key: str) -> None:
        if key in self.running:
            self.how[key] = how
            self.running[key].set()

    @property
    def waiting(self) -> list[Caller]:
        return [caller for caller in self.callers if caller.outcome is None]

    def check(self) -> None:
        """All tasks are blocked: each caller who waits waits for a handler that runs."""
        for caller in self.waiting:
            assert caller.key in self.running
            assert caller.key not in self.lasting
        assert self.running.keys() == {caller.key for caller in self.waiting}
        assert len(self.repeated) == len(self.running)
        assert len(self.repeated.answers) == len(self.lasting)


class Caller:
    """One request; how it ended."""

    def __init__(self, world: World, key: str, data: bytes) -> None:
        self.world = world
        self.key = key
        self.data = data
        self.scope = trio.CancelScope()
        self.outcome: str | None = None

    async def run(self) -> None:
        key = CallKey("peer:w1", None, None, self.key)
        call = KeyedCall(key, self.data, "shop/buy", Handler(self), self.world.spawn)
        answer = self.world.lasting.get(self.key)
        outcome = "left"
        with self.scope:
            try:
                outcome = (await self.world.repeated.run(call)).decode()
            except CallError as exc:
                outcome = exc.code
        self.outcome = outcome
        if answer is not None:
            assert outcome == (answer[1] if answer[0] == self.data else "CONFLICT")


class Handler:
    """An admitted mutation, which waits to be told how it ends."""

    op_type = "mutation"
    timeout_s = None
    identity = Identity("peer:w1")
    used_token = large_output = False

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def readmit(self, identity: Identity) -> None:
        raise NotImplementedError

    def feed(self, items: AsyncIterator[msgspec.Raw]) -> None:
        raise NotImplementedError

    def stream(self) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        raise NotImplementedError

    async def run(self) -> bytes:
        world, key = self._caller.world, self._caller.key
        assert key not in world.running, "two runs of one key at once"
        assert key not in world.lasting, "a second run after an answer"
        world.began[key] += 1
        world.running[key] = trio.Event()
        try:
            await world.running[key].wait()
        finally:
            del world.running[key]
        how = world.how[key]
        if how == "busy":
            raise CallError(ErrorCode.UNAVAILABLE, "busy")
        output = f"run {world.began[key]}"
        world.lasting[key] = (self._caller.data, output if how == "succeed" else "SOLD_OUT")
        if how == "refuse":
            raise CallError("SOLD_OUT", "no tea")
        return output.encode()


@given(st.lists(st.one_of(asks, asks, leaves, ends), max_size=25))
def test_what_is_shared_runs_once_at_a_time_and_nothing_is_left(steps: list[Step]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = World(nursery)
            for what, key, data, number in steps:
                began = dict(world.began)
                if what == "ask":
                    world.ask(key, data)
                elif what == "leave":
                    world.leave(number)
                else:
                    world.end(what, key)
                await trio.testing.wait_all_tasks_blocked()
                world.check()
                assert what == "ask" or world.began == began
            for caller in world.waiting:
                caller.scope.cancel()
        assert not world.waiting
        assert not world.running
        assert len(world.repeated) == 0

    trio.run(main)
