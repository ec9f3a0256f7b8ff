from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from alknet.call.builtin import echo_operations
from alknet.call.codes import CallError
from alknet.call.handles import CallOptions
from alknet.call.operations import operation, public
from alknet.call.proto import InputItem, encode_event
from alknet.call.reach import ANY_PEER
from alknet.call.registry import BUILTIN_NAMESPACES
from alknet.core import config_re_export
from alknet.core.identity import ANONYMOUS, OWNER, Identity
from alknet.core.limits import Limits
from alknet.testing.operations import key, peer
from tests.call.peers.calculators import USER, Seen, code_of, hub_and_worker
from tests.call.peers.federated import MemoryNode, open_world, rule
from tests.call.sessions import CARRIERS


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


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_two_strangers_never_share_a_key_at_the_next_node(carrier: str) -> None:
    seen = Seen()
    hub, worker = hub_and_worker(seen, rules=[rule("w*", "math/*")])
    async with open_world(hub, worker, carrier=carrier) as world:
        await world.link(worker, hub, back=["calc"])
        for _ in range(2):
            stranger = await world.client(hub, ANONYMOUS)
            options = CallOptions(peer=("w1",), idempotency_key="k1")
            for _ in range(2):
                await stranger.call("math/add", [1, 2], **options)
                options["forwarded_for"] = ANONYMOUS
    first, second = {ctx.idempotency_key for ctx in seen.contexts}
    assert "k1" not in {first, second}


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
    (OWNER, ("W1 ",), "math/fail", "NOT_FOUND"),
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


async def test_an_operation_that_answers_before_the_input_is_whole_is_heard() -> None:
    @operation("math/first", access=public())
    async def first(items: AsyncIterator[int]) -> int:
        return await anext(items)

    @operation("math/firsts", access=public())
    async def firsts(items: AsyncIterator[int]) -> AsyncIterator[int]:
        yield await anext(items)

    hub, worker = MemoryNode("hub", rules=[rule("w1")]), MemoryNode("w1", [first, firsts])
    async with open_world(hub, worker) as world:
        await world.link(worker, hub)
        client = await world.client(hub, peer("user"))
        async with client.upload("math/first", peer=("w1",)) as upload:
            await upload.send(7)
            await trio.testing.wait_all_tasks_blocked()
            with suppress(trio.BrokenResourceError):  # it has answered, as here it would have
                await upload.send(8)
            assert bytes(await upload.finish()) == b"7"
        async with client.bidi("math/firsts", peer=("w1",)) as both:
            await both.send(7)
            assert bytes(await anext(both)) == b"7"
            await trio.testing.wait_all_tasks_blocked()
            with suppress(trio.BrokenResourceError):
                await both.send(8)
            assert [item async for item in both] == []
        await trio.testing.wait_all_tasks_blocked()
        assert hub.calls() == worker.calls() == 0


@pytest.mark.parametrize("kind", ["upload", "bidi"])
async def test_an_item_that_cannot_be_passed_on_ends_the_call(kind: str) -> None:
    limits = Limits(frame_bytes=20_000, frame_bytes_unproven=20_000)
    hub = MemoryNode("hub", rules=[rule("w1")], limits=limits)
    worker = MemoryNode("w1", [Seen().total, Seen().double])
    async with open_world(hub, worker) as world:
        await world.link(worker, hub)
        client = await world.client(hub, peer("user"))
        for _ in range(20):  # until the ids of the hub are longer than those of its caller
            await code_of(client.call("math/sum", {}, peer=("w1",)))
        client = await world.client(hub, peer("user"))
        # The frame that is as long as it may be; the next node would get one byte more.
        empty = len(encode_event(InputItem("d1", msgspec.Raw(b'""'))))
        text = "x" * (20_000 - empty)

        async def send() -> None:
            if kind == "upload":
                async with client.upload("math/sum", peer=("w1",)) as upload:
                    await upload.send(text)
                    await upload.finish()
            else:
                async with client.bidi("math/double", peer=("w1",)) as both:
                    await both.send(text)
                    await anext(both)

        with pytest.raises(CallError, match="an item is over the frame limit"):
            await send()
        await trio.testing.wait_all_tasks_blocked()
        assert hub.calls() == worker.calls() == 0


async def test_a_peer_that_has_not_said_what_it_offers_is_worth_another_try() -> None:
    hub, worker = hub_and_worker()
    async with open_world(hub, worker) as world:
        session, _ = await world.link(worker, hub, back=["calc"])
        client = await world.client(hub, USER)
        with hub.peers.attach("w5", session):  # attached a moment ago
            with pytest.raises(CallError, match="not said yet") as caught:
                await client.call("math/add", [], peer=("w5",))
            assert caught.value.code == "UNAVAILABLE"
            assert caught.value.retryable


@pytest.mark.parametrize("name", ["math/add", "math/count"])
async def test_that_nothing_has_run_is_known_to_the_caller_too(name: str) -> None:
    hub, worker = hub_and_worker()
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        client = await world.client(hub, USER)
        worker.session("hub").serving.is_draining = True

        async def call() -> None:
            if name == "math/add":
                await client.call(name, [1], peer=("w1",))
            else:
                async with client.subscribe(name, peer=("w1",)) as items:
                    await anext(items)

        with pytest.raises(CallError, match="shutting down") as caught:
            await call()
        assert caught.value.has_not_started
        assert caught.value.details is None


async def test_the_log_says_who_calls_for_whom(caplog: pytest.LogCaptureFixture) -> None:
    hub, worker = hub_and_worker()
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        client = await world.client(hub, peer("head", "math"))
        with caplog.at_level(logging.DEBUG, "alknet.call.peers.forwarding"):
            await client.call("math/add", [], peer=("w1",), forwarded_for=USER)
    [record] = [one for one in caplog.records if one.message == "call.forwarded"]
    fields = {key: record.__dict__[key] for key in ("operation", "route", "identity", "originator")}
    assert fields == {
        "operation": "math/add",
        "route": "w1",
        "identity": "peer:head",
        "originator": "peer:user",
    }


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


@pytest.mark.parametrize("name", ["echo/unary", "echo/upload", "echo/stream", "echo/bidi"])
async def test_why_the_peer_refuses_what_it_does_not_show_is_told(name: str) -> None:
    hub, worker = (MemoryNode(node, builtin=echo_operations()) for node in ("hub", "w1"))
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        owner = await world.client(hub, OWNER)
        given = {"message": 1} if name == "echo/unary" else {"count": 1}
        assert await code_of(owner.call(name, given, peer=("w1",))) == "FORBIDDEN"


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
