"""Peers that break the rules of federation: bounded cost, a clear log, and nobody else notices."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.testing

from alknet.call.codes import CallError
from alknet.call.operations import operation, scopes
from alknet.call.peers.announce import ANNOUNCEMENTS_BURST, OFFERS_BURST
from alknet.call.peers.imports import MAX_LIST_BYTES
from alknet.call.proto import Event, Failed, Requested, Responded
from alknet.call.session import CallSession
from alknet.core.config_re_export import FederationTable
from alknet.core.contracts import CloseCode, CloseReason
from alknet.core.identity import Identity
from alknet.core.limits import Limits
from alknet.testing.memory import memory_connection_pair
from alknet.testing.operations import peer
from tests.call.peers.federated import MemoryNode, World, open_world, rule
from tests.call.sessions import Operations, RawPeer

MIB = 1024 * 1024
USER = peer("user", "math")
# What a hostile peer may make a node hold: one list as it comes, and what it is read into.
MOST_HELD = 48 * MIB


@operation("math/add", access=scopes("calc"))
async def add() -> int:
    return 1


@operation("math/count", access=scopes("calc"))
async def count() -> AsyncIterator[int]:
    n = 0
    while True:
        yield n
        n += 1


class Rig:
    """A hub with a good worker, and one that is not.

    Attributes:
        hub: Passes calls of both workers on.
        evil: What the bad worker serves; its list and versions are `listed` and `announced`.
    """

    def __init__(self, hub: MemoryNode, world: World, nursery: trio.Nursery) -> None:
        self.hub = hub
        self.world = world
        self.evil = Operations()
        self.evil.queries["services/list"] = self._list
        self.evil.subscriptions["services/watch"] = self._watch
        self.listed: bytes = b'{"operations":[],"version":"v1"}'
        self.announced: Callable[[], AsyncGenerator[object]] = self._once
        self.asked = 0
        self._nursery = nursery

    async def attach(self, limits: Limits | None = None) -> CallSession:
        """Return the hub's session with the bad worker, which has offered its operations."""
        session: CallSession = await self._nursery.start(self._hold, limits or Limits())
        return session

    async def _list(self, _given: msgspec.Raw) -> object:
        self.asked += 1
        return msgspec.Raw(self.listed)

    def _watch(self, _given: msgspec.Raw) -> AsyncGenerator[object]:
        return self.announced()

    async def _once(self) -> AsyncGenerator[object]:
        yield {"version": "v1"}
        await trio.sleep_forever()

    async def _hold(self, limits: Limits, *, task_status: trio.TaskStatus[CallSession]) -> None:
        async with memory_connection_pair(alpn="alknet/call") as (out, in_):
            in_.identity = peer("evil")
            theirs = CallSession(out, self.evil, limits=limits)
            ours = CallSession(in_, self.hub.dispatcher, limits=self.hub.config.limits)
            self.hub.sessions.setdefault("evil", []).append(ours)
            async with trio.open_nursery() as nursery:
                await nursery.start(theirs.run)
                await nursery.start(ours.run)
                await theirs.call("peers/offer")
                task_status.started(ours)


@asynccontextmanager
async def open_rig() -> AsyncGenerator[Rig]:
    """Run a hub and a good worker, which a user calls all the time."""
    hub = MemoryNode(
        "hub", rules=[rule("**", scopes=["math"])], federation=FederationTable(list_peers=True)
    )
    hub.known.add("evil")
    good = MemoryNode("good", [add])
    async with open_world(hub, good) as world, trio.open_nursery() as nursery:
        await world.link(good, hub, back=["calc"])
        client = await world.client(hub, USER)
        yield Rig(hub, world, nursery)
        assert bytes(await client.call("math/add", {}, peer=("good",))) == b"1"
        assert bytes(await client.call("math/add", {}, peer=("any",))) == b"1"
        assert hub.session("good").close_reason is None
        nursery.cancel_scope.cancel()


async def closed(session: CallSession) -> CloseReason:
    with trio.fail_after(30):
        return await session.connection.wait_closed()


def one(name: str, **more: object) -> bytes:
    return msgspec.json.encode({"name": name, "op_type": "query", **more})


def listing(*entries: bytes) -> bytes:
    return b'{"operations":[%b],"version":"v1"}' % b",".join(entries)


def many(count: int) -> bytes:
    return listing(*(b'{"name":"a/%x","op_type":"query"}' % n for n in range(count)))


