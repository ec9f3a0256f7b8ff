"""Calls that run while the rights of who made them change."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.dispatch import OperationDispatcher
from alknet.call.handler import CallHandler
from alknet.call.operations import Operation, operation, public, resource, scopes
from alknet.call.registry import Registry
from alknet.call.session import CallSession, open_session
from alknet.core.config_re_export import ReExport
from alknet.core.contracts import Connection
from alknet.core.identity import Identity
from alknet.core.limits import Limits
from alknet.errors import Unavailable
from alknet.testing.operations import FixedOwnership, key, peer
from tests.call.peers.calculators import USER, Seen, hub_and_worker
from tests.call.peers.federated import open_world, rule
from tests.call.sessions import CARRIERS, connections, handled
from tests.call.test_handler import Tokens

both = pytest.mark.parametrize("carrier", CARRIERS)


class Job(msgspec.Struct):
    id: str = ""


JOB = resource("job", action="read", scopes_all=["jobs"])


@operation("jobs/wait", access=JOB, resource_id_path="/id")
async def wait(job: Job) -> None:
    job.id = ""  # its own affair: the check remembers what was asked for
    await trio.sleep_forever()


@operation("jobs/list", access=JOB)
async def follow(ctx: Context) -> AsyncGenerator[list[str]]:
    while True:
        yield ctx.visible("job", ["1", "2"], action="read")


@operation("open/wait", access=public())
async def wait_open() -> None:
    await trio.sleep_forever()


@operation("math/wait", access=scopes("math"))
async def wait_math() -> None:
    await trio.sleep_forever()


@operation("math/add", access=scopes("math"))
async def add(items: AsyncIterator[int]) -> int:
    return sum([item async for item in items])


@operation("math/each", access=scopes("math"))
async def each(items: AsyncIterator[int]) -> AsyncGenerator[int]:
    async for item in items:
        yield item


OPERATIONS: Sequence[Operation[..., Any]] = (
    wait,
    follow,
    wait_open,
    wait_math,
    add,
    each,
)


class Served:
    """A client and the node's side of its connection.

    Attributes:
        ended: How calls have ended, by their operation.
    """

    def __init__(self, client: CallSession, connection: Connection, tokens: Tokens) -> None:
        self.client = client
        self.connection = connection
        self.tokens = tokens
        self.ended: dict[str, str] = {}

    async def call(self, name: str, data: object = None, token: str | None = None) -> None:
        try:
            await self.client.call(name, data, token=token)
        except CallError as exc:
            self.ended[name] = str(exc)


@asynccontextmanager
async def served(
    carrier: str, identity: Identity, *, owned: Sequence[tuple[str, str, str]] = ()
) -> AsyncGenerator[Served]:
    tokens = Tokens()
    dispatcher = OperationDispatcher(
        Registry(OPERATIONS),
        identities=tokens,
        ownership=FixedOwnership(owned),
        limits=Limits(),
    )
    handler = CallHandler(dispatcher, Limits(), identities=tokens)
    async with handled(carrier, handler, identity) as (client, acceptor):
        yield Served(client, acceptor, tokens)


LOST = "FORBIDDEN: the right to it was taken away: "


@both
async def test_calls_end_that_fewer_scopes_do_not_admit_to_and_no_others(carrier: str) -> None:
    async with (
        served(carrier, peer("w1", "math", "jobs", grants=["job:1"])) as at,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(at.call, "math/wait")
        nursery.start_soon(at.call, "open/wait")
        nursery.start_soon(at.call, "jobs/wait", {"id": "1"})
        await trio.testing.wait_all_tasks_blocked()
        at.connection.become(peer("w1", "jobs", grants=["job:1"]))
        await trio.testing.wait_all_tasks_blocked()
        assert at.ended == {"math/wait": LOST + "scope 'math' missing"}
        at.connection.become(peer("w1"))
        await trio.testing.wait_all_tasks_blocked()
        assert at.ended == {
            "math/wait": LOST + "scope 'math' missing",
            "jobs/wait": LOST + "scope 'jobs' missing",
        }
        nursery.cancel_scope.cancel()


@both
async def test_streams_of_every_kind_end(carrier: str) -> None:
    async with served(carrier, peer("w1", "math", "jobs")) as at:
        async with (
            at.client.subscribe("jobs/list") as items,
            at.client.upload("math/add") as upload,
            at.client.bidi("math/each") as bidi,
        ):
            assert bytes(await anext(items)) == b"[]"
            await upload.send(1)
            await bidi.send(1)
            assert bytes(await anext(bidi)) == b"1"
            at.connection.become(peer("w1"))
            with pytest.raises(CallError, match=LOST + "scope 'jobs' missing"):
                async for _ in items:
                    pass
            with pytest.raises(CallError, match=LOST + "scope 'math' missing"):
                await upload.finish()
            with pytest.raises(CallError, match=LOST + "scope 'math' missing"):
                await anext(bidi)


# The grants and what is owned before, those after, and whether a call on job 1 goes on.
RESOURCES = [
    (["job:1"], (), ["job:1:read"], True),
    (["job:1"], (), ["job:*"], True),
    (["job:1"], (), ["job:1:write"], False),
    (["job:1"], (), ["job:2"], False),
    (["job:1"], (), [], False),
    (["job:1"], [("peer:w1", "job", "1")], [], True),
    ([], [("peer:w1", "job", "1")], [], True),
    (["job:1"], [("peer:w2", "job", "1")], [], False),
]


@pytest.mark.parametrize(("before", "owned", "after", "goes_on"), RESOURCES)
async def test_a_resource_needs_ownership_or_a_grant_still(
    before: list[str], owned: list[tuple[str, str, str]], after: list[str], goes_on: bool
) -> None:
    async with (
        served("memory", peer("w1", "jobs", grants=before), owned=owned) as at,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(at.call, "jobs/wait", {"id": "1"})
        await trio.testing.wait_all_tasks_blocked()
        at.connection.become(peer("w1", "jobs", grants=after))
        await trio.testing.wait_all_tasks_blocked()
        refusal = "neither owner of job '1' nor granted read on it"
        assert at.ended == ({} if goes_on else {"jobs/wait": LOST + refusal})
        nursery.cancel_scope.cancel()


async def test_ownership_that_cannot_be_asked_takes_nothing_away() -> None:
    class Unknown(FixedOwnership):
        is_stale = False

        def owns(self, identity_id: str, resource_type: str, resource_id: str) -> bool:
            if self.is_stale:
                raise Unavailable("stale")
            return True

    unknown = Unknown()
    tokens = Tokens()
    dispatcher = OperationDispatcher(
        Registry([wait]), identities=tokens, ownership=unknown, limits=Limits()
    )
    handler = CallHandler(dispatcher, Limits())
    async with (
        connections("memory", identity=peer("w1", "jobs", "more")) as (dialer, acceptor),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(handler.handle, acceptor)
        async with open_session(dialer) as client, trio.open_nursery() as calls:
            calls.start_soon(client.call, "jobs/wait", {"id": "1"})
            await trio.testing.wait_all_tasks_blocked()
            unknown.is_stale = True
            acceptor.become(peer("w1", "jobs"))
            await trio.testing.wait_all_tasks_blocked()
            assert len(client.calling.pending) == 1
            calls.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


async def test_what_goes_on_sees_the_rights_of_now() -> None:
    async with served("memory", peer("w1", "jobs", grants=["job:1", "job:2"])) as at:
        async with at.client.subscribe("jobs/list") as items:
            assert bytes(await anext(items)) == b'["1","2"]'
            at.connection.become(peer("w1", "jobs", grants=["job:2"]))
            with trio.fail_after(30):
                while bytes(await anext(items)) != b'["2"]':
                    pass


async def test_what_runs_for_two_sees_the_rights_of_who_is_left() -> None:
    go = trio.Event()

    @operation("jobs/look", access=scopes("jobs"), mutation=True)
    async def look(ctx: Context) -> list[str]:
        await go.wait()
        return list(ctx.identity.scopes)

    tokens = Tokens()
    dispatcher = OperationDispatcher(
        Registry([look]), identities=tokens, ownership=FixedOwnership(), limits=Limits()
    )
    handler = CallHandler(dispatcher, Limits(), identities=tokens)
    seen: list[list[str]] = []
    async with handled("memory", handler, peer("w1", "jobs", "more")) as (client, acceptor):

        async def call() -> None:
            seen.append(await client.call_as(list[str], "jobs/look", idempotency_key="k"))

        async with trio.open_nursery() as second:
            async with trio.open_nursery() as first:
                first.start_soon(call)
                await trio.testing.wait_all_tasks_blocked()
                second.start_soon(call)
                await trio.testing.wait_all_tasks_blocked()
                first.cancel_scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            acceptor.become(peer("w1", "jobs"))
            go.set()
    assert seen == [["jobs"]]


async def test_what_another_identity_runs_on_the_connection_is_left_alone() -> None:
    async with (
        served("memory", peer("w1", "math")) as at,
        trio.open_nursery() as nursery,
    ):
        at.tokens.tokens["alk_one"] = key("one", "math")
        nursery.start_soon(at.call, "math/wait", None, "alk_one")
        await trio.testing.wait_all_tasks_blocked()
        at.connection.become(peer("w1"))
        await trio.testing.wait_all_tasks_blocked()
        assert at.ended == {}
        nursery.cancel_scope.cancel()


@both
async def test_calls_under_a_token_end_when_that_may_less(carrier: str) -> None:
    async with (
        served(carrier, peer("w1", "math")) as at,
        trio.open_nursery() as nursery,
    ):
        at.tokens.tokens["alk_one"] = key("one", "math", "jobs", grants=["job:1"])
        nursery.start_soon(at.call, "math/wait", None, "alk_one")
        nursery.start_soon(at.call, "jobs/wait", {"id": "1"}, "alk_one")
        nursery.start_soon(at.call, "open/wait")
        await trio.testing.wait_all_tasks_blocked()
        at.tokens.tokens["alk_one"] = key("one", "jobs", grants=["job:1"])
        at.tokens.change()
        await trio.testing.wait_all_tasks_blocked()
        assert at.ended == {"math/wait": LOST + "scope 'math' missing"}
        nursery.cancel_scope.cancel()


@both
async def test_a_relay_ends_what_its_rules_refuse_now(carrier: str) -> None:
    seen = Seen()
    hub, worker = hub_and_worker(seen)
    handler = CallHandler(hub.dispatcher, Limits())
    async with (
        open_world(hub, worker) as world,
        connections(carrier, identity=USER) as (dialer, acceptor),
        trio.open_nursery() as nursery,
    ):
        await world.link(worker, hub, back=["calc"])
        nursery.start_soon(handler.handle, acceptor)
        async with (
            open_session(dialer) as client,
            client.subscribe("math/count", peer=("w1",)) as items,
        ):
            await anext(items)
            acceptor.become(peer("user", "math", "more"))
            for _ in range(10):
                await anext(items)
            acceptor.become(peer("user"))
            with pytest.raises(CallError, match=LOST + "scope 'math' missing"):
                async for _ in items:
                    pass
        await trio.testing.wait_all_tasks_blocked()
        assert seen.running == worker.calls() == 0  # nothing of it is left where it ran
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("rules", "refusal"),
    [((), "no operation named 'math/sleep'"), ((rule("w1", scopes=["x"]),), "scope 'x' missing")],
)
async def test_rules_of_a_relay_that_change_count_for_what_runs(
    rules: Sequence[ReExport], refusal: str
) -> None:
    seen = Seen()
    hub, worker = hub_and_worker(seen)
    handler = CallHandler(hub.dispatcher, Limits())
    async with (
        open_world(hub, worker) as world,
        connections("memory", identity=USER) as (dialer, acceptor),
        trio.open_nursery() as nursery,
    ):
        await world.link(worker, hub, back=["calc"])
        nursery.start_soon(handler.handle, acceptor)
        async with open_session(dialer) as client:

            async def end() -> None:
                await trio.testing.wait_all_tasks_blocked()
                handler.judge_again()
                await trio.testing.wait_all_tasks_blocked()
                assert seen.running == 1  # nothing has changed
                hub.federation.forwarder.rules = tuple(rules)
                handler.judge_again()

            nursery.start_soon(end)
            with pytest.raises(CallError) as caught:
                await client.call("math/sleep", peer=("w1",))
            assert str(caught.value) == LOST + refusal
        nursery.cancel_scope.cancel()
