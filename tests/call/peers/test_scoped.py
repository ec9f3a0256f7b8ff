"""Handlers that call peers: what they reach, as whom, for how long, and what a cancel leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.operations import Operation, operation, public, scopes
from alknet.call.peers import First, PeerRef
from alknet.call.retrying import RetryPolicy
from alknet.call.session import CallSession
from alknet.call.spec import CompositionAuthority
from alknet.core.identity import Identity
from alknet.errors import LocalError
from tests.call.peers.nodes import MemoryNode, chain, link

USER = Identity("key:user", ("tea:make",))


class Seen(msgspec.Struct):
    identity: str
    forwarded_for: str | None
    traceparent: str | None
    remaining_s: float


@operation("tea/who", access=public())
async def who(ctx: Context) -> Seen:
    """Say who asks."""
    origin = ctx.forwarded_for
    return Seen(
        ctx.identity.id, None if origin is None else origin.id, ctx.traceparent, ctx.remaining_s
    )


@operation("tea/brew", access=scopes("tea:brew"))
async def brew() -> str:
    """Make tea."""
    return "tea"


@operation("tea/wait", access=public())
async def wait() -> None:
    """Never end."""
    await trio.sleep_forever()


@operation("tea/pots", access=public())
async def pots() -> AsyncIterator[int]:
    """Count pots, without end."""
    n = 0
    while True:
        yield n
        n += 1


@operation("tea/cups", access=public())
async def cups() -> AsyncIterator[int]:
    """Count three cups."""
    for n in range(3):
        yield n


@operation("tea/fill", access=public())
async def fill(items: AsyncIterator[int]) -> int:
    """Add up what is poured."""
    return sum([item async for item in items])


@operation("tea/stir", access=public())
async def stir(items: AsyncIterator[int]) -> AsyncIterator[int]:
    """Give each back, twice as sweet."""
    async for item in items:
        yield 2 * item


@operation("tea/refuse", access=public())
async def refuse() -> None:
    """Say no."""
    raise CallError("CONFLICT", "the kettle is taken")


TEA = (who, brew, wait, pots, cups, fill, stir, refuse)


def handler(*calls: str, peer: PeerRef, ask: str = "tea/who") -> Operation[..., Any]:
    """Return an operation that declares *calls* and calls *ask* at *peer*."""

    @operation("head/run", access=public(), calls=calls)
    async def run(ctx: Context) -> Any:
        return msgspec.json.decode(await ctx.call(ask, peer=peer))

    return run


async def run_head(
    head: MemoryNode, *others: MemoryNode, name: str = "head/run", **options: Any
) -> Any:
    failed: CallError | None = None
    output = msgspec.Raw(b"null")
    async with chain(MemoryNode("client"), head, *others) as session:
        try:
            output = await session.call(name, **options)
        except CallError as exc:
            failed = exc
    if failed is not None:
        raise failed
    return msgspec.json.decode(output)


W1 = PeerRef.specific("w1")
ANY = PeerRef.any()


@pytest.mark.parametrize(
    ("calls", "peer", "reaches"),
    [
        (("@any/tea/who",), ANY, True),
        (("@any/tea/who",), W1, False),
        (("@w1/tea/who",), W1, True),
        (("@w1/tea/who",), ANY, False),
        (("@w2/tea/who",), W1, False),
        (("@*/tea/who",), ANY, True),
        (("@*/tea/who",), W1, True),
        (("@*/tea/brew",), W1, False),
        ((), W1, False),
    ],
)
async def test_a_handler_reaches_what_it_declares(
    calls: Sequence[str], peer: PeerRef, reaches: bool
) -> None:
    asked: list[str] = []

    @operation("head/run", access=public(), calls=calls)
    async def run(ctx: Context) -> None:
        try:
            await ctx.call("tea/who", peer=peer)
            asked.append("answered")
        except CallError as exc:
            asked.append(exc.code)

    await run_head(MemoryNode("head", [run]), MemoryNode("w1", TEA))
    assert asked == ["answered" if reaches else "NOT_FOUND"]


@pytest.mark.parametrize(("retry", "brewed"), [(RetryPolicy(first_wait_s=0.001), 1), (None, 0)])
async def test_a_handler_has_a_call_to_a_peer_tried_again(
    retry: RetryPolicy | None, brewed: int
) -> None:
    keys: list[str | None] = []

    @operation("tea/boil", access=public(), mutation=True)
    async def boil(ctx: Context) -> int:
        keys.append(ctx.idempotency_key)
        if len(keys) == 1:
            raise CallError("UNAVAILABLE", "the kettle is cold")
        return len(keys) - 1

    @operation("head/run", access=public(), calls=["@w1/tea/boil"])
    async def run(ctx: Context) -> Any:
        return msgspec.json.decode(await ctx.call("tea/boil", peer=W1, retry=retry))

    head, w1 = MemoryNode("head", [run]), MemoryNode("w1", [boil])
    if retry is None:
        with pytest.raises(CallError, match="UNAVAILABLE"):
            await run_head(head, w1)
        assert keys == [None]
    else:
        assert await run_head(head, w1) == brewed
        assert keys[0] == keys[1] is not None


async def test_a_call_on_this_node_is_not_tried_again() -> None:
    @operation("head/run", access=public(), calls=["tea/who"])
    async def run(ctx: Context) -> str:
        with pytest.raises(LocalError, match="calls to a peer"):
            await ctx.call("tea/who", retry=RetryPolicy())
        return "refused"

    assert await run_head(MemoryNode("head", [run, who])) == "refused"


async def test_the_peer_sees_this_node_and_is_told_who_asked() -> None:
    head = MemoryNode("head", [handler("@w1/tea/who", peer=W1)])
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    seen = await run_head(head, MemoryNode("w1", TEA), timeout_s=3.0, traceparent=trace)
    assert seen["identity"] == "peer:head"
    assert seen["forwarded_for"] == "peer:client"
    assert seen["traceparent"] == trace
    assert 0 < seen["remaining_s"] <= 3.0


async def test_the_first_who_asked_is_told_to_the_last() -> None:
    head = MemoryNode("head", [handler("@w1/tea/who", peer=W1)])
    seen = await run_head(head, MemoryNode("w1", TEA), forwarded_for=USER)
    assert seen["forwarded_for"] == "key:user"


async def test_neither_the_caller_nor_the_operation_lends_its_rights_to_this_node() -> None:
    authority = CompositionAuthority("brewer", scopes=("tea:brew",))
    codes: list[str] = []

    @operation("head/run", access=public(), calls=["@w1/tea/brew"], authority=authority)
    async def run(ctx: Context) -> None:
        try:
            await ctx.call("tea/brew", peer=W1)
        except CallError as exc:
            codes.append(exc.code)

    client, head, w1 = MemoryNode("client"), MemoryNode("head", [run]), MemoryNode("w1", TEA)
    async with trio.open_nursery() as nursery:
        session: CallSession = await nursery.start(link, client, head)
        async with trio.open_nursery() as inner:

            async def unprivileged(*, task_status: trio.TaskStatus[CallSession]) -> None:
                await link(head, w1, scopes=(), task_status=task_status)

            await inner.start(unprivileged)
            await session.call("head/run", forwarded_for=Identity("key:x", ("tea:brew",)))
            inner.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    assert codes == ["FORBIDDEN"]


async def test_errors_of_peers_are_those_of_children() -> None:
    """What is wrong with the handler's request is not its caller's business."""
    head = MemoryNode("head", [handler("@w1/tea/refuse", peer=W1, ask="tea/refuse")])
    with pytest.raises(CallError) as caught:
        await run_head(head, MemoryNode("w1", TEA))
    assert caught.value.code == "INTERNAL"
    with pytest.raises(CallError) as caught:
        await run_head(MemoryNode("head", [handler("@w9/tea/who", peer=PeerRef.specific("w9"))]))
    assert caught.value.code == "INTERNAL"


async def test_streams_of_all_kinds_and_batches_go_to_peers() -> None:
    found: dict[str, object] = {}

    @operation(
        "head/run",
        access=public(),
        calls=["@any/tea/pots", "@any/tea/fill", "@any/tea/stir", "@any/tea/who"],
    )
    async def run(ctx: Context) -> None:
        async with ctx.subscribe("tea/pots", peer=ANY) as items:
            found["pots"] = [msgspec.json.decode(await anext(items)) for _ in range(3)]
        async with ctx.upload("tea/fill", peer=ANY) as upload:
            for n in range(4):
                await upload.send(n)
            found["fill"] = msgspec.json.decode(await upload.finish())
        async with ctx.bidi("tea/stir", peer=ANY) as both:
            await both.send(4)
            found["stir"] = msgspec.json.decode(await anext(both))
            await both.finish()
        found["batch"] = len(await ctx.batch([("tea/who", None)] * 3, peer=ANY))

    head, w1 = MemoryNode("head", [run]), MemoryNode("w1", TEA)
    await run_head(head, w1)
    assert found == {"pots": [0, 1, 2], "fill": 6, "stir": 8, "batch": 3}
    assert head.is_idle


async def test_errors_amid_streams_are_those_of_children_too() -> None:
    @operation("head/run", access=public(), calls=["@w1/tea/pots"])
    async def run(ctx: Context) -> None:
        async with ctx.subscribe("tea/pots", {"no": "such input"}, peer=W1) as items:
            await anext(items)

    with pytest.raises(CallError) as caught:
        await run_head(MemoryNode("head", [run]), MemoryNode("w1", [refusing_pots]))
    assert caught.value.code == "INTERNAL"


@operation("tea/pots", access=public())
async def refusing_pots() -> AsyncIterator[int]:
    """Fail before the first."""
    for n in range(1):
        if n == 0:
            raise CallError("CONFLICT", "no pots")
        yield n


async def test_the_local_operation_runs_where_no_peer_takes_the_call() -> None:
    local = PeerRef.any(First(), include_local=True)

    @operation("head/run", access=public(), calls=["@any/tea/who", "tea/who", "@any/tea/stir"])
    async def run(ctx: Context) -> list[str]:
        answers = [msgspec.json.decode(await ctx.call("tea/who", peer=local), type=Seen)]
        return [answer.identity for answer in answers]

    assert await run_head(MemoryNode("head", [run, who])) == ["anonymous"]
    assert await run_head(MemoryNode("head", [run, who]), MemoryNode("w1", TEA)) == ["peer:head"]


async def test_the_local_operation_does_not_run_after_a_peer_may_have_run_its_own() -> None:
    runs: list[str] = []

    @operation("tea/lose", access=public())
    async def lose(ctx: Context) -> None:
        runs.append(ctx.identity.id)
        raise CallError("UNAVAILABLE", "who knows how far it got")

    local = PeerRef.any(include_local=True)
    calls = ("@any/tea/lose", "tea/lose")
    head = MemoryNode("head", [handler(*calls, peer=local, ask="tea/lose"), lose])
    with pytest.raises(CallError) as caught:
        await run_head(head, MemoryNode("w1", [lose]))
    assert caught.value.code == "UNAVAILABLE"
    assert runs == ["peer:head"]


def forward(name: str, peer: str, ask: str) -> Operation[..., Any]:
    @operation(name, access=public(), calls=[f"@{peer}/{ask}"])
    async def run(ctx: Context) -> None:
        await ctx.call(ask, peer=PeerRef.specific(peer))

    return run


def forward_items(name: str, peer: str, ask: str) -> Operation[..., Any]:
    @operation(name, access=public(), calls=[f"@{peer}/{ask}"])
    async def run(ctx: Context) -> AsyncIterator[Any]:
        async with ctx.subscribe(ask, peer=PeerRef.specific(peer)) as items:
            async for item in items:
                yield msgspec.json.decode(item)

    return run


def three_hops(last: str = "tea/wait") -> list[MemoryNode]:
    return [
        MemoryNode("client"),
        MemoryNode(
            "head", [forward("a/run", "hub", "b/run"), forward_items("a/go", "hub", "b/go")]
        ),
        MemoryNode("hub", [forward("b/run", "w1", last), forward_items("b/go", "w1", "tea/cups")]),
        MemoryNode("w1", TEA),
    ]


async def test_an_abort_passes_three_nodes() -> None:
    nodes = three_hops()
    async with chain(*nodes) as session:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.call, "a/run")
                await trio.testing.wait_all_tasks_blocked()
                assert [len(node.sessions[0].serving.calls) for node in nodes[1:]] == [1, 1, 1]
                scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert all(node.is_idle for node in nodes)


class CancelAfter(trio.abc.Instrument):
    """Cancels *scope* after so many steps of all tasks together."""

    def __init__(self, steps: int, scope: trio.CancelScope) -> None:
        self.left = steps
        self._scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self._scope.cancel()


@pytest.mark.parametrize("name", ["a/run", "a/go"])
async def test_a_cancel_after_any_step_leaves_nothing_on_any_of_three_nodes(name: str) -> None:
    nodes = three_hops("tea/who")

    async def run(session: CallSession) -> None:
        if name == "a/run":
            await session.call(name)
            return
        async with session.subscribe(name) as items:
            for _ in range(3):
                await anext(items)

    async with chain(*nodes) as session:
        steps, was_cancelled = 0, True
        while was_cancelled:
            steps += 1
            with trio.CancelScope() as scope:
                cancelling = CancelAfter(steps, scope)
                trio.lowlevel.add_instrument(cancelling)
                try:
                    await run(session)
                finally:
                    trio.lowlevel.remove_instrument(cancelling)
            was_cancelled = cancelling.left <= 0
            await trio.testing.wait_all_tasks_blocked()
            assert all(node.is_idle for node in nodes), f"after {steps} steps"
        assert steps > 10


@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_node_that_vanishes_ends_the_calls_on_both_sides_of_it(at: int) -> None:
    nodes = three_hops()
    async with chain(*nodes) as session, trio.open_nursery() as nursery:
        codes: list[str] = []

        async def call() -> None:
            with pytest.raises(CallError) as caught:
                await session.call("a/run")
            codes.append(caught.value.code)

        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        for lost in nodes[at].sessions:
            lost.connection.close(1, "gone")
        await trio.testing.wait_all_tasks_blocked()
        assert codes == ["UNAVAILABLE"]
        assert all(node.is_idle for node in nodes)


async def test_the_deadline_of_the_first_ends_all(autojump_clock: trio.testing.MockClock) -> None:
    nodes = three_hops()
    async with chain(*nodes) as session:
        began_at = trio.current_time()
        with pytest.raises(CallError, match="TIMEOUT"):
            await session.call("a/run", timeout_s=2.0)
        assert trio.current_time() - began_at < 4.0
        await trio.testing.wait_all_tasks_blocked()
        assert all(node.is_idle for node in nodes)


async def test_a_call_that_may_go_on_ends_at_the_peer_though_its_caller_has_left() -> None:
    ended: list[str] = []
    go_on = trio.Event()

    @operation("tea/steep", access=public())
    async def steep() -> None:
        await go_on.wait()
        ended.append("steeped")

    @operation("head/run", access=public(), calls=["@w1/tea/steep"])
    async def run(ctx: Context) -> None:
        await ctx.call("tea/steep", peer=W1, continue_running=True)

    client, head, w1 = MemoryNode("client"), MemoryNode("head", [run]), MemoryNode("w1", [steep])
    async with trio.open_nursery() as nursery, chain(client, head, w1) as session:
        await nursery.start(head.dispatcher.survivors.serve)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as calls:
                calls.start_soon(session.call, "head/run")
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert len(w1.sessions[0].serving.calls) == 1
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        assert ended == ["steeped"]
        assert head.is_idle
        nursery.cancel_scope.cancel()