def warnings(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    return [
        str(record.__dict__.get("error"))
        for record in caplog.records
        if record.message == name and record.__dict__.get("peer") == "evil"
    ]


# --- lists


@pytest.mark.parametrize(
    ("listed", "code", "error"),
    [
        (many(20_000), CloseCode.LIMIT, "20000 operations are over 10000"),
        (many(300_000), CloseCode.LIMIT, "bytes is over"),
        (listing(one("a/b", input_schema={"t": "x" * 10 * MIB})), CloseCode.LIMIT, "is over"),
        (listing(one("a/b"), one("a/b")), CloseCode.PROTOCOL, "a/b is offered twice"),
        (listing(one("a/b\x1b[2J")), CloseCode.PROTOCOL, r"has the name 'a/b\x1b[2J'"),
        (listing(one("a/b\n")), CloseCode.PROTOCOL, r"has the name 'a/b\n'"),
        (listing(one("a")), CloseCode.PROTOCOL, "has the name 'a'"),
        (b"[]", CloseCode.PROTOCOL, "not a list of operations"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_list_that_breaks_the_rules_ends_the_connection(
    listed: bytes, code: CloseCode, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_rig() as rig:
        rig.listed = listed
        with caplog.at_level(logging.WARNING, "alknet"):
            session = await rig.attach()
            reason = await closed(session)
        assert reason.code == code
        await trio.testing.wait_all_tasks_blocked()
        assert rig.hub.peers.get("evil") is None
        assert rig.asked == 1
        assert session.budget.used == 0
    [said] = warnings(caplog, "peer.broke_protocol")
    assert error in said
    assert said.isprintable()


async def test_a_million_operations_are_refused_by_the_length_of_the_frame(
    autojump_clock: trio.testing.MockClock,
) -> None:
    held = 0
    async with open_rig() as rig:
        rig.listed = many(1_000_000)
        assert len(rig.listed) > 2 * MAX_LIST_BYTES
        session = await rig.attach(Limits(frame_bytes=64 * MIB))
        for _ in range(100):
            await trio.sleep(0.1)
            held = max(held, session.budget.used)
        assert held < MIB
        assert rig.asked < 20
        attached = rig.hub.peers.get("evil")
        assert attached is None or not attached.operations


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"$ref": "http://192.0.2.1/steal"},
        {"title": "x" * 300_000},
    ],
    ids=["itself", "circle", "elsewhere", "long"],
)
async def test_a_schema_that_leads_nowhere_costs_its_operation_alone(
    schema: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_rig() as rig:
        rig.listed = listing(one("a/bad", input_schema=schema), one("a/good"))
        with caplog.at_level(logging.WARNING, "alknet"):
            session = await rig.attach()
            with trio.fail_after(30):
                while (found := rig.hub.peers.get("evil")) is None or not found.operations:
                    await rig.hub.peers.wait_changed(rig.hub.peers.version)
        assert set(found.operations) == {"a/good"}
        assert session.close_reason is None
    [record] = [one for one in caplog.records if one.message == "peer.operations_unusable"]
    assert set(record.__dict__["first"]) == {"a/bad"}


async def test_a_schema_100_000_deep_is_no_answer(autojump_clock: trio.testing.MockClock) -> None:
    async with open_rig() as rig:
        deep = b'{"not":' * 100_000 + b"true" + b"}" * 100_000
        rig.listed = listing(b'{"name":"a/b","op_type":"query","input_schema":%b}' % deep)
        session = await rig.attach()
        await trio.sleep(10)
        attached = rig.hub.peers.get("evil")
        assert attached is None or not attached.operations
        assert session.budget.used == 0
        assert rig.asked < 30


async def test_a_peer_cannot_stand_in_for_what_each_node_has_itself() -> None:
    async with open_rig() as rig:
        reserved = ["services/list", "node/ping", "vault/unlock", "peers/offer"]
        rig.listed = listing(*map(one, reserved), one("a/b"))
        await rig.attach()
        await trio.testing.wait_all_tasks_blocked()
        attached = rig.hub.peers.get("evil")
        assert attached is not None
        assert set(attached.operations) == {"a/b"}


# --- announcements


async def test_a_flood_of_announcements_costs_a_few_imports_and_then_the_connection(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    sent = 0

    async def flood() -> AsyncGenerator[object]:
        nonlocal sent
        while True:
            sent += 1
            yield {"version": f"v{sent}"}

    async with open_rig() as rig:
        rig.announced = flood
        with caplog.at_level(logging.WARNING, "alknet"):
            session = await rig.attach()
            before = trio.lowlevel.current_statistics().tasks_living
            reason = await closed(session)
        assert reason.code == CloseCode.LIMIT
        assert rig.asked <= 2
        assert trio.lowlevel.current_statistics().tasks_living <= before
    assert warnings(caplog, "peer.broke_protocol") == [
        "the peer announces changes of its operations without end"
    ]
    assert sent > ANNOUNCEMENTS_BURST


async def test_announcements_just_below_the_limit_cost_two_imports_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def steady() -> AsyncGenerator[object]:
        for n in range(1_000_000):
            yield {"version": f"v{n}"}
            await trio.sleep(0.11)

    async with open_rig() as rig:
        rig.announced = steady
        session = await rig.attach()
        await trio.sleep(60)
        assert session.close_reason is None
        assert rig.asked <= 121


async def test_watches_that_end_at_once_are_opened_rarely(
    autojump_clock: trio.testing.MockClock,
) -> None:
    opened = 0

    async def brief() -> AsyncGenerator[object]:
        nonlocal opened
        opened += 1
        yield {"version": f"v{opened}"}

    async with open_rig() as rig:
        rig.announced = brief
        await rig.attach()
        await trio.sleep(120)
        assert opened <= 600
        assert rig.asked <= 241


async def test_huge_announcements_are_none() -> None:
    async def huge() -> AsyncGenerator[object]:
        while True:
            yield {"version": "v" * MIB}

    async with open_rig() as rig:
        rig.announced = huge
        session = await rig.attach()
        assert (await closed(session)).code == CloseCode.PROTOCOL
        assert session.budget.used < MOST_HELD


# --- offers


async def test_a_flood_of_offers_attaches_once_and_is_refused() -> None:
    async with open_rig() as rig:
        session = await rig.attach()
        await trio.testing.wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        codes: list[str] = []
        async with memory_connection_pair(alpn="alknet/call") as (out, in_):
            in_.identity = peer("evil")
            theirs = CallSession(out, rig.evil, limits=Limits())
            ours = CallSession(in_, rig.hub.dispatcher, limits=rig.hub.config.limits)
            async with trio.open_nursery() as nursery:
                await nursery.start(theirs.run)
                await nursery.start(ours.run)
                for _ in range(OFFERS_BURST + 200):
                    try:
                        await theirs.call("peers/offer")
                    except CallError as exc:
                        codes.append(exc.code)
                await trio.testing.wait_all_tasks_blocked()
                living = trio.lowlevel.current_statistics().tasks_living
                attached = rig.hub.peers.get("evil")
                assert attached is not None
                assert len(attached.sessions) == 2
                nursery.cancel_scope.cancel()
        assert set(codes) == {"RESOURCE_EXHAUSTED"}
        assert len(codes) >= 200
        assert living - before < 40
        assert session.close_reason is None


# --- by hand


@asynccontextmanager
async def raw(rig: Rig, identity: Identity) -> AsyncGenerator[tuple[RawPeer, CallSession]]:
    async with (
        memory_connection_pair(alpn="alknet/call") as (out, in_),
        trio.open_nursery() as nursery,
    ):
        in_.identity = identity
        ours = CallSession(in_, rig.hub.dispatcher, limits=rig.hub.config.limits)
        await nursery.start(ours.run)
        yield RawPeer(out, await out.open_stream()), ours
        nursery.cancel_scope.cancel()


async def answer(theirs: RawPeer) -> Event | None:
    with trio.fail_after(30):
        return await theirs.receive()


async def offered(theirs: RawPeer, names: list[str]) -> None:
    """Offer *names* by hand, and answer what the hub then asks."""
    await theirs.request("d1", "peers/offer")
    assert isinstance(await answer(theirs), Responded)
    with trio.fail_after(30):
        watch = RawPeer(theirs.connection, await theirs.connection.accept_stream())
    asked = await answer(watch)
    assert isinstance(asked, Requested)
    assert asked.operation == "services/watch"
    await watch.send(Responded(asked.id, msgspec.Raw(b'{"version":"v1"}')))
    with trio.fail_after(30):
        listing_stream = RawPeer(theirs.connection, await theirs.connection.accept_stream())
    asked = await answer(listing_stream)
    assert isinstance(asked, Requested)
    assert asked.operation == "services/list"
    kinds = {"a/sum": "upload"}
    entries = [{"name": name, "op_type": kinds.get(name, "query")} for name in names]
    output = msgspec.json.encode({"operations": entries, "version": "v1"})
    await listing_stream.send(Responded(asked.id, msgspec.Raw(output)))
    await trio.testing.wait_all_tasks_blocked()


async def test_answers_to_calls_that_were_never_made_are_ignored() -> None:
    async with open_rig() as rig, raw(rig, peer("evil")) as (theirs, ours):
        await offered(theirs, ["a/b"])
        before = trio.lowlevel.current_statistics().tasks_living
        stray = await theirs.open()
        for n in range(2_000):
            await stray.send(Responded(f"a{n + 100}", msgspec.Raw(b'"%d"' % n)))
            await stray.send(Responded(f"x{n}", msgspec.Raw(b"1")))
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living <= before + 4
        assert ours.budget.used < 64 * 1024
        attached = rig.hub.peers.get("evil")
        assert ours.close_reason is not None or attached is not None


@pytest.mark.parametrize("credit", ["-1", "0", str(2**63), '"1"'])
async def test_bad_credit_for_a_call_that_is_passed_on_ends_it_where_it_runs(credit: str) -> None:
    async with open_rig() as rig, raw(rig, peer("evil", "math")) as (theirs, ours):
        counter = MemoryNode("counter", [count])
        await rig.world.link(counter, rig.hub, back=["calc"])
        await theirs.request("d7", "math/count", '"peer":["counter"],"window":1')
        assert await answer(theirs) == Responded("d7", msgspec.Raw(b"0"))
        await trio.testing.wait_all_tasks_blocked()
        assert counter.calls() == 1
        await theirs.send(f'{{"type":"call.credit","id":"d7","payload":{{"n":{credit}}}}}')
        refused = await answer(theirs)
        assert isinstance(refused, Failed)
        assert refused.code == "INVALID_INPUT"
        await trio.testing.wait_all_tasks_blocked()
        assert counter.calls() == 0
        assert ours.close_reason is None


@pytest.mark.parametrize("credit", ["-1", str(2**63)])
async def test_bad_credit_for_an_upload_to_a_peer_ends_that_call(credit: str) -> None:
    async with open_rig() as rig, raw(rig, peer("evil")) as (theirs, ours):
        await offered(theirs, ["a/sum"])
        client = await rig.world.client(rig.hub, USER)
        errors: list[str] = []

        async def upload() -> None:
            try:
                async with client.upload("a/sum", {}, peer=("evil",)) as up:
                    await up.send(1)
                    await up.finish()
            except CallError as exc:
                errors.append(str(exc))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            with trio.fail_after(30):
                stream = RawPeer(theirs.connection, await theirs.connection.accept_stream())
            asked = await answer(stream)
            assert isinstance(asked, Requested)
            await stream.send(
                f'{{"type":"call.credit","id":"{asked.id}","payload":{{"n":{credit}}}}}'
            )
        [error] = errors
        assert error.startswith("INTERNAL: the peer sent a bad answer")
        assert ours.close_reason is None


async def test_a_peer_that_never_answers_holds_nobody_but_its_callers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_rig() as rig, raw(rig, peer("evil")) as (theirs, ours):
        await offered(theirs, ["a/b"])
        client = await rig.world.client(rig.hub, USER)
        with pytest.raises(CallError) as caught:
            await client.call("a/b", {}, peer=("evil",), timeout_s=5)
        assert caught.value.code == "TIMEOUT"
        await trio.testing.wait_all_tasks_blocked()
        assert not [c for c in ours.calling.pending.values() if c.id not in _watches(ours)]


def _watches(session: CallSession) -> set[str]:
    # The watch is the oldest call that the hub has made here.
    return {min(session.calling.pending, key=lambda name: int(name[1:]))}


async def test_routes_that_a_peer_makes_up_are_not_followed() -> None:
    async with open_rig() as rig, raw(rig, peer("evil", "math")) as (theirs, ours):
        for n, route in enumerate(
            ('["good"]', '["evil"]', '["any"]', '["\\u001b"]', '["",""]', '["hub","hub"]')
        ):
            await theirs.request(f"d{n}", "node/ping", f'"peer":{route}')
            refused = await answer(theirs)
            assert isinstance(refused, Failed)
            assert refused.code == "NOT_FOUND"
        await theirs.request("d9", "math/add", '"peer":' + str(["good"] * 9).replace("'", '"'))
        refused = await answer(theirs)
        assert isinstance(refused, Failed)
        assert refused.code == "INVALID_INPUT"
        assert ours.close_reason is None
