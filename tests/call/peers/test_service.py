"""When peers are attached: as they offer, for the life of their session, and no strangers."""

from __future__ import annotations

from functools import partial

import msgspec
import pytest
import trio
from trio.testing import MockClock

from alknet.call.codes import CallError
from alknet.call.peers import AttachedPeer, PeerEnvironment
from alknet.call.peers.service import LATE_S, SILENT_S, PeerService, run_attached
from alknet.call.session import CallSession
from alknet.core.identity import ANONYMOUS, Identity
from alknet.core.transport import TransportStatus
from tests.call.peers.fleet import offers
from tests.call.sessions import Operations, session_pair


async def follow_nothing(_peer: AttachedPeer, _session: CallSession) -> None:
    return


async def test_a_peer_is_attached_until_its_connection_ends() -> None:
    environment = PeerEnvironment()
    async with session_pair("memory", Operations()) as (client, server), trio.open_nursery() as n:

        async def follow(peer: AttachedPeer, session: CallSession) -> None:
            peer.set_operations(session, offers(["a/b"]), "1")
            await trio.sleep_forever()

        async def run(task_status: trio.TaskStatus[AttachedPeer]) -> None:
            await run_attached(environment, "w1", client, follow=follow, task_status=task_status)

        peer: AttachedPeer = await n.start(run)
        await trio.testing.wait_all_tasks_blocked()
        assert environment.get("w1") is peer
        assert set(peer.operations) == {"a/b"}
        server.connection.close(1, "gone")
        with trio.fail_after(30):
            while environment.get("w1") is not None:
                await environment.wait_changed(environment.version)
        assert environment.offering("a/b") == ()


async def test_a_peer_whose_operations_nobody_follows_stays_attached() -> None:
    environment = PeerEnvironment()
    async with session_pair("memory", Operations()) as (client, _), trio.open_nursery() as nursery:

        async def run() -> None:
            await run_attached(environment, "w1", client, follow=follow_nothing)

        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        assert environment.get("w1") is not None
        nursery.cancel_scope.cancel()
    assert environment.get("w1") is None


async def test_an_older_session_goes_on_where_nobody_knows_whether_it_is_silent(
    autojump_clock: MockClock,
) -> None:
    environment = PeerEnvironment()
    stuck = Operations()
    stuck.queries["node/ping"] = stuck.queries["echo/slow"]
    async with (
        session_pair("memory", stuck) as (older, _),
        session_pair("memory", Operations()) as (newer, _),
        trio.open_nursery() as nursery,
    ):
        for session in (older, newer):

            async def run(session: CallSession = session) -> None:
                await run_attached(environment, "w1", session, follow=follow_nothing)

            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(60)
        peer = environment.get("w1")
        assert peer is not None
        assert peer.sessions == (newer, older)
        assert stuck.cancelled == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("is_silent", [True, False])
async def test_an_older_session_is_heard_late_by_a_process_that_stood_still(
    is_silent: bool, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = PeerEnvironment()
    stuck = Operations()
    stuck.queries["node/ping"] = stuck.queries["echo/slow"]
    received = 7
    async with (
        session_pair("memory", stuck) as (older, _),
        session_pair("memory", Operations()) as (newer, _),
        trio.open_nursery() as nursery,
    ):
        empty = older.connection.transport_status()

        def status() -> TransportStatus:
            return msgspec.structs.replace(empty, packets_received=received)

        monkeypatch.setattr(older.connection, "transport_status", status)
        attached = partial(run_attached, environment, "w1", follow=follow_nothing)
        for session in (older, newer):
            nursery.start_soon(attached, session)
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(SILENT_S + LATE_S / 2)
        if not is_silent:  # it has acknowledged long ago, and now that is read
            received += 1
        await trio.sleep(LATE_S)
        assert (older.close_reason is not None) is is_silent
        nursery.cancel_scope.cancel()


async def test_who_offers_is_attached_once_under_the_name_of_its_key() -> None:
    service = PeerService(PeerEnvironment(), follow=follow_nothing)
    async with session_pair("memory", Operations()) as (_, server):
        server.connection.identity = Identity("peer:w7")
        for _ in range(3):
            service.offered(server)
        await trio.testing.wait_all_tasks_blocked()
        (peer,) = service.environment
        assert (peer.name, peer.sessions) == ("w7", (server,))
    assert len(service.environment) == 0


@pytest.mark.parametrize("identity", [ANONYMOUS, Identity("key:abcd"), Identity("owner")])
async def test_nobody_but_a_peer_can_offer(identity: Identity) -> None:
    service = PeerService(PeerEnvironment(), follow=follow_nothing)
    async with session_pair("memory", Operations()) as (_, server):
        server.connection.identity = identity
        with pytest.raises(CallError, match="FORBIDDEN"):
            service.offered(server)
        with pytest.raises(CallError, match="FORBIDDEN"):
            service.offered(None)
        await trio.testing.wait_all_tasks_blocked()
        assert len(service.environment) == 0
