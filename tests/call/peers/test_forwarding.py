from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.operations import ErrorSpec, Operation, OperationError, operation, public, scopes
from alknet.call.peers.forwarding import MOST_HOPS
from alknet.call.reach import ANY_PEER
from alknet.call.registry import BUILTIN_NAMESPACES
from alknet.core import config_re_export
from alknet.core.identity import ANONYMOUS, OWNER, Identity
from alknet.core.limits import Limits
from alknet.testing.operations import key, peer
from tests.call.peers.federated import MemoryNode, open_world, rule
from tests.call.sessions import CARRIERS

USER = peer("user", "math")


class Seen:
    """Operations that remember what their handlers saw."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []
        self.running = 0
        self.sent = 0

    def operations(self) -> list[Operation[..., Any]]:
        return [
            self.add,
            self.sleep,
            self.count,
            self.total,
            self.double,
            self.fail,
            self.secret,
            self.hidden,
        ]

    @operation("math/add", access=scopes("calc"), mutation=True)
    async def add(self, ctx: Context, numbers: list[int]) -> int:
        self.contexts.append(ctx)
        return sum(numbers)

    @operation("math/sleep", access=scopes("calc"))
    async def sleep(self, ctx: Context) -> float:
        self.contexts.append(ctx)
        self.running += 1
        try:
            remaining_s = ctx.remaining_s
            await trio.sleep(3)
            return remaining_s
        finally:
            self.running -= 1

    @operation("math/count", access=scopes("calc"))
    async def count(self) -> AsyncIterator[str]:
        self.running += 1
        try:
            while True:
                self.sent += 1
                yield f"{self.sent}" + "x" * 20_000
        finally:
            self.running -= 1

    @operation("math/sum", access=scopes("calc"))
    async def total(self, items: AsyncIterator[int]) -> int:
        found = 0
        async for item in items:
            if item < 0:
                raise OperationError("INVALID_INPUT", "negative")
            found += item
        return found

    @operation("math/double", access=scopes("calc"))
    async def double(self, items: AsyncIterator[int]) -> AsyncIterator[int]:
        async for item in items:
            yield 2 * item

    @operation("math/fail", access=scopes("calc"), errors=[ErrorSpec("EMPTY")])
    async def fail(self) -> None:
        raise OperationError("EMPTY", "nothing there")

    @operation("secret/read", access=scopes("secret"))
    async def secret(self) -> str:
        return "secret"

    @operation("math/hidden", access=public(), internal=True)
    async def hidden(self) -> None: ...


def hub_and_worker(seen: Seen | None = None, **options: Any) -> tuple[MemoryNode, MemoryNode]:
    options.setdefault("rules", [rule(["w*", "any"], "math/*", scopes=["math"])])
    return MemoryNode("hub", **options), MemoryNode("w1", (seen or Seen()).operations())


async def code_of(awaitable: Any) -> str:
    with pytest.raises(CallError) as caught:
        await awaitable
    return caught.value.code


def test_what_is_named_twice_is_the_same() -> None:
    assert config_re_export.ANY_PEER == ANY_PEER
    assert config_re_export.NEVER_PASSED_ON == BUILTIN_NAMESPACES


@pytest.mark.parametrize("route", [("w1",), ("any",)])
async def test_a_call_passes_by_rule_and_runs_with_the_rights_of_the_hub(
    route: tuple[str, ...],
) -> None:
    seen = Seen()
    hub, worker = hub_and_worker(seen)
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        client = await world.client(hub, USER)
        output = await client.call(
            "math/add",
            [1, 2],
            peer=route,
            traceparent="00-11-22-01",
            idempotency_key="k1",
        )
        assert msgspec.json.decode(output) == 3
    [ctx] = seen.contexts
    assert ctx.identity == peer("hub", "calc")
    assert ctx.forwarded_for == USER
    assert ctx.traceparent == "00-11-22-01"
    assert ctx.idempotency_key == "k1"


async def test_who_speaks_for_another_does_not_get_the_answer_to_its_key() -> None:
    seen = Seen()
    hub, worker = hub_and_worker(seen)
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        victim = await world.client(hub, USER)
        thief = await world.client(hub, peer("thief", "math"))
        for _ in range(2):  # the second is answered from memory
            await victim.call("math/add", [1, 2], peer=("w1",), idempotency_key="k1")
        assert len(seen.contexts) == 1
        for _ in range(2):
            await thief.call(
                "math/add", [1, 2], peer=("w1",), idempotency_key="k1", forwarded_for=USER
            )
        assert len(seen.contexts) == 2
    assert seen.contexts[1].forwarded_for == USER
    assert seen.contexts[1].idempotency_key not in {None, "k1"}


# Caller, route, operation, and what becomes of it.
TABLE: list[tuple[Identity, tuple[str, ...], str, str]] = [
    (USER, ("w1",), "math/fail", "EMPTY"),
    (USER, ("w1",), "math/missing", "NOT_FOUND"),
    (USER, ("w1",), "math/hidden", "NOT_FOUND"),
    (USER, ("w1",), "secret/read", "NOT_FOUND"),
    (USER, ("w1",), "node/ping", "NOT_FOUND"),
    (USER, ("w1",), "services/list", "NOT_FOUND"),
    (USER, ("x1",), "math/fail", "NOT_FOUND"),
    (USER, ("w9",), "math/fail", "NOT_FOUND"),
    (USER, ("w8",), "math/fail", "UNAVAILABLE"),
    (USER, ("w1", "w2"), "math/fail", "NOT_FOUND"),
    (USER, ("W1 ",), "math/fail", "NOT_FOUND"),
    (USER, ("any",), "math/fail", "EMPTY"),
    (USER, ("any",), "math/missing", "NOT_FOUND"),
    (USER, ("any", "w1"), "math/fail", "NOT_FOUND"),
    (peer("user"), ("w1",), "math/fail", "FORBIDDEN"),
    (peer("user"), ("any",), "math/fail", "FORBIDDEN"),
    (peer("user"), ("w9",), "math/fail", "FORBIDDEN"),
    (peer("user"), ("w1",), "math/missing", "FORBIDDEN"),
    (peer("user"), ("w1",), "secret/read", "NOT_FOUND"),
    (peer("user", "*"), ("w1",), "secret/read", "NOT_FOUND"),
    (ANONYMOUS, ("w1",), "math/fail", "FORBIDDEN"),
    (ANONYMOUS, ("w1",), "secret/read", "NOT_FOUND"),
    (OWNER, ("w1",), "math/fail", "EMPTY"),
    (OWNER, ("w1",), "secret/read", "FORBIDDEN"),  # the worker's own rules, for the hub
    (OWNER, ("w1",), "math/hidden", "NOT_FOUND"),
    (OWNER, ("w8",), "math/fail", "UNAVAILABLE"),
    (OWNER, ("w9",), "math/fail", "NOT_FOUND"),
]


@pytest.mark.parametrize(("identity", "route", "name", "code"), TABLE)
async def test_who_may_pass(
    identity: Identity, route: tuple[str, ...], name: str, code: str
) -> None:
    hub, worker = hub_and_worker()
    hub.known.add("w8")
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        client = await world.client(hub, identity)
        assert await code_of(client.call(name, {}, peer=route)) == code


async def test_what_no_rule_names_looks_exactly_like_what_is_not_there() -> None:
    hub, worker = hub_and_worker()
    async with open_world(hub, worker) as world:
        await world.link(worker, hub)
        client = await world.client(hub, USER)
        errors = []
        for route in (("w1",), ("w9",), ("x",)):
            with pytest.raises(CallError) as caught:
                await client.call("secret/read", {}, peer=route)
            errors.append((str(caught.value), caught.value.retryable, caught.value.details))
        assert len(set(map(str, errors))) == 1


async def test_without_rules_nothing_passes_but_for_the_owner() -> None:
    hub, worker = hub_and_worker(rules=[])
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        for identity in (peer("user", "*", "admin:*"), key("abcdefgh", "*"), ANONYMOUS):
            client = await world.client(hub, identity)
            assert await code_of(client.call("math/add", [], peer=("w1",))) == "NOT_FOUND"
        owner = await world.client(hub, OWNER)
        assert bytes(await owner.call("math/add", [5], peer=("w1",))) == b"5"
        # Names that each node has for itself, too, and of every kind.
        listed = await owner.call("services/list", {}, peer=("w1",))
        assert b"math/add" in bytes(listed)
        async with owner.subscribe("services/watch", {}, peer=("w1",)) as versions:
            assert b"version" in bytes(await anext(versions))


async def test_one_of_several_rules_is_enough_and_rules_can_change() -> None:
    hub, worker = hub_and_worker(
        rules=[rule("w1", "math/*", scopes=["x"]), rule("w*", "math/add", scopes=["math"])]
    )
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        client = await world.client(hub, USER)
        assert bytes(await client.call("math/add", [1], peer=("w1",))) == b"1"
        assert await code_of(client.call("math/fail", {}, peer=("w1",))) == "FORBIDDEN"
        hub.federation.apply(msgspec.structs.replace(hub.config, re_exports=()))
        assert await code_of(client.call("math/add", [1], peer=("w1",))) == "NOT_FOUND"


async def test_a_token_counts_here_and_ends_here() -> None:
    seen = Seen()
    hub, worker = hub_and_worker(seen, tokens={"alk_secret": key("abcdefgh", "math")})
    async with open_world(hub, worker) as world:
        ours, _ = await world.link(worker, hub, back=["calc"])
        requests = []
        admit = worker.dispatcher.admit

        def noting(request: Any, **more: Any) -> Any:
            requests.append(request)
            return admit(request, **more)

        worker.dispatcher.admit = noting  # type: ignore[method-assign]  # to see the wire
        client = await world.client(hub, peer("nobody"))
        await client.call("math/add", [1], peer=("w1",), token="alk_secret")
        assert await code_of(client.call("math/add", [1], peer=("w1",), token="wrong")) == (
            "FORBIDDEN"
        )
        assert [request.auth_token for request in requests] == [None]
        assert ours.close_reason is None
    [ctx] = seen.contexts
    assert ctx.forwarded_for == key("abcdefgh", "math")


async def test_the_deadline_is_what_remains_and_ends_all_of_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    seen = Seen()
    hub, worker = hub_and_worker(seen)
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        client = await world.client(hub, USER)
        output = await client.call("math/sleep", peer=("w1",), timeout_s=10)
        assert 9 < msgspec.json.decode(output) <= 10
        assert await code_of(client.call("math/sleep", peer=("w1",), timeout_s=1)) == "TIMEOUT"
        await trio.testing.wait_all_tasks_blocked()
        assert seen.running == 0
        assert hub.calls() == worker.calls() == 0


async def test_an_abort_reaches_the_last_node() -> None:
    seen = Seen()
    hub, worker = hub_and_worker(seen)
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        client = await world.client(hub, USER)
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                await client.call("math/sleep", peer=("w1",))

            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            assert seen.running == 1
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert seen.running == 0
        assert hub.calls() == worker.calls() == 0


async def test_a_worker_that_is_lost_fails_its_calls_and_no_others() -> None:
    seen = Seen()
    hub, worker = hub_and_worker(seen)
    other = MemoryNode("w2", Seen().operations())
    async with open_world(hub, worker, other) as world:
        _, hubs = await world.link(worker, hub, back=["calc"])
        await world.link(other, hub, back=["calc"])
        client = await world.client(hub, USER)
        codes = []

        async def call() -> None:
            codes.append(await code_of(client.call("math/sleep", peer=("w1",))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            hubs.connection.close(1, "gone")
        assert codes == ["UNAVAILABLE"]
        assert bytes(await client.call("math/add", [2], peer=("w2",))) == b"2"
        assert bytes(await client.call("math/add", [2], peer=("any",))) == b"2"


async def test_items_pass_in_both_directions_and_all_kinds() -> None:
    hub, worker = hub_and_worker()
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        client = await world.client(hub, USER)
        async with client.upload("math/sum", {}, peer=("w1",)) as upload:
            for n in range(200):
                await upload.send(n)
            assert msgspec.json.decode(await upload.finish()) == sum(range(200))
        async with client.bidi("math/double", {}, peer=("any",)) as both:
            for n in range(20):
                await both.send(n)
                assert msgspec.json.decode(await anext(both)) == 2 * n
            await both.finish()
            assert [item async for item in both] == []
        async with client.subscribe("math/count", {}, peer=("w1",)) as items:
            first = [msgspec.json.decode(await anext(items)) for _ in range(3)]
            assert [text.rstrip("x") for text in first] == ["1", "2", "3"]
        await trio.testing.wait_all_tasks_blocked()
        assert hub.calls() == worker.calls() == 0


async def test_an_upload_that_fails_early_says_so() -> None:
    hub, worker = hub_and_worker()
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        client = await world.client(hub, USER)

        async def send_all() -> None:
            async with client.upload("math/sum", {}, peer=("w1",)) as upload:
                await upload.send(-1)
                await trio.testing.wait_all_tasks_blocked()
                await upload.finish()

        assert await code_of(send_all()) == "INVALID_INPUT"


async def test_the_wrong_way_to_call_is_told() -> None:
    hub, worker = hub_and_worker()
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        client = await world.client(hub, USER)
        wrong = "INVALID_OPERATION_TYPE"
        assert await code_of(client.call("math/count", {}, peer=("w1",))) == wrong
        assert await code_of(client.call("math/sum", {}, peer=("w1",))) == wrong

        async def subscribe() -> None:
            async with client.subscribe("math/add", [1], peer=("w1",)) as items:
                await anext(items)

        assert await code_of(subscribe()) == wrong


async def test_a_caller_that_does_not_read_holds_back_the_producer() -> None:
    seen = Seen()
    limits = Limits(
        stream_receive_window_bytes=16 * 1024,
        connection_receive_window_bytes=64 * 1024,
        subscription_window=8,
    )
    hub, worker = hub_and_worker(seen, limits=limits)
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        client = await world.client(hub, USER)
        async with client.subscribe("math/count", {}, peer=("w1",)) as items:
            await anext(items)
            await trio.testing.wait_all_tasks_blocked()
            held, made = hub.session("w1").budget.used, seen.sent
            await trio.testing.wait_all_tasks_blocked()
            assert seen.sent == made  # it stands still
            assert held < 2 * 1024 * 1024
            for _ in range(made + 10):
                await anext(items)
            assert seen.sent > made


# --- several hops


def chain(count: int, *, seen: Seen) -> list[MemoryNode]:
    """Return nodes of which each passes everything on to the next; the last has operations."""
    nodes = [MemoryNode(f"n{n}", rules=[rule("**", scopes=["pass"])]) for n in range(1, count)]
    return [*nodes, MemoryNode(f"n{count}", seen.operations(), rules=[rule("**")])]


async def test_each_hop_checks_the_one_before_and_the_originator_rides_along() -> None:
    seen = Seen()
    head, hub, worker = chain(3, seen=seen)
    async with open_world(head, hub, worker) as world:
        await world.link(head, hub, scopes=["pass"])
        await world.link(worker, hub, back=["calc"])
        client = await world.client(head, peer("user", "pass"))
        route = ("n2", "n3")
        assert bytes(await client.call("math/add", [1, 1], peer=route)) == b"2"
        [ctx] = seen.contexts
        assert ctx.identity == peer("n2", "calc")
        assert ctx.forwarded_for == peer("user", "pass")
        # Rights at one hop are none at the next: the user's scopes do not travel.
        stranger = await world.client(head, peer("user", "calc"))
        assert await code_of(stranger.call("math/add", [1], peer=route)) == "FORBIDDEN"
    for scopes_at_hub, scopes_at_worker, code in (
        (["x"], ["calc"], "FORBIDDEN"),
        (["pass"], ["x"], "NOT_FOUND"),  # the hub does not even see what it may not call
    ):
        seen = Seen()
        head, hub, worker = chain(3, seen=seen)
        async with open_world(head, hub, worker) as world:
            await world.link(head, hub, scopes=scopes_at_hub)
            await world.link(worker, hub, back=scopes_at_worker)
            client = await world.client(head, peer("user", "pass", "calc"))
            assert await code_of(client.call("math/add", [1], peer=route)) == code
            assert not seen.contexts


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_all_kinds_pass_several_hops(carrier: str) -> None:
    seen = Seen()
    head, hub, worker = chain(3, seen=seen)
    async with open_world(head, hub, worker, carrier=carrier) as world:
        await world.link(head, hub)
        await world.link(worker, hub)
        client = await world.client(head, peer("user", "*"))
        route = ("n2", "n3")
        async with client.upload("math/sum", {}, peer=route) as upload:
            for n in range(100):
                await upload.send(n)
            assert msgspec.json.decode(await upload.finish()) == sum(range(100))
        async with client.bidi("math/double", {}, peer=route) as both:
            await both.send(21)
            assert msgspec.json.decode(await anext(both)) == 42
        async with client.subscribe("math/count", {}, peer=route) as items:
            assert b"1x" in bytes(await anext(items))
        assert await code_of(client.call("math/fail", {}, peer=route)) == "EMPTY"
        await trio.testing.wait_all_tasks_blocked()
        assert seen.running == head.calls() == hub.calls() == worker.calls() == 0


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_caller_three_hops_away_holds_back_the_producer(carrier: str) -> None:
    seen = Seen()
    head, hub, worker = chain(3, seen=seen)
    async with open_world(head, hub, worker, carrier=carrier) as world:
        await world.link(head, hub)
        await world.link(worker, hub)
        client = await world.client(head, peer("user", "*"))
        async with client.subscribe("math/count", {}, peer=("n2", "n3")) as items:
            await anext(items)
            await trio.testing.wait_all_tasks_blocked()
            made = seen.sent
            await trio.testing.wait_all_tasks_blocked()
            assert seen.sent == made
            for node in (head, hub, worker):
                for sessions in node.sessions.values():
                    assert sum(session.budget.used for session in sessions) < 8 * 1024 * 1024
        await trio.testing.wait_all_tasks_blocked()
        assert seen.running == 0


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_an_operation_three_hops_away_that_takes_nothing_holds_back_its_caller(
    carrier: str,
) -> None:
    go = trio.Event()

    @operation("math/drain", access=public())
    async def drain(items: AsyncIterator[str]) -> int:
        await go.wait()
        return len([item async for item in items])

    head, hub = chain(3, seen=Seen())[:2]
    worker = MemoryNode("n3", [drain])
    async with open_world(head, hub, worker, carrier=carrier) as world:
        await world.link(head, hub)
        await world.link(worker, hub)
        client = await world.client(head, peer("user", "*"))
        sent = 0
        async with client.upload("math/drain", peer=("n2", "n3")) as upload:
            with trio.move_on_after(60) as sending:

                async def send_all() -> None:
                    nonlocal sent
                    while True:
                        await upload.send("x" * 20_000)
                        sent += 1

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send_all)
                    await trio.testing.wait_all_tasks_blocked()
                    before = sent
                    await trio.testing.wait_all_tasks_blocked()
                    assert sent == before > 0  # it stands still
                    nursery.cancel_scope.cancel()
            assert not sending.cancelled_caught
            for node in (head, hub, worker):
                for sessions in node.sessions.values():
                    assert sum(session.budget.used for session in sessions) < 8 * 1024 * 1024
            go.set()
            assert msgspec.json.decode(await upload.finish()) == sent


@pytest.mark.parametrize("hops", [1, 7, 8])
async def test_eight_hops_are_the_most(hops: int) -> None:
    seen = Seen()
    nodes = chain(hops + 1, seen=seen)
    async with open_world(*nodes) as world:
        for here, there in pairwise(nodes):
            await world.link(here, there)
        client = await world.client(nodes[0], peer("user", "*"))
        route = tuple(node.name for node in nodes[1:])
        assert bytes(await client.call("math/add", [1, 1], peer=route)) == b"2"


async def test_a_ninth_hop_is_refused() -> None:
    seen = Seen()
    nodes = chain(3, seen=seen)
    async with open_world(*nodes) as world:
        await world.link(nodes[0], nodes[1])
        await world.link(nodes[1], nodes[2])
        client = await world.client(nodes[0], peer("user", "*"))
        # A route may be eight long, and the request may have come a long way before.
        with pytest.raises(CallError, match="INVALID_INPUT"):
            await client.call("math/add", [1], peer=("n2",) * (MOST_HOPS + 1))
        passed = tuple(f"p{n}" for n in range(MOST_HOPS))
        with pytest.raises(CallError, match="has passed 8 nodes"):
            await client.call("math/add", [1], peer=("n2", "n3"), path=passed)
        with pytest.raises(CallError, match="has passed 8 nodes"):  # refused by the second
            await client.call("math/add", [1], peer=("n2", "n3"), path=passed[1:])
        output = await client.call("math/add", [1], peer=("n2", "n3"), path=passed[2:])
        assert bytes(output) == b"1"
        assert len(seen.contexts) == 1


async def test_a_loop_is_refused_where_it_closes() -> None:
    seen = Seen()
    one, two, three = chain(3, seen=seen)
    async with open_world(one, two, three) as world:
        await world.link(one, two)
        await world.link(two, three)
        await world.link(three, one)
        client = await world.client(one, peer("user", "*"))
        for route in (("n2", "n1", "n3"), ("n2", "n3", "n1", "n2"), ("n2", "n1", "n2", "n1")):
            with pytest.raises(CallError, match="comes back") as caught:
                await client.call("math/add", [1], peer=route)
            assert caught.value.code == "INVALID_INPUT"
        assert bytes(await client.call("math/add", [1], peer=("n2", "n3"))) == b"1"


async def test_what_a_peer_may_not_pass_on_it_cannot_pass_by_saying_so() -> None:
    # The route, the path and the originator are the caller's words; none of them is authority.
    hub, worker = hub_and_worker()
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        client = await world.client(hub, peer("user"))
        assert (
            await code_of(
                client.call(
                    "math/add", [1], peer=("w1",), path=(), forwarded_for=Identity("owner", ("*",))
                )
            )
            == "FORBIDDEN"
        )
