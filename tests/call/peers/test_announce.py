from __future__ import annotations

import gc
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.testing

from alknet.call.codes import CallError
from alknet.call.peers import imports as imports_module
from alknet.call.peers.announce import (
    ANNOUNCEMENTS_BURST,
    MOST_REMEMBERED_BYTES,
    OFFERS_BURST,
    REIMPORT_BYTES_PER_S,
    REIMPORT_S,
    ImportMemory,
    follow_operations,
    offer_operation,
)
from alknet.call.peers.attached import AttachedPeer
from alknet.call.peers.environment import PeerEnvironment
from alknet.call.peers.imports import Imports
from alknet.call.session import CallSession
from alknet.core.contracts import CloseCode
from alknet.core.identity import ANONYMOUS, OWNER, Identity, NodeId
from alknet.testing.operations import call_operation, key, peer
from tests.call.sessions import Operations, is_idle, session_pair


class Peer:
    """A peer whose operations are those in `names`, under the version that it last announced."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.announce, self._announced = trio.open_memory_channel[str](1000)
        self.version = "v1"
        self.imports = 0
        self.operations = Operations()
        self.operations.queries["services/list"] = self._list
        self.operations.subscriptions["services/watch"] = self._watch

    def change(self, *names: str, version: str) -> None:
        self.names, self.version = names, version
        self.announce.send_nowait(version)

    def listed(self) -> object:
        operations = [{"name": name, "op_type": "query"} for name in self.names]
        return {"operations": operations, "version": self.version}

    async def _list(self, _given: msgspec.Raw) -> object:
        self.imports += 1
        return self.listed()

    async def _watch(self, _given: msgspec.Raw) -> AsyncGenerator[object]:
        yield {"version": self.version}
        async for version in self._announced:
            yield {"version": version}


@asynccontextmanager
async def following(
    other: Peer, memory: ImportMemory | None = None
) -> AsyncGenerator[tuple[AttachedPeer, CallSession]]:
    environment = PeerEnvironment()
    async with session_pair("memory", other.operations) as (session, _):
        with environment.attach("w1", session) as attached:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow_operations, attached, session, memory)
                yield attached, session
                nursery.cancel_scope.cancel()
        assert await is_idle(session)


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_two_round_trips_tell_what_a_peer_offers() -> None:
    other = Peer("m/a", "m/b", "node/ping")
    async with following(other) as (attached, _):
        await settled()
        assert set(attached.operations) == {"m/a", "m/b"}
        assert attached.operations_version == "v1"
        assert len(other.operations.requests) == 2


async def test_a_change_is_followed_within_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    other = Peer("m/a")
    async with following(other) as (attached, _):
        await trio.sleep(10)
        other.change("m/b", version="v2")
        await trio.sleep(0.01)
        assert set(attached.operations) == {"m/b"}
        other.change("m/c", version="v3")
        await trio.sleep(REIMPORT_S + 0.01)
        assert set(attached.operations) == {"m/c"}


async def test_many_changes_are_one(autojump_clock: trio.testing.MockClock) -> None:
    other = Peer("m/a")
    async with following(other) as (attached, session):
        await trio.sleep(10)
        for n in range(100):
            other.change(f"m/n{n}", version=f"n{n}")
        await trio.sleep(5)
        assert set(attached.operations) == {"m/n99"}
        assert other.imports <= 3
        assert session.close_reason is None


async def test_a_state_that_lasted_only_while_it_was_imported_is_not_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    other = Peer("m/a")

    async def changed_and_back(given: msgspec.Raw) -> object:
        # It changes before it answers, and back before its watch has said so.
        is_first = other.imports == 0
        other.names, other.version = (("m/b",), "v2") if is_first else (("m/a",), "v1")
        return await other._list(given)

    other.operations.queries["services/list"] = changed_and_back
    async with following(other) as (attached, _):
        await trio.sleep(0.01)
        assert set(attached.operations) == {"m/b"}
        assert attached.operations_version == "v2"
        await trio.sleep(REIMPORT_S)
        assert set(attached.operations) == {"m/a"}
        assert attached.operations_version == "v1"
        await trio.sleep(10)
        assert other.imports == 2


async def test_a_state_that_was_imported_before_it_was_announced_is_not_imported_twice(
    autojump_clock: trio.testing.MockClock,
) -> None:
    other = Peer("m/a")

    async def changed(given: msgspec.Raw) -> object:
        other.names, other.version = ("m/b",), "v2"
        return await other._list(given)

    other.operations.queries["services/list"] = changed
    async with following(other) as (attached, _):
        await trio.sleep(0.01)
        other.announce.send_nowait("v2")
        await trio.sleep(10)
        assert (attached.operations_version, other.imports) == ("v2", 1)


async def test_the_same_version_again_imports_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    other = Peer("m/a")
    async with following(other) as _:
        for _ in range(5):
            other.announce.send_nowait("v1")
            await trio.sleep(1)
        assert other.imports == 1


async def test_a_long_list_is_imported_less_often(
    autojump_clock: trio.testing.MockClock,
) -> None:
    # Stays below what is read in a thread, of which an autojump clock knows nothing.
    other = Peer(*(f"m/{'x' * 50}{n}" for n in range(1_000)))
    size_bytes = len(msgspec.json.encode(other.listed()))
    async with following(other) as _:
        await trio.sleep(0.01)
        for n in range(40):
            other.announce.send_nowait(f"n{n}")
            await trio.sleep(1)
        assert other.imports * size_bytes <= 41 * REIMPORT_BYTES_PER_S


async def test_a_peer_that_comes_back_the_same_is_not_asked_again() -> None:
    memory = ImportMemory()
    other = Peer("m/a")
    for _ in range(3):
        async with following(other, memory) as (attached, _):
            await settled()
            assert set(attached.operations) == {"m/a"}
    assert other.imports == 1
    other.version = "v2"
    async with following(other, memory) as _:
        await settled()
    assert other.imports == 2


async def test_the_version_of_one_peer_says_nothing_of_another() -> None:
    memory = ImportMemory()
    imports = Imports({}, version="v1", left_out=0, unusable={}, size_bytes=10)
    memory.remember("w1", None, imports)
    assert memory.recall("w2", None, "v1") is None
    assert memory.recall("w1", peer_key(), "v1") is None
    assert memory.recall("w1", None, "v1") is imports


def test_what_is_remembered_is_bounded_and_what_is_shared_counts_once() -> None:
    memory = ImportMemory()
    shared = Imports({}, version="v", left_out=0, unusable={}, size_bytes=1000)
    for n in range(100):
        memory.remember(f"s{n}", None, shared)
    assert memory.size_bytes == 1000
    large = MOST_REMEMBERED_BYTES // 10
    for n in range(30):
        one = Imports({}, version=f"v{n}", left_out=0, unusable={}, size_bytes=large)
        memory.remember("w", None, one)
        memory.remember(f"w{n}", None, one)
        assert memory.size_bytes <= MOST_REMEMBERED_BYTES
    assert 9 <= len(memory) <= 11


async def test_a_peer_that_serves_no_list_stays_attached_and_offers_nothing() -> None:
    other = Peer()
    del other.operations.subscriptions["services/watch"]
    async with following(other) as (attached, session):
        await settled()
        assert attached.operations == {}
        assert session.close_reason is None


async def test_what_all_peers_offer_is_bounded_and_the_next_has_to_wait(
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gc.collect()
    held = sum(one.size_bytes for one in imports_module._KNOWN.values())
    monkeypatch.setattr(imports_module, "MAX_ALL_BYTES", held + 100)
    first, same, other = Peer("bound/a"), Peer("bound/a"), Peer("bound/b")
    async with following(first) as (one, _):
        await trio.sleep(1)
        assert set(one.operations) == {"bound/a"}
        async with following(same) as (two, _):
            await trio.sleep(1)
            assert two.operations is one.operations  # which takes no more
        with caplog.at_level(logging.WARNING, "alknet"):
            async with following(other) as (three, session):
                await trio.sleep(60)
                assert three.operations == {}
                assert session.close_reason is None
                assert other.imports < 30
                monkeypatch.setattr(imports_module, "MAX_ALL_BYTES", held + 1_000)
                await trio.sleep(60)
                assert set(three.operations) == {"bound/b"}
    assert "peer.unwatched" in [record.message for record in caplog.records]


async def test_a_watch_that_ends_is_opened_again(autojump_clock: trio.testing.MockClock) -> None:
    other = Peer("m/a")

    async def once(_given: msgspec.Raw) -> AsyncGenerator[object]:
        yield {"version": other.version}

    other.operations.subscriptions["services/watch"] = once
    async with following(other) as (attached, _):
        await trio.sleep(1)
        other.names, other.version = ("m/b",), "v2"
        await trio.sleep(60)
        assert set(attached.operations) == {"m/b"}
        assert other.imports == 2
        assert len(other.operations.requests) < 70


async def test_a_drain_does_not_wait_for_the_watch() -> None:
    other = Peer("m/a")
    async with following(other) as (_, session):
        await settled()
        session.connection.draining.set()
        await settled()
        assert not session.calling.pending


@pytest.mark.parametrize(
    ("item", "code"),
    [
        ({}, CloseCode.PROTOCOL),
        ({"version": 7}, CloseCode.PROTOCOL),
        ({"version": ""}, CloseCode.PROTOCOL),
        ({"version": "a\x1b[0m"}, CloseCode.PROTOCOL),
        ({"version": "v" * 10_000}, CloseCode.PROTOCOL),
        ([], CloseCode.PROTOCOL),
    ],
)
async def test_an_announcement_that_is_none_ends_the_connection(
    item: object, code: CloseCode, caplog: pytest.LogCaptureFixture
) -> None:
    other = Peer("m/a")

    async def nonsense(_given: msgspec.Raw) -> AsyncGenerator[object]:
        yield item

    other.operations.subscriptions["services/watch"] = nonsense
    with caplog.at_level(logging.WARNING, "alknet"):
        async with following(other) as (_, session):
            with trio.fail_after(30):
                reason = await session.connection.wait_closed()
            assert reason.code == code
    [record] = [one for one in caplog.records if one.message == "peer.broke_protocol"]
    assert record.__dict__["peer"] == "w1"


async def test_a_flood_of_announcements_ends_the_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    other = Peer("m/a")

    async def flood(_given: msgspec.Raw) -> AsyncGenerator[object]:
        while True:
            yield {"version": "v1"}

    other.operations.subscriptions["services/watch"] = flood
    async with following(other) as (_, session):
        with trio.fail_after(5):
            reason = await session.connection.wait_closed()
        assert reason.code == CloseCode.LIMIT
        assert other.imports <= 1
    assert ANNOUNCEMENTS_BURST < 1_000


# --- peers/offer


@pytest.mark.parametrize("identity", [ANONYMOUS, OWNER, key("abcdefgh", "*"), Identity("op:x")])
async def test_only_peers_can_offer(identity: Identity) -> None:
    offered: list[object] = []
    with pytest.raises(CallError, match="FORBIDDEN: only a peer"):
        await call_operation(offer_operation(offered.append), identity=identity)
    assert not offered


async def test_offers_are_limited_for_each_peer_by_itself(
    autojump_clock: trio.testing.MockClock,
) -> None:
    offered: list[object] = []
    offer = offer_operation(offered.append)
    for _ in range(OFFERS_BURST):
        await call_operation(offer, identity=peer("w1"))
    assert len(offered) == OFFERS_BURST
    with pytest.raises(CallError, match="RESOURCE_EXHAUSTED") as caught:
        await call_operation(offer, identity=peer("w1"))
    assert caught.value.details is not None
    assert 0 < caught.value.details["retry_after_ms"] <= 1_000
    await call_operation(offer, identity=peer("w2"))
    await trio.sleep(2)
    await call_operation(offer, identity=peer("w1"))


def peer_key() -> NodeId:
    return NodeId(bytes(32))
