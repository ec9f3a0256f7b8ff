"""How peers are chosen: fairly, never an ejected one, and by keys that stay where they are."""

from __future__ import annotations

from collections import Counter
from random import Random  # noqa: TID251  seeded: a test's bad luck must be repeatable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alknet.call.peers import (
    AttachedPeer,
    First,
    LatencyWeighted,
    LeastInFlight,
    Policy,
    RoundRobin,
    Sticky,
)
from alknet.call.peers.candidates import Candidates
from tests.call.peers.fleet import bare_peer

POLICIES = (First(), RoundRobin(), LeastInFlight(), Sticky("k"), LatencyWeighted())
COUNTS = st.integers(1, 40)
SETTINGS = settings(deadline=None, max_examples=50)
SEEDS = st.integers(0, 2**32)


def candidates_of(count: int) -> Candidates:
    candidates = Candidates()
    for order in range(count):
        candidates.add(bare_peer(order))
    return candidates


def chosen(policy: Policy, candidates: Candidates, times: int, seed: int) -> Counter[str]:
    draw = Random(seed).random
    return Counter(policy.choose(candidates, draw).name for _ in range(times))


@SETTINGS
@given(COUNTS, SEEDS, st.data())
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_no_policy_chooses_one_that_is_not_available(
    policy: Policy, count: int, seed: int, data: st.DataObject
) -> None:
    candidates = candidates_of(count)
    policy.choose(candidates, Random(seed).random)  # whatever a policy keeps is there from now on
    gone = data.draw(st.sets(st.sampled_from(candidates.available), max_size=count - 1))
    for peer in gone:
        candidates.remove(peer)
    assert not {peer.name for peer in gone} & chosen(policy, candidates, 100, seed).keys()
    for peer in gone:
        candidates.add(peer)
    assert [peer.order for peer in candidates.available] == list(range(count))


@SETTINGS
@given(COUNTS, st.integers(1, 5), SEEDS)
def test_round_robin_gives_each_its_turn(count: int, rounds: int, seed: int) -> None:
    found = chosen(RoundRobin(), candidates_of(count), count * rounds, seed)
    assert set(found.values()) == {rounds}
    assert len(found) == count


@SETTINGS
@given(st.integers(2, 20), st.data())
def test_round_robin_goes_on_where_it_was_when_others_come_and_go(
    count: int, data: st.DataObject
) -> None:
    candidates = candidates_of(count)
    turn = data.draw(st.integers(0, count - 1))
    last = [candidates.next_in_turn() for _ in range(turn + 1)][-1]
    others = [peer for peer in candidates.available if peer is not last]
    gone = data.draw(st.sets(st.sampled_from(others), max_size=len(others)))
    for peer in gone:
        candidates.remove(peer)
    expected = after(candidates, last)
    assert candidates.next_in_turn() is expected
    for peer in gone:
        candidates.add(peer)
    assert candidates.next_in_turn() is after(candidates, expected)


def after(candidates: Candidates, last: AttachedPeer) -> AttachedPeer:
    later = [peer for peer in candidates.available if peer.order > last.order]
    return (later or candidates.available)[0]


def test_first_keeps_to_the_one_that_is_attached_the_longest() -> None:
    candidates = candidates_of(5)
    first, second = candidates.available[:2]
    assert chosen(First(), candidates, 10, 1) == {first.name: 10}
    candidates.remove(first)
    assert chosen(First(), candidates, 10, 1) == {second.name: 10}
    candidates.add(first)
    assert chosen(First(), candidates, 10, 1) == {first.name: 10}


@SETTINGS
@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), SEEDS)
def test_the_least_busy_of_a_small_fleet_is_found(loads: list[int], seed: int) -> None:
    candidates = candidates_of(len(loads))
    for peer, load in zip(candidates.available, loads, strict=True):
        peer.in_flight = load
    choice = LeastInFlight().choose(candidates, Random(seed).random)
    assert choice.in_flight == min(loads)


@pytest.mark.parametrize("count", [3, 8, 9, 100])
def test_calls_that_last_are_spread_evenly_by_least_in_flight(count: int) -> None:
    candidates = candidates_of(count)
    draw = Random(7).random
    for _ in range(count * 10):
        LeastInFlight().choose(candidates, draw).in_flight += 1
    loads = [peer.in_flight for peer in candidates.available]
    assert max(loads) - min(loads) <= (1 if count <= 8 else 2)


def test_idle_peers_take_turns_under_least_in_flight() -> None:
    found = chosen(LeastInFlight(), candidates_of(12), 120, 3)
    assert set(found.values()) == {10}


def owners(candidates: Candidates, keys: int) -> dict[str, AttachedPeer]:
    return {str(key): Sticky(str(key)).choose(candidates, Random(0).random) for key in range(keys)}


@SETTINGS
@given(st.integers(2, 30), st.data())
def test_only_the_keys_of_a_peer_that_leaves_move_and_they_come_back(
    count: int, data: st.DataObject
) -> None:
    candidates = candidates_of(count)
    before = owners(candidates, 100)
    gone = data.draw(st.sampled_from(candidates.available))
    candidates.remove(gone)
    without = owners(candidates, 100)
    assert all(without[key] is peer for key, peer in before.items() if peer is not gone)
    candidates.add(gone)
    assert owners(candidates, 100) == before


@SETTINGS
@given(st.permutations(range(10)))
def test_sticky_does_not_depend_on_the_order_of_attachment(places: list[int]) -> None:
    here, there = Candidates(), Candidates()
    for order, place in enumerate(places):
        here.add(bare_peer(order, f"w{order}"))
        there.add(bare_peer(order, f"w{place}"))
    found = {key: peer.name for key, peer in owners(here, 50).items()}
    assert {key: peer.name for key, peer in owners(there, 50).items()} == found


def test_sticky_keys_are_spread_over_the_peers() -> None:
    found = Counter(peer.name for peer in owners(candidates_of(20), 4_000).values())
    assert len(found) == 20
    assert max(found.values()) < 1.5 * 200
    assert min(found.values()) > 0.5 * 200


def test_a_peer_that_is_twice_as_fast_gets_twice_the_calls() -> None:
    candidates = candidates_of(2)
    fast, slow = candidates.available
    fast.took(0.010)
    slow.took(0.020)
    found = chosen(LatencyWeighted(), candidates, 10_000, 5)
    assert found[fast.name] / found[slow.name] == pytest.approx(2.0, rel=0.1)


def test_no_peer_starves_however_slow() -> None:
    candidates = candidates_of(50)
    for peer in candidates.available[1:]:
        peer.took(0.001)
    candidates.available[0].took(10.0)
    assert chosen(LatencyWeighted(), candidates, 20_000, 5)["w0"] > 0
