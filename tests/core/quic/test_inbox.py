"""What waits for its turn: each flow in its order, within its share, and nobody pays for others."""

from __future__ import annotations

from collections import Counter, deque

from hypothesis import given
from hypothesis import strategies as st

from alknet.core.quic.inbox import LEAST_SHARE, MAX_SHARE, MAX_WAITING, Datagram, Inbox

HERE = ("192.0.2.1", 4433)


def datagrams(count: int, at: int = 0) -> list[Datagram]:
    return [(str(number).encode(), HERE) for number in range(at, at + count)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 20), st.booleans()), max_size=60))
def test_each_flow_keeps_its_order_and_loses_nothing_within_its_share(
    steps: list[tuple[int, int, bool]],
) -> None:
    counters: Counter[str] = Counter()
    inbox: Inbox[int] = Inbox(counters)
    sent: Counter[int] = Counter()
    handled: dict[int, list[Datagram]] = {}
    for flow, count, is_turn in steps:
        inbox.put(flow, datagrams(count, sent[flow]))
        sent[flow] += count
        if is_turn:
            turn, queue = inbox.pop()
            handled.setdefault(turn, []).append(queue.popleft())
            inbox.put_back(turn, queue)
    while inbox:
        turn, queue = inbox.pop()
        handled.setdefault(turn, []).extend(queue)
    assert not counters
    assert {flow: datagrams(count) for flow, count in sent.items()} == handled


def test_turns_go_round() -> None:
    inbox: Inbox[str] = Inbox(Counter())
    for flow in "abc":
        inbox.put(flow, datagrams(2))
    turns = []
    while inbox:
        flow, queue = inbox.pop()
        queue.popleft()
        inbox.put_back(flow, queue)
        turns.append(flow)
    assert turns == list("abcabc")


def test_a_flow_alone_has_no_more_than_its_share() -> None:
    counters: Counter[str] = Counter()
    inbox: Inbox[str] = Inbox(counters)
    inbox.put("flood", datagrams(MAX_SHARE + 100))
    inbox.put("flood", datagrams(1))
    assert (len(inbox), counters["overrun"]) == (MAX_SHARE, 101)
    inbox.put("newcomers", datagrams(20), at_most=10)
    assert len(inbox) == MAX_SHARE + 10


def test_many_flows_share_the_room_and_a_flow_more_has_a_place() -> None:
    counters: Counter[str] = Counter()
    inbox: Inbox[int] = Inbox(counters)
    flows = 2 * MAX_WAITING // LEAST_SHARE
    for flow in range(flows):
        inbox.put(flow, datagrams(MAX_SHARE))
    assert len(inbox) <= MAX_WAITING * 8  # those who came first had more
    overrun = counters["overrun"]
    inbox.put(flows, datagrams(LEAST_SHARE + 1))
    assert counters["overrun"] == overrun + 1


def test_what_waits_of_a_flow_that_is_gone_is_dropped() -> None:
    inbox: Inbox[str] = Inbox(Counter())
    inbox.put("gone", datagrams(3))
    inbox.forget("gone")
    inbox.forget("gone")
    assert not inbox
    inbox.put_back("empty", deque())
    assert "empty" not in inbox
