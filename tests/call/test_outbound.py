"""Connections that are kept: when they are dialled, when again, and what ends a wait."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio

from alknet.call.changes import Changes
from alknet.call.handler import ALPN
from alknet.call.outbound import STABLE_S, Outbound, OutboundStatus
from alknet.call.session import CallSession, open_session
from alknet.core.address import Address
from alknet.core.backoff import Backoff
from alknet.core.contracts import CloseCode
from alknet.core.nodeid import NodeId
from alknet.core.outbound import OutboundSource, OutboundTarget
from alknet.core.scopes import open_background
from alknet.errors import Denied, Unavailable
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.memory import MemoryConnection, memory_connection_pair

Clock = trio.testing.MockClock

HUB, NEW_HUB = NodeId(bytes(32)), NodeId(bytes([1]) * 32)


def hub(
    name: str = "hub", *, port: int = 1, keys: Sequence[NodeId] = (HUB,), problem: str = ""
) -> OutboundTarget:
    address = Address("hub.example", port)
    return OutboundTarget(name=name, keys=tuple(keys), addresses=(address,), problem=problem)


class Targets:
    """A source that a test changes."""

    def __init__(self, *targets: OutboundTarget) -> None:
        self._targets = {target.name: target for target in targets}
        self._changes = Changes()
        self.is_readable = True

    @property
    def version(self) -> int:
        return self._changes.version

    def targets(self) -> Sequence[OutboundTarget]:
        if not self.is_readable:
            raise Unavailable("the store is out of reach")
        return list(self._targets.values())

    async def wait_changed(self, version: int) -> int:
        return await self._changes.wait_changed(version)

    def put(self, target: OutboundTarget) -> None:
        self._targets[target.name] = target
        self._changes.ring()

    def remove(self, name: str) -> None:
        del self._targets[name]
        self._changes.ring()


class Network:
    """Where peers are, whether they answer, and who was dialled when."""

    def __init__(self) -> None:
        self.is_up = True
        self.key: NodeId | None = None
        self.dialled: list[tuple[float, OutboundTarget, NodeId]] = []
        self.accepted: list[MemoryConnection] = []
        self.open = 0
        self.served: list[str] = []
        self.serving = 0
        self.on_serve: Callable[[str], None] = lambda _name: None
        self.closes_within_s = 0.0
        self.refuse = trio.Event()
        self._began_at = trio.current_time()
        self._changes = Changes()
        self._seen = self._changes.version

    @property
    def times(self) -> list[float]:
        return [at for at, _, _ in self.dialled]

    @asynccontextmanager
    async def dial(self, target: OutboundTarget, key: NodeId) -> AsyncGenerator[CallSession]:
        self.dialled.append((trio.current_time() - self._began_at, target, key))
        await trio.lowlevel.checkpoint()
        if not self.is_up or self.key not in {None, key}:
            raise Unavailable("no answer")
        async with memory_connection_pair(alpn=ALPN, acceptor_key=key) as (dialer, acceptor):
            self.accepted.append(acceptor)
            self.open += 1
            try:
                async with open_session(dialer) as session:
                    try:
                        yield session
                    finally:
                        await trio.sleep(self.closes_within_s)
            finally:
                self.open -= 1

    async def serve(self, name: str, session: CallSession) -> None:
        self.served.append(name)
        self.serving += 1
        self.on_serve(name)
        try:
            await self.refuse.wait()
            raise Denied("not now")
        finally:
            self.serving -= 1

    async def wait_changed(self) -> None:
        self._seen = await self._changes.wait_changed(self._seen)

    def change(self) -> None:
        self._changes.ring()

    def lose(self) -> None:
        self.accepted[-1].lose()


def keeping(source: OutboundSource, network: Network, luck: float = 1.0) -> Outbound:
    return Outbound(
        source,
        dial=network.dial,
        serve=network.serve,
        wait_network_changed=network.wait_changed,
        backoff=lambda: Backoff(random=lambda: luck),
    )


def running(outbound: Outbound) -> AbstractAsyncContextManager[object]:
    @asynccontextmanager
    async def run() -> AsyncGenerator[None]:
        async with open_background() as nursery:
            await nursery.start(outbound.run)
            await trio.testing.wait_all_tasks_blocked()
            yield

    return run()


def only(outbound: Outbound) -> OutboundStatus:
    [status] = outbound.status()
    return status


async def test_a_peer_is_dialled_at_once_and_served_while_connected(autojump_clock: Clock) -> None:
    network = Network()
    outbound = keeping(Targets(hub()), network)
    async with running(outbound):
        status = only(outbound)
        assert (status.peer, status.state, status.attempts) == ("hub", "connected", 0)
        assert (status.last_error, status.next_try_in_s) == (None, None)
        assert status.addresses == ("hub.example:1",)
        assert (network.open, network.serving) == (1, 1)
        await trio.sleep(5)
        assert only(outbound).connected_for_s == pytest.approx(5)
    assert (network.open, network.serving) == (0, 0)
    assert (await network.accepted[0].wait_closed()).code == CloseCode.OK


async def test_waits_double_up_to_a_minute_while_nobody_answers(autojump_clock: Clock) -> None:
    network = Network()
    network.is_up = False
    outbound = keeping(Targets(hub()), network)
    async with running(outbound):
        await trio.sleep(300)
        assert network.times == pytest.approx([0, 1, 3, 7, 15, 31, 63, 123, 183, 243])
        status = only(outbound)
        assert (status.state, status.attempts, status.last_error) == ("waiting", 10, "no answer")
        assert status.next_try_in_s == pytest.approx(3)
        network.is_up = True
        await trio.sleep(4)
        assert only(outbound).state == "connected"


async def test_however_lucky_attempts_are_a_second_apart(autojump_clock: Clock) -> None:
    network = Network()
    network.is_up = False
    async with running(keeping(Targets(hub()), network, luck=0.0)):
        await trio.sleep(10.5)
    assert network.times == pytest.approx(list(range(11)))


async def test_a_lost_connection_is_dialled_again_and_its_service_ended(
    autojump_clock: Clock,
) -> None:
    network = Network()
    outbound = keeping(Targets(hub()), network)
    async with running(outbound):
        network.lose()
        await trio.testing.wait_all_tasks_blocked()
        status = only(outbound)
        assert (status.state, network.open, network.serving) == ("waiting", 0, 0)
        assert status.last_error == "the connection ended: connection lost"
        await trio.sleep(1.5)
        assert (only(outbound).state, network.open, network.serving) == ("connected", 1, 1)
        assert network.served == ["hub", "hub"]


async def test_only_a_connection_that_held_for_a_minute_makes_waits_short_again(
    autojump_clock: Clock,
) -> None:
    network = Network()
    outbound = keeping(Targets(hub()), network)
    async with running(outbound):
        for wait_s in (1, 2, 4):
            network.lose()
            await trio.testing.wait_all_tasks_blocked()
            assert only(outbound).next_try_in_s == pytest.approx(wait_s)
            await trio.sleep(wait_s + 0.5)
        assert only(outbound).attempts == 3
        await trio.sleep(STABLE_S)
        assert only(outbound).attempts == 0
        network.lose()
        await trio.testing.wait_all_tasks_blocked()
        assert only(outbound).next_try_in_s == pytest.approx(1)


async def test_a_removed_peer_is_let_go_and_a_new_one_dialled(autojump_clock: Clock) -> None:
    network = Network()
    targets = Targets(hub())
    outbound = keeping(targets, network)
    async with running(outbound):
        targets.remove("hub")
        await trio.testing.wait_all_tasks_blocked()
        assert (outbound.status(), network.open) == ([], 0)
        assert (await network.accepted[0].wait_closed()).code == CloseCode.OK
        targets.put(hub("spare"))
        await trio.testing.wait_all_tasks_blocked()
        assert only(outbound).peer == "spare"
        assert network.open == 1


async def test_a_removed_peer_is_let_go_while_its_dial_waits(autojump_clock: Clock) -> None:
    network = Network()
    network.is_up = False
    targets = Targets(hub())
    async with running(keeping(targets, network)):
        await trio.sleep(4)
        targets.remove("hub")
        await trio.sleep(600)
    assert len(network.dialled) == 3


async def test_a_changed_address_ends_the_wait_and_another_peer_s_does_not(
    autojump_clock: Clock,
) -> None:
    network = Network()
    network.is_up = False
    targets = Targets(hub())
    outbound = keeping(targets, network)
    async with running(outbound):
        await trio.sleep(64)
        assert len(network.dialled) == 7
        targets.put(hub("other", problem="no address"))
        await trio.sleep(5)
        assert len(network.dialled) == 7
        network.is_up = True
        targets.put(hub(port=2))
        await trio.sleep(1.5)
    _, target, _ = network.dialled[-1]
    assert (len(network.dialled), target.addresses[0].port) == (8, 2)


@pytest.mark.parametrize("is_refused", [False, True])
async def test_what_changes_while_a_connection_is_closed_ends_the_wait_after_it(
    is_refused: bool, autojump_clock: Clock
) -> None:
    network = Network()
    network.is_up = False
    network.closes_within_s = 3.0
    targets = Targets(hub())
    outbound = keeping(targets, network)
    async with running(outbound):
        await trio.sleep(100)  # waits are a minute by now
        network.is_up = True
        await trio.sleep(60)
        assert only(outbound).state == "connected"
        if is_refused:
            network.refuse.set()
        else:
            network.lose()
        await trio.sleep(1)
        status = only(outbound)
        assert (status.state, status.connected_for_s, network.open) == ("waiting", None, 1)
        count = len(network.dialled)
        targets.put(hub(port=2))
        await trio.sleep(3.5)
        assert len(network.dialled) == count + 1


async def test_a_changed_address_leaves_a_connection_alone(autojump_clock: Clock) -> None:
    network = Network()
    targets = Targets(hub())
    outbound = keeping(targets, network)
    async with running(outbound):
        targets.put(hub(port=2))
        await trio.sleep(10)
        assert (len(network.dialled), only(outbound).state) == (1, "connected")


async def test_a_connection_under_a_key_that_is_no_longer_the_peer_s_is_dropped(
    autojump_clock: Clock,
) -> None:
    network = Network()
    targets = Targets(hub())
    outbound = keeping(targets, network)
    async with running(outbound):
        targets.put(hub(keys=[NEW_HUB]))
        await trio.sleep(1.5)
        assert [key for _, _, key in network.dialled] == [HUB, NEW_HUB]
        assert (only(outbound).state, network.open) == ("connected", 1)


async def test_each_key_of_a_peer_is_asked_for_and_the_one_that_answers_kept(
    autojump_clock: Clock,
) -> None:
    network = Network()
    network.key = NEW_HUB
    async with running(keeping(Targets(hub(keys=[HUB, NEW_HUB])), network)):
        await trio.sleep(5)
        network.lose()
        await trio.sleep(5)
        network.key = HUB
        network.lose()
        await trio.sleep(20)
        assert network.open == 1
    assert [key for _, _, key in network.dialled] == [HUB, NEW_HUB, NEW_HUB, NEW_HUB, HUB]


async def test_a_peer_that_cannot_be_dialled_says_why_until_it_can(autojump_clock: Clock) -> None:
    network = Network()
    targets = Targets(hub(problem="the peer is disabled"))
    outbound = keeping(targets, network)
    async with running(outbound):
        await trio.sleep(600)
        status = only(outbound)
        assert (status.state, status.last_error) == ("stopped", "the peer is disabled")
        assert network.dialled == []
        targets.put(hub())
        await trio.testing.wait_all_tasks_blocked()
        assert only(outbound).state == "connected"
        targets.put(hub(problem="the peer is disabled"))
        network.lose()  # as the endpoint does with a revoked peer
        await trio.testing.wait_all_tasks_blocked()
        assert only(outbound).state == "stopped"


async def test_another_network_ends_the_wait_and_begins_anew(autojump_clock: Clock) -> None:
    network = Network()
    network.is_up = False
    outbound = keeping(Targets(hub()), network)
    async with running(outbound):
        await trio.sleep(70)
        count = len(network.dialled)
        network.change()
        await trio.sleep(1.5)
        assert len(network.dialled) == count + 1
        assert only(outbound).attempts == 1


async def test_an_interface_that_flaps_makes_no_flood(autojump_clock: Clock) -> None:
    network = Network()
    network.is_up = False
    async with running(keeping(Targets(hub()), network)):
        await trio.sleep(70)
        count = len(network.dialled)
        for _ in range(200):
            network.change()
            await trio.sleep(0.05)
    assert len(network.dialled) - count <= 11


async def test_a_connection_outlives_another_network(autojump_clock: Clock) -> None:
    network = Network()
    outbound = keeping(Targets(hub()), network)
    async with running(outbound):
        network.change()
        await trio.sleep(30)
        assert (len(network.dialled), only(outbound).state) == (1, "connected")


async def test_a_crash_with_one_peer_ends_no_other(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    network = Network()

    def crash(name: str) -> None:
        if name == "bad":
            raise ZeroDivisionError

    network.on_serve = crash
    outbound = keeping(Targets(hub("bad"), hub("good")), network)
    async with running(outbound):
        await trio.sleep(10)
        bad, good = outbound.status()
        assert (good.state, bad.state) == ("connected", "waiting")
        assert bad.attempts == 4
    assert "outbound.crashed" in [record.message for record in caplog.records]


async def test_a_peer_that_does_not_want_us_is_asked_ever_more_rarely(
    autojump_clock: Clock,
) -> None:
    network = Network()

    def refuse(_name: str) -> None:
        raise Denied("it does not know this node")

    network.on_serve = refuse
    outbound = keeping(Targets(hub()), network)
    async with running(outbound):
        await trio.sleep(64)
        assert network.times == pytest.approx([0, 1, 3, 7, 15, 31, 63])
        assert only(outbound).last_error == "it does not know this node"
        assert network.open == 0


async def test_a_changed_network_says_nothing_of_a_peer_that_cannot_be_dialled(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    network = Network()
    async with running(keeping(Targets(hub(problem="the peer is disabled")), network)):
        for _ in range(5):
            network.change()
            await trio.sleep(1)
    assert [record.message for record in caplog.records].count("outbound.stopped") == 1


async def test_what_there_is_stays_while_the_source_cannot_be_read(autojump_clock: Clock) -> None:
    network = Network()
    targets = Targets(hub())
    outbound = keeping(targets, network)
    async with running(outbound):
        targets.is_readable = False
        targets.put(hub("spare"))
        await trio.sleep(10)
        assert [status.peer for status in outbound.status()] == ["hub"]
        targets.is_readable = True
        await trio.sleep(2)
        assert [status.peer for status in outbound.status()] == ["hub", "spare"]


async def test_many_workers_do_not_come_back_at_once(autojump_clock: Clock) -> None:
    network = Network()
    outbound = Outbound(
        Targets(*(hub(f"w{n}") for n in range(100))),
        dial=network.dial,
        serve=network.serve,
        wait_network_changed=network.wait_changed,
    )
    async with running(outbound):
        for _ in range(3):
            network.is_up = False
            for connection in network.accepted:
                connection.lose()
            await trio.sleep(20)
        tenths = [math.floor(at * 10) for at in network.times if at > 20]
    assert max(tenths.count(tenth) for tenth in set(tenths)) < 30


async def test_cancelled_at_any_point_nothing_is_left(autojump_clock: Clock) -> None:
    network = Network()
    targets = Targets(hub())

    async def run_for_a_while() -> None:
        with trio.move_on_after(5):
            await keeping(targets, network).run()

    async def check() -> None:
        assert (network.open, network.serving) == (0, 0)

    assert await cancel_at_every_checkpoint(run_for_a_while, check) > 1
