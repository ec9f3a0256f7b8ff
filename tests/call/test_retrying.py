"""Calls that are tried again: which, when, how often, and what they may cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.codes import CallError, ErrorCode
from alknet.call.hedging import race
from alknet.call.retrying import Retrier, RetryBudget, RetryPolicy
from alknet.core.contracts import CloseCode
from alknet.errors import LocalError
from alknet.testing.contract import cancel_at_every_checkpoint
from tests.call.sessions import Operations, session_pair

Clock = trio.testing.MockClock

USUAL = RetryPolicy()
PLAIN = RetryPolicy(makes_key=False)


def unavailable(**details: object) -> CallError:
    return CallError(ErrorCode.UNAVAILABLE, "not now", details=details or None)


def unsent() -> CallError:
    error = unavailable()
    error.is_unsent = True
    return error


class Target:
    """Fails with what `errors` holds, one for each request, and then answers."""

    def __init__(self, *errors: CallError, idempotent: bool | CallError = False) -> None:
        self.errors = list(errors)
        self.idempotent = idempotent
        self.requests: list[dict[str, Any]] = []
        self.asked = 0
        self.sent_at: list[float] = []

    async def call(
        self,
        operation: str,
        input: object = None,  # noqa: A002
        /,
        **options: Any,
    ) -> msgspec.Raw:
        await trio.lowlevel.checkpoint()
        if operation == "services/schema":
            self.asked += 1
            if isinstance(self.idempotent, CallError):
                raise self.idempotent
            return msgspec.Raw(msgspec.json.encode({"idempotent": self.idempotent}))
        self.sent_at.append(trio.current_time())
        self.requests.append({"operation": operation, "input": input, **options})
        if self.errors:
            raise self.errors.pop(0)
        return msgspec.Raw(b'"done"')

    def retrier(self, draw: float = 1.0, **options: Any) -> Retrier:
        return Retrier(self.call, random=lambda: draw, **options)


async def fails(retrier: Retrier, policy: RetryPolicy = USUAL, **options: Any) -> str:
    with pytest.raises(CallError) as caught:
        await retrier.call("shop/buy", retry=policy, **options)
    return caught.value.code


# --- what is tried again


async def test_without_a_policy_nothing_is_tried_again(autojump_clock: Clock) -> None:
    target = Target(unsent())
    with pytest.raises(CallError):
        await target.retrier().call("shop/buy")
    assert len(target.requests) == 1


async def test_what_may_pass_is_tried_again_under_the_same_key_and_input(
    autojump_clock: Clock,
) -> None:
    target = Target(unavailable(), unavailable())
    output = await target.retrier().call("shop/buy", {"item": "tea"}, retry=RetryPolicy())
    assert bytes(output) == b'"done"'
    assert len(target.requests) == 3
    assert len({request["idempotency_key"] for request in target.requests}) == 1
    assert {bytes(request["input"]) for request in target.requests} == {b'{"item":"tea"}'}
    assert "retry" not in target.requests[0]


async def test_two_calls_get_two_keys(autojump_clock: Clock) -> None:
    target = Target()
    retrier = target.retrier()
    for _ in range(2):
        await retrier.call("shop/buy", retry=RetryPolicy())
    keys = {request["idempotency_key"] for request in target.requests}
    assert len(keys) == 2
    assert all(len(key) == 32 for key in keys)


async def test_a_key_of_the_callers_own_is_kept(autojump_clock: Clock) -> None:
    target = Target(unavailable())
    await target.retrier().call("shop/buy", idempotency_key="mine", retry=PLAIN)
    assert [request["idempotency_key"] for request in target.requests] == ["mine", "mine"]


async def test_what_will_not_pass_is_not_tried_again(autojump_clock: Clock) -> None:
    error = CallError("SOLD_OUT", "no tea")
    target = Target(error)
    assert await fails(target.retrier()) == "SOLD_OUT"
    assert len(target.requests) == 1


@pytest.mark.parametrize(
    ("idempotent", "requests"), [(True, 2), (False, 1), (CallError("NOT_FOUND", "no"), 1)]
)
async def test_without_a_key_only_what_is_idempotent_is_tried_again(
    idempotent: bool | CallError, requests: int, autojump_clock: Clock
) -> None:
    target = Target(unavailable(), idempotent=idempotent)
    retrier = target.retrier()
    if requests == 1:
        assert await fails(retrier, PLAIN) == "UNAVAILABLE"
    else:
        await retrier.call("shop/buy", retry=PLAIN)
    assert (len(target.requests), target.asked) == (requests, 1)
    assert "idempotency_key" not in target.requests[0]


async def test_a_node_is_asked_once_whether_an_operation_is_idempotent(
    autojump_clock: Clock,
) -> None:
    target = Target(unavailable(), unavailable(), idempotent=True)
    retrier = target.retrier()
    await retrier.call("shop/buy", retry=PLAIN)
    assert target.asked == 1


async def test_a_key_is_of_no_use_where_another_node_may_get_the_second_request(
    autojump_clock: Clock,
) -> None:
    target = Target(unavailable())
    retrier = target.retrier(remembers_keys=False)
    assert await fails(retrier, RetryPolicy(), idempotency_key="mine") == "UNAVAILABLE"
    assert len(target.requests) == 1


@pytest.mark.parametrize(("route", "requests"), [(("hub", "any"), 1), (("hub", "w1"), 2)])
async def test_a_key_is_of_no_use_on_a_route_to_any_peer(
    route: tuple[str, ...], requests: int, autojump_clock: Clock
) -> None:
    target = Target(unavailable())
    retrier = target.retrier()
    if requests == 1:
        assert await fails(retrier, peer=route) == "UNAVAILABLE"
    else:
        await retrier.call("shop/buy", retry=USUAL, peer=route)
    assert len(target.requests) == requests


async def test_what_was_not_sent_is_always_tried_again(autojump_clock: Clock) -> None:
    target = Target(unsent(), unsent())
    await target.retrier(remembers_keys=False).call("shop/buy", retry=PLAIN)
    assert (len(target.requests), target.asked) == (3, 0)


async def test_what_is_over_is_not_tried_again(autojump_clock: Clock) -> None:
    target = Target(unsent())
    assert await fails(target.retrier(is_over=lambda: True)) == "UNAVAILABLE"
    assert len(target.requests) == 1


async def test_the_last_error_comes_out_when_the_attempts_are_used_up(
    autojump_clock: Clock,
) -> None:
    target = Target(unavailable(), unavailable(), CallError(ErrorCode.TIMEOUT, "slow"))
    assert await fails(target.retrier()) == "TIMEOUT"
    assert len(target.requests) == 3


# --- when


@pytest.mark.parametrize(("draw", "waits"), [(1.0, [1, 2, 4, 5]), (0.5, [0.5, 1, 2, 2.5])])
async def test_waits_double_up_to_the_longest_and_are_drawn_from_the_whole(
    draw: float, waits: list[float], autojump_clock: Clock
) -> None:
    target = Target(*[unavailable() for _ in range(4)])
    policy = RetryPolicy(attempts=5, first_wait_s=1, longest_wait_s=5)
    await target.retrier(draw).call("shop/buy", retry=policy)
    assert _gaps(target.sent_at) == pytest.approx(waits)


async def test_a_callee_that_asks_for_time_gets_it_and_the_jitter_on_top(
    autojump_clock: Clock,
) -> None:
    target = Target(unavailable(retry_after_ms=3000))
    await target.retrier().call("shop/buy", retry=RetryPolicy(first_wait_s=1))
    assert _gaps(target.sent_at) == pytest.approx([4])


async def test_a_callee_that_asks_for_too_much_time_is_not_asked_again(
    autojump_clock: Clock,
) -> None:
    target = Target(unavailable(retry_after_ms=10**15))
    begun = trio.current_time()
    assert await fails(target.retrier()) == "UNAVAILABLE"
    assert trio.current_time() - begun < 0.1


async def test_all_attempts_together_keep_the_deadline(autojump_clock: Clock) -> None:
    target = Target(*[unavailable() for _ in range(9)])
    policy = RetryPolicy(attempts=9, first_wait_s=1, longest_wait_s=9)
    begun = trio.current_time()
    assert await fails(target.retrier(), policy, timeout_s=6) == "UNAVAILABLE"
    assert trio.current_time() - begun == pytest.approx(3)
    left = [request["timeout_s"] for request in target.requests]
    assert left == pytest.approx([6, 5, 3])


# --- the budget


async def test_an_outage_costs_no_more_than_the_budget(autojump_clock: Clock) -> None:
    target = Target(*[unavailable() for _ in range(10_000)])
    budget = RetryBudget(earned_per_call=0.1, most=10)
    retrier = target.retrier(budget=budget)
    for _ in range(1000):
        await fails(retrier)
    assert 1000 + 100 <= len(target.requests) <= 1000 + 10 + 100


async def test_what_is_spent_is_said_once_and_logged(
    caplog: pytest.LogCaptureFixture, autojump_clock: Clock
) -> None:
    caplog.set_level("INFO", "alknet.call.retrying")
    target = Target(unavailable(), unavailable())
    budget = RetryBudget(earned_per_call=0, most=1)
    assert await fails(target.retrier(budget=budget)) == "UNAVAILABLE"
    events = [record.message for record in caplog.records]
    assert events == ["call.retried", "call.retry_budget_spent"]


@given(st.lists(st.booleans(), max_size=60), st.floats(0, 2), st.floats(1, 5))
def test_the_budget_never_gives_more_than_it_got(
    spends: list[bool], earned: float, most: float
) -> None:
    budget = RetryBudget(earned_per_call=earned, most=most)
    calls = extra = 0
    for spend in spends:
        if spend:
            extra += budget.spend()
        else:
            budget.earn()
            calls += 1
        assert 0 <= budget.left <= most
    assert extra <= most + calls * earned + 1e-9


# --- two at once


def _slow_then_fast(target: Target, delays: list[float]) -> Callable[..., Any]:
    async def call(
        operation: str,
        input: object = None,  # noqa: A002
        /,
        **options: Any,
    ) -> msgspec.Raw:
        if operation != "services/schema":
            number = len(target.requests)
            target.requests.append(options)
            target.sent_at.append(trio.current_time())
            await trio.sleep(delays[number])
            target.sent_at.append(math.inf)
            return msgspec.Raw(str(number).encode())
        return await target.call(operation, input, **options)

    return call


HEDGED = RetryPolicy(hedge_after_s=2)


@pytest.mark.parametrize(
    ("delays", "winner", "took"), [([10, 1], b"1", 3), ([3, 10], b"0", 3), ([1], b"0", 1)]
)
async def test_the_first_of_two_answers_wins(
    delays: list[float], winner: bytes, took: float, autojump_clock: Clock
) -> None:
    target = Target(idempotent=True)
    retrier = Retrier(_slow_then_fast(target, delays))
    begun = trio.current_time()
    assert bytes(await retrier.call("shop/look", retry=HEDGED)) == winner
    assert trio.current_time() - begun == pytest.approx(took)
    assert len(target.requests) == len(delays)
    assert target.sent_at.count(math.inf) == 1  # the other was cancelled
    assert all("idempotency_key" not in request for request in target.requests)


async def test_the_second_request_goes_elsewhere_if_there_is_an_elsewhere(
    autojump_clock: Clock,
) -> None:
    target, other = Target(idempotent=True), Target()
    retrier = Retrier(_slow_then_fast(target, [10]), hedge=other.call)
    assert bytes(await retrier.call("shop/look", retry=HEDGED)) == b'"done"'
    assert (len(target.requests), len(other.requests)) == (1, 1)


@pytest.mark.parametrize("why", ["not idempotent", "no budget", "a key"])
async def test_no_second_request_is_sent_where_it_must_not(why: str, autojump_clock: Clock) -> None:
    target = Target(idempotent=why != "not idempotent")
    budget = RetryBudget(earned_per_call=0, most=1)
    if why == "no budget":
        budget.spend()
    retrier = Retrier(_slow_then_fast(target, [10, 1]), budget=budget)
    key = "mine" if why == "a key" else None
    assert bytes(await retrier.call("shop/buy", retry=HEDGED, idempotency_key=key)) == b"0"
    assert len(target.requests) == 1


async def test_an_error_that_may_pass_waits_for_the_other_and_another_does_not(
    autojump_clock: Clock,
) -> None:
    async def slow(*_: object, **options: object) -> msgspec.Raw:
        await trio.sleep(5)
        return msgspec.Raw(b"1")

    async def idempotent(_operation: str) -> bool:
        return True

    for error, expected in ((unavailable(), None), (CallError("SOLD_OUT", "no"), "SOLD_OUT")):
        retrier = Retrier(slow, hedge=Target(error).call, is_idempotent=idempotent)
        if expected is None:
            assert bytes(await retrier.call("shop/buy", retry=HEDGED)) == b"1"
        else:
            assert await fails(retrier, HEDGED) == expected


@pytest.mark.parametrize("turn", range(16))  # Trio draws which of two tasks is first
async def test_a_second_that_is_just_being_started_counts(turn: int) -> None:
    is_due = trio.Event()

    async def first() -> msgspec.Raw:
        await is_due.wait()
        raise unavailable()

    async def second() -> msgspec.Raw:
        return msgspec.Raw(b"%d" % turn)

    def may_start() -> bool:
        is_due.set()  # the first fails in the same moment
        return True

    output = await race(first, second, after_s=0, may_start=may_start)
    assert bytes(output) == b"%d" % turn


async def test_if_both_fail_both_are_tried_again(autojump_clock: Clock) -> None:
    target = Target(unavailable(), unavailable(), idempotent=True)
    retrier = target.retrier()
    policy = RetryPolicy(hedge_after_s=0)
    assert bytes(await retrier.call("shop/look", retry=policy)) == b'"done"'
    assert len(target.requests) >= 3


async def test_a_mistake_of_ours_comes_out_as_it_is(autojump_clock: Clock) -> None:
    async def broken(*_: object, **options: object) -> msgspec.Raw:
        raise LocalError("no session")

    async def idempotent(_operation: str) -> bool:
        return True

    retrier = Retrier(broken, is_idempotent=idempotent)
    with pytest.raises(LocalError, match="no session"):
        await retrier.call("shop/buy", retry=HEDGED)


# --- cancelled, and misused


@pytest.mark.parametrize("policy", [RetryPolicy(), HEDGED])
async def test_cancelled_anywhere_nothing_goes_on(
    policy: RetryPolicy, autojump_clock: Clock
) -> None:
    running = 0

    async def call(*_: object, **options: object) -> msgspec.Raw:
        nonlocal running
        running += 1
        try:
            for _step in range(3):
                await trio.lowlevel.checkpoint()
            await trio.sleep(3)
            if len(tries) < 2:
                tries.append(1)
                raise unavailable()
            return msgspec.Raw(b"1")
        finally:
            running -= 1

    async def idempotent(_operation: str) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    tries: list[int] = []

    async def make() -> None:
        tries.clear()
        await Retrier(call, is_idempotent=idempotent).call("shop/buy", retry=policy)

    async def after() -> None:
        assert running == 0

    assert await cancel_at_every_checkpoint(make, after) >= 3


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"first_wait_s": 0},
        {"first_wait_s": 9, "longest_wait_s": 8},
        {"longest_wait_s": math.inf},
        {"hedge_after_s": -1},
        {"hedge_after_s": math.nan},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(LocalError):
        RetryPolicy(**options)  # type: ignore[arg-type]  # the types are right, by name


# --- over a session


async def test_a_session_tries_a_mutation_again_and_it_runs_once(autojump_clock: Clock) -> None:
    operations = Operations()
    done: list[int] = []

    async def change(_given: msgspec.Raw) -> object:
        if not done:
            done.append(1)
            raise CallError(ErrorCode.UNAVAILABLE, "the disk is full")
        return len(done)

    operations.queries["shop/buy"] = change
    operations.kinds["shop/buy"] = "mutation"
    async with session_pair("memory", operations) as (client, _server):
        assert await client.call_as(int, "shop/buy", retry=RetryPolicy()) == 1
        assert client.retrier.budget.left == pytest.approx(9)
        with pytest.raises(CallError, match="NOT_FOUND"):
            await client.call("no/such", retry=RetryPolicy())
        assert len(operations.requests) == 3
        assert await client.call_as(int, "shop/buy", retry=None) == 1


async def test_a_session_that_is_over_gives_up_at_once(autojump_clock: Clock) -> None:
    async with session_pair("memory", Operations()) as (client, _server):
        client.end(CloseCode.OK)
        begun = trio.current_time()
        with pytest.raises(CallError, match="UNAVAILABLE"):
            await client.call("echo/unary", retry=RetryPolicy(first_wait_s=5))
        assert trio.current_time() == begun


def _gaps(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]
