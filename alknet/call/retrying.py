"""Trying again: a policy for calls that fail in ways that may pass, and a budget for all of them.

Nothing is tried again unless a call asks for it by a `RetryPolicy`. Then what is retried is what
cannot run twice by that: a request that no handler has seen, one with an idempotency key, and one
of an idempotent operation (`alknet.call.spec.OperationSpec.is_idempotent`).
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, Unpack

import msgspec
import trio

from alknet.call.calling import encode_input
from alknet.call.codes import CallError
from alknet.call.handles import CallOptions
from alknet.call.hedging import race
from alknet.call.reach import ANY_PEER
from alknet.core.backoff import Backoff
from alknet.errors import LocalError

__all__ = ["Call", "Retrier", "RetryBudget", "RetryOptions", "RetryPolicy"]

log = logging.getLogger(__name__)

KEY_BYTES = 16
"""Of randomness in a key that we make: nobody draws the same twice."""

MOST_KNOWN = 256
"""Operations whose idempotency is remembered: more than one program calls."""

_RANDOM = secrets.SystemRandom()


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often and when a call is tried again.

    Attributes:
        attempts: How often it is tried in all, 1 or more.
        first_wait_s: The longest wait before the second attempt; the real one is drawn from 0 up
            to it ("full jitter"), so that those who failed together do not come back together.
        longest_wait_s: The bound doubles with each attempt, up to this. A callee that asks for a
            longer one is not asked again.
        makes_key: Send an idempotency key if the call has none: mutations and uploads can then be
            tried again, for the node remembers what it did. Queries ignore it.
        hedge_after_s: For idempotent operations: send the request a second time if there is no
            answer for so long, and take whichever comes first. None for never.
    """

    attempts: int = 3
    first_wait_s: float = 0.1
    longest_wait_s: float = 30.0
    makes_key: bool = True
    hedge_after_s: float | None = None

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise LocalError(f"attempts must be 1 or more, not {self.attempts}")
        if not 0 < self.first_wait_s <= self.longest_wait_s < math.inf:
            raise LocalError("waits must be above 0, and the first not above the longest")
        if self.hedge_after_s is not None and not 0 <= self.hedge_after_s < math.inf:
            raise LocalError(f"hedge_after_s must be a time, not {self.hedge_after_s}")


class RetryOptions(CallOptions, total=False):
    """What may be said about a call that may be tried again.

    Attributes:
        retry: When and how often; None for never.
    """

    retry: RetryPolicy | None


class RetryBudget:
    """How many extra requests may be made: a bucket that calls fill and retries empty.

    Where everything fails, retries are then a fixed part of the load and do not multiply it.

    Attributes:
        left: Extra requests that may be made now; may have a fraction.
    """

    # A tenth more load is bearable where a multiple is not (Finagle and Envoy allow a fifth); and a
    # program that makes few calls may retry all of them for a while.
    EARNED_PER_CALL = 0.1
    MOST = 10.0

    def __init__(self, *, earned_per_call: float = EARNED_PER_CALL, most: float = MOST) -> None:
        """Make a full one.

        Args:
            earned_per_call: The part of an extra request that each call pays in.
            most: What it holds.
        """
        self.left = most
        self._earned_per_call = earned_per_call
        self._most = most

    def earn(self) -> None:
        """Note a call that was made for the first time."""
        self.left = min(self._most, self.left + self._earned_per_call)

    def spend(self) -> bool:
        """Take out one extra request; False if there is none."""
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Call(Protocol):
    """Makes one request: `CallSession.call`, or a peer environment's with its peer bound."""

    def __call__(
        self,
        operation: str,
        input: object = None,  # noqa: A002  the wire's word
        /,
        **options: Unpack[CallOptions],
    ) -> Awaitable[msgspec.Raw]: ...


