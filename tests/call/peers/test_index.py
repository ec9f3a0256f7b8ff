"""Whatever order peers come, speak, fail and go in, the index knows who can be chosen for what."""

from __future__ import annotations

from contextlib import ExitStack
from random import Random  # noqa: TID251  seeded: a test's bad luck must be repeatable
from typing import TYPE_CHECKING, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from alknet.call.peers import (
    AttachedPeer,
    First,
    LatencyWeighted,
    LeastInFlight,
    RoundRobin,
    Sticky,
)
from alknet.call.peers.candidates import OfferIndex
from alknet.call.peers.environment import PeerEnvironment
from tests.call.peers.fleet import bare_peer, offers

if TYPE_CHECKING:
    from alknet.call.session import CallSession

NAMES = ("w1", "w2", "w3")
OPERATIONS = ("a/one", "a/two", "a/three")
POLICIES = (First(), RoundRobin(), LeastInFlight(), Sticky("k"), LatencyWeighted())
SOME = st.sets(st.sampled_from(OPERATIONS))


class Link:
    """As much of a session as an attachment looks at, and how it was attached."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.close_reason = None
        self.is_leaving = False
        self.said: frozenset[str] | None = None
        self.held = ExitStack()


class Attachments(RuleBasedStateMachine):
    """An environment beside a list of links, oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.environment = PeerEnvironment(draw=Random(1).random)
        self.links: list[Link] = []
        self.offered: dict[str, frozenset[str]] = {}
        self.order: list[str] = []

    def teardown(self) -> None:
        for link in self.links:
            link.held.close()
        assert len(self.environment) == 0
        assert not any(self.environment.offering(name) for name in OPERATIONS)

    @rule(name=st.sampled_from(NAMES))
    def attach(self, name: str) -> None:
        link = Link(name)
        link.held.enter_context(self.environment.attach(name, cast("CallSession", link)))
        self.links.append(link)
        if name not in self.order:
            self.order.append(name)
            self.offered[name] = frozenset()

    @precondition(lambda self: self.links)
    @rule(data=st.data(), operations=SOME)
    def say(self, data: st.DataObject, operations: set[str]) -> None:
        link = data.draw(st.sampled_from(self.links))
        link.said = frozenset(operations)
        peer = self.environment.get(link.name)
        assert peer is not None
        peer.set_operations(cast("CallSession", link), offers(operations), "v")
        self._adopt(link.name)

    @precondition(lambda self: self.links)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        link = data.draw(st.sampled_from(self.links))
        link.held.close()
        self.links.remove(link)
        if any(other.name == link.name for other in self.links):
            self._adopt(link.name)
        else:
            self.order.remove(link.name)
            del self.offered[link.name]

    def _adopt(self, name: str) -> None:
        for link in reversed(self.links):
            if link.name == name and link.said is not None:
                self.offered[name] = link.said
                return

    @invariant()
    def those_who_offer_are_found_in_order_of_attachment(self) -> None:
        assert [peer.name for peer in self.environment] == self.order
        for operation in OPERATIONS:
            expected = [name for name in self.order if operation in self.offered[name]]
            found = self.environment.offering(operation)
            assert [peer.name for peer in found] == expected

    @invariant()
    def the_newest_link_gets_the_calls(self) -> None:
        for peer in self.environment:
            newest = [link for link in self.links if link.name == peer.name][-1]
            assert cast("object", peer.session) is newest


class Availability(RuleBasedStateMachine):
    """An index whose peers are ejected and readmitted, and whom each policy chooses of them."""

    def __init__(self) -> None:
        super().__init__()
        self.index = OfferIndex()
        self.peers: dict[AttachedPeer, bool] = {}
        self.last = 0
        self.draw = Random(2).random

    @rule(operations=SOME, is_available=st.booleans())
    def come(self, operations: set[str], is_available: bool) -> None:
        self.last += 1
        peer = bare_peer(self.last)
        peer.operations = offers(operations)
        self.index.offer(peer, operations, is_available=is_available)
        self.peers[peer] = is_available

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def change(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from(list(self.peers)))
        self.peers[peer] = not self.peers[peer]
        self.index.set_available(peer, is_available=self.peers[peer])

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from(list(self.peers)))
        self.index.withdraw(peer, peer.operations, is_available=self.peers.pop(peer))

    @invariant()
    def only_the_available_are_chosen(self) -> None:
        for operation in OPERATIONS:
            offering = [peer for peer in self.peers if operation in peer.operations]
            candidates = self.index.find(operation)
            assert (candidates is None) == (not offering)
            if candidates is None:
                continue
            assert candidates.offering == len(offering)
            available = [peer for peer in offering if self.peers[peer]]
            assert candidates.available == available
            for policy in POLICIES if available else ():
                assert policy.choose(candidates, self.draw) in available
            for tried in range(len(available) + 1):
                passed = available[:tried]
                assert candidates.count_besides(passed) == len(available) - tried
                if tried < len(available):
                    first = available[0]
                    assert candidates.after(first, passed) is available[tried]


SETTINGS = settings(deadline=None, max_examples=30, stateful_step_count=30)
Attachments.TestCase.settings = SETTINGS
Availability.TestCase.settings = SETTINGS
test_attachments = Attachments.TestCase
test_availability = Availability.TestCase
