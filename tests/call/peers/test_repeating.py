"""Calls to peers that are tried again, and those that are sent to two at once."""

from __future__ import annotations

import msgspec
import pytest
import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.peers import First, PeerRef
from alknet.call.retrying import RetryBudget, RetryPolicy
from alknet.call.spec import OpType
from tests.call.peers.fleet import Fleet, Worker, offers, open_fleet
from tests.call.sessions import Operations

Clock = trio.testing.MockClock

FIRST = PeerRef.any(First())
W1 = PeerRef.specific("w1")
USUAL = RetryPolicy()
HEDGED = RetryPolicy(hedge_after_s=1)


class Busy(Operations):
    """Is busy the first time that something is bought, and slow to look."""

    def __init__(self) -> None:
        super().__init__()
        self.queries["shop/buy"] = self._buy
        self.queries["shop/look"] = self._look
        self.kinds["shop/buy"] = "mutation"
        self.bought = 0

    async def _buy(self, _given: msgspec.Raw) -> object:
        self.bought += 1
        if self.bought == 1:
            raise CallError(ErrorCode.UNAVAILABLE, "busy")
        return self.bought

    async def _look(self, _given: msgspec.Raw) -> object:
        await trio.sleep(10)
        return "slow"


class Quick(Operations):
    def __init__(self) -> None:
        super().__init__()
        for name in ("shop/buy", "shop/look"):
            self.queries[name] = self._answer

    async def _answer(self, _given: msgspec.Raw) -> object:
        return "quick"


async def add(fleet: Fleet, name: str, operations: Operations, *, is_query: bool = True) -> Worker:
    worker = await fleet.add(name, operations, ())
    offered = offers(["shop/buy", "shop/look"])
    if not is_query:
        offered = {
            name: msgspec.structs.replace(one, op_type=OpType.MUTATION)
            for name, one in offered.items()
        }
    worker.peer.set_operations(worker.ours, offered, "2")
    return worker


async def test_without_a_policy_nothing_is_tried_again(autojump_clock: Clock) -> None:
    async with open_fleet() as fleet:
        w1 = await add(fleet, "w1", Busy())
        with pytest.raises(CallError, match="busy"):
            await fleet.environment.call(W1, "shop/buy")
        assert w1.operations.started == 1


@pytest.mark.parametrize("is_query", [True, False])
async def test_a_call_to_a_named_peer_is_tried_again_there(
    is_query: bool, autojump_clock: Clock
) -> None:
    async with open_fleet() as fleet:
        w1 = await add(fleet, "w1", Busy(), is_query=is_query)
        w2 = await add(fleet, "w2", Quick(), is_query=is_query)
        output = await fleet.environment.call(W1, "shop/buy", retry=USUAL, timeout_s=9)
        assert bytes(output) == b"2"
        assert (w1.operations.started, w2.operations.started) == (2, 0)
        keys = {request.idempotency_key for request in w1.operations.requests}
        assert len(keys) == 1
        assert None not in keys


@pytest.mark.parametrize(("is_query", "output"), [(True, b"2"), (False, None)])
async def test_what_may_have_started_at_any_peer_is_tried_again_only_if_idempotent(
    is_query: bool, output: bytes | None, autojump_clock: Clock
) -> None:
    async with open_fleet() as fleet:
        w1 = await add(fleet, "w1", Busy(), is_query=is_query)
        if output is None:
            with pytest.raises(CallError, match="busy"):
                await fleet.environment.call(FIRST, "shop/buy", retry=USUAL)
            assert w1.operations.started == 1
        else:
            got = await fleet.environment.call(FIRST, "shop/buy", retry=USUAL)
            assert bytes(got) == output
        assert {request.idempotency_key for request in w1.operations.requests} == {None}


async def test_the_second_of_two_requests_goes_to_another_peer(autojump_clock: Clock) -> None:
    async with open_fleet() as fleet:
        w1, w2 = await add(fleet, "w1", Busy()), await add(fleet, "w2", Quick())
        output = await fleet.environment.call(FIRST, "shop/look", retry=HEDGED)
        assert bytes(output) == b'"quick"'
        await trio.testing.wait_all_tasks_blocked()
        assert (w1.operations.cancelled, w2.operations.started) == (1, 1)
        assert (w1.peer.in_flight, w2.peer.in_flight) == (0, 0)


async def test_all_peers_share_one_budget(autojump_clock: Clock) -> None:
    async with open_fleet() as fleet:
        fleet.environment.retry_budget = RetryBudget(earned_per_call=0, most=1)
        await add(fleet, "w1", Busy())
        await add(fleet, "w2", Busy())
        await fleet.environment.call(W1, "shop/buy", retry=USUAL)
        with pytest.raises(CallError, match="busy"):
            await fleet.environment.call(PeerRef.specific("w2"), "shop/buy", retry=USUAL)