class Retrier:
    """Makes the calls of one session or environment, and tries them again as their policies say.

    Attributes:
        budget: What its retries and hedges share.
    """

    def __init__(
        self,
        call: Call,
        *,
        hedge: Call | None = None,
        remembers_keys: bool = True,
        is_idempotent: Callable[[str], Awaitable[bool]] | None = None,
        is_over: Callable[[], bool] = lambda: False,
        budget: RetryBudget | None = None,
        random: Callable[[], float] = _RANDOM.random,
    ) -> None:
        """Make one with a full budget.

        Args:
            call: Makes a request.
            hedge: Makes the second of two at once; by default *call* does.
            remembers_keys: A second request meets the node that got the first, so that an
                idempotency key is of use; False for a choice among several nodes.
            is_idempotent: Says so of an operation; by default its node is asked.
            is_over: No further request can succeed.
            budget: To share with others; by default it has its own.
            random: Returns numbers from 0 up to, not including, 1.
        """
        self.budget = RetryBudget() if budget is None else budget
        self._call = call
        self._hedge = hedge or call
        self._remembers_keys = remembers_keys
        self._is_idempotent = is_idempotent
        self._is_over = is_over
        self._random = random
        self._known: dict[str, bool] = {}

    async def call(
        self,
        operation: str,
        input: object = None,  # noqa: A002  the wire's word
        **options: Unpack[RetryOptions],
    ) -> msgspec.Raw:
        """Run a query or mutation like `CallSession.call`, and try again as ``retry`` says.

        ``timeout_s`` is for all attempts together. Cancelled, it is as with the one that runs.

        Raises:
            CallError: Of the last attempt.
        """
        policy = options.pop("retry", None)
        self.budget.earn()
        if policy is None:
            once: CallOptions = options
            return await self._call(operation, input, **once)
        run = _Run(operation, encode_input(input), policy, options, self._random)
        await self._prepare(run)
        while True:
            try:
                return await self._attempt(run)
            except CallError as exc:
                wait_s = await self._wait_after(run, exc)
                if wait_s is None:
                    raise
                fields = {"operation": operation, "code": exc.code, "wait_s": round(wait_s, 3)}
                log.info("call.retried", extra=fields)
            await trio.sleep(wait_s)

    async def _prepare(self, run: _Run) -> None:
        if run.options.get("idempotency_key") is not None:
            return  # a hedge would not help: it waits for the first of the same key
        if run.policy.hedge_after_s is not None:
            run.is_hedged = await self._may_run_twice(run)
        if run.policy.makes_key and self._keys_help(run) and not run.is_hedged:
            run.options["idempotency_key"] = secrets.token_hex(KEY_BYTES)

    async def _attempt(self, run: _Run) -> msgspec.Raw:
        run.attempts += 1
        first, second = (
            partial(call, run.operation, run.data, **run.options_now())
            for call in (self._call, self._hedge)
        )
        if not run.is_hedged:
            return await first()
        assert run.policy.hedge_after_s is not None
        return await race(first, second, after_s=run.policy.hedge_after_s, may_start=self._extra)

    async def _wait_after(self, run: _Run, error: CallError) -> float | None:
        """Return how long to wait before the next attempt; None if there is to be none."""
        if not error.retryable or run.attempts >= run.policy.attempts or self._is_over():
            return None
        if not (error.has_not_started or self._has_key(run) or await self._may_run_twice(run)):
            return None
        asked_s = error.retry_after_s or 0.0
        # On top of what was asked for: all who were told so would come at the same moment.
        wait_s = asked_s + run.backoff.next_s()
        if asked_s > run.policy.longest_wait_s or trio.current_time() + wait_s >= run.deadline:
            return None
        return wait_s if self._extra() else None

    def _has_key(self, run: _Run) -> bool:
        return self._keys_help(run) and run.options.get("idempotency_key") is not None

    def _keys_help(self, run: _Run) -> bool:
        # A node can choose another peer for the second request, who has not seen the first.
        return self._remembers_keys and ANY_PEER not in (run.options.get("peer") or ())

    def _extra(self) -> bool:
        if self.budget.spend():
            return True
        log.info("call.retry_budget_spent")
        return False

    async def _may_run_twice(self, run: _Run) -> bool:
        """Whether the operation says that it is idempotent; what cannot be asked does not."""
        if self._is_idempotent is not None:
            return await self._is_idempotent(run.operation)
        known = self._known.get(run.operation)
        if known is None:
            try:
                known = await self._ask(run)
            except CallError:
                return False
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[run.operation] = known
        return known

    async def _ask(self, run: _Run) -> bool:
        options = run.options_now()
        options.pop("idempotency_key", None)
        options.pop("large_output", None)
        name = run.operation.removeprefix("/")
        described = await self._call("services/schema", {"name": name}, **options)
        try:
            return msgspec.json.decode(described, type=_Described).idempotent
        except msgspec.DecodeError:
            return False


class _Run:
    """One call and its attempts."""

    __slots__ = (
        "attempts",
        "backoff",
        "data",
        "deadline",
        "is_hedged",
        "operation",
        "options",
        "policy",
    )

    def __init__(
        self,
        operation: str,
        data: msgspec.Raw,
        policy: RetryPolicy,
        options: CallOptions,
        random: Callable[[], float],
    ) -> None:
        self.operation = operation
        self.data = data
        self.policy = policy
        self.options = options
        self.attempts = 0
        self.is_hedged = False
        timeout_s = options.get("timeout_s")
        self.deadline = math.inf if timeout_s is None else trio.current_time() + timeout_s
        self.backoff = Backoff(
            first_s=policy.first_wait_s, longest_s=policy.longest_wait_s, random=random
        )

    def options_now(self) -> CallOptions:
        """Return the options of a request that is made now, within what is left of the time."""
        options = self.options.copy()
        if self.deadline < math.inf:
            options["timeout_s"] = max(0.001, self.deadline - trio.current_time())
        return options


class _Described(msgspec.Struct):
    idempotent: bool = False
