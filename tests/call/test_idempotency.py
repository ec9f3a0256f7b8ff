"""Requests that are sent again under their idempotency key get the first answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.session import CallSession
from alknet.call.sharing import RepeatedCalls
from alknet.core.contracts import CloseCode
from alknet.core.identity import ANONYMOUS, Identity
from alknet.core.limits import Limits
from alknet.testing.contract import cancel_at_every_checkpoint
from tests.call.sessions import CARRIERS, PEER, Operations, is_idle, session_pair

both = pytest.mark.parametrize("carrier", CARRIERS)


class Shop(Operations):
    """Sells, counts what it has sold, and waits for `go` if it is `slow`."""

    def __init__(self) -> None:
        super().__init__()
        self.sold: list[object] = []
        self.go = trio.Event()
        self.is_slow = False
        self.error: Exception | None = None
        for name in ("shop/buy", "shop/sell"):
            self.queries[name] = self._buy
            self.kinds[name] = "mutation"
        self.queries["shop/look"] = self._buy
        self.uploads["shop/fill"] = self._fill

    async def _buy(self, given: msgspec.Raw) -> object:
        self.sold.append(msgspec.json.decode(given))
        if self.is_slow:
            await self.go.wait()
        if self.error is not None:
            raise self.error
        return len(self.sold)

    async def _fill(self, _given: msgspec.Raw, items: AsyncIterator[msgspec.Raw]) -> object:
        self.sold += [msgspec.json.decode(item) async for item in items]
        if self.is_slow:
            await self.go.wait()
        return len(self.sold)


async def buy(client: CallSession, key: str | None = "k", what: object = "tea") -> int:
    return await client.call_as(int, "shop/buy", what, idempotency_key=key)


@asynccontextmanager
async def two_sessions(
    shop: Operations, second: Identity = PEER, carrier: str = "memory"
) -> AsyncGenerator[tuple[CallSession, CallSession, CallSession]]:
    """Yield a client, another client, and the server of the first."""
    async with (
        session_pair(carrier, shop) as (client, server),
        session_pair(carrier, shop, identity=second) as (again, _),
    ):
        yield client, again, server


# --- after the first has ended


@both
async def test_a_retry_gets_the_first_answer_and_nothing_runs_again(carrier: str) -> None:
    shop = Shop()
    async with session_pair(carrier, shop) as (client, _server):
        assert [await buy(client), await buy(client)] == [1, 1]
        assert await buy(client, "other") == 2
        assert await buy(client, None) == 3
        assert await buy(client, None) == 4
    assert len(shop.sold) == 4


@both
async def test_a_retry_after_a_reconnect_gets_the_first_answer(carrier: str) -> None:
    shop = Shop()
    async with session_pair(carrier, shop) as (client, _server):
        assert await buy(client) == 1
    async with session_pair(carrier, shop) as (client, _server):
        assert await buy(client) == 1
    assert shop.sold == ["tea"]


async def test_an_error_that_stays_is_the_answer_too() -> None:
    shop = Shop()
    shop.error = CallError("SOLD_OUT", "no tea", details={"left": 0})
    async with session_pair("memory", shop) as (client, _server):
        for _ in range(3):
            with pytest.raises(CallError, match="no tea") as caught:
                await buy(client)
            assert (caught.value.code, caught.value.details) == ("SOLD_OUT", {"left": 0})
    assert len(shop.sold) == 1


async def test_a_crash_is_the_answer_too_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shop = Shop()
    shop.error = ValueError("the till is stuck")
    ids = set()
    async with session_pair("memory", shop) as (client, _server):
        for _ in range(2):
            with pytest.raises(CallError, match="INTERNAL") as caught:
                await buy(client)
            ids.add(caught.value.correlation_id)
    assert len(ids) == len(shop.sold) == 1
    assert [record.message for record in caplog.records] == ["call.crashed"]


@pytest.mark.parametrize("details", [{"what": object()}, {"what": "\ud800"}])
async def test_an_error_that_cannot_be_sent_is_a_crash_and_the_connection_lives(
    details: dict[str, object],
) -> None:
    shop = Shop()
    shop.error = CallError("SOLD_OUT", "no tea", details=details)
    ids = set()
    async with session_pair("memory", shop) as (client, _server):
        for _ in range(2):
            with pytest.raises(CallError, match="INTERNAL") as caught:
                await buy(client)
            ids.add(caught.value.correlation_id)
        assert await client.call_as(int, "echo/unary", 1) == 1
    assert len(ids) == len(shop.sold) == 1


async def test_an_error_that_may_pass_is_forgotten() -> None:
    shop = Shop()
    shop.error = CallError(ErrorCode.UNAVAILABLE, "closed")
    async with session_pair("memory", shop) as (client, _server):
        with pytest.raises(CallError, match="closed"):
            await buy(client)
        shop.error = None
        assert await buy(client) == 2


async def test_the_answer_is_forgotten_after_the_window(
    autojump_clock: trio.testing.MockClock,
) -> None:
    shop = Shop()
    async with session_pair("memory", shop) as (client, _server):
        assert await buy(client) == 1
        await trio.sleep(Limits().idempotency_window_s - 1)
        assert await buy(client) == 1
        await trio.sleep(1)
        assert await buy(client) == 2
        assert len(shop.repeated.answers) == 1


async def test_the_key_of_another_request_is_a_conflict() -> None:
    shop = Shop()
    async with session_pair("memory", shop) as (client, _server):
        await buy(client)
        for operation, what in (("shop/buy", "coal"), ("shop/sell", "tea")):
            with pytest.raises(CallError, match="idempotency key") as caught:
                await client.call(operation, what, idempotency_key="k")
            assert (caught.value.code, caught.value.retryable) == ("CONFLICT", False)
    assert shop.sold == ["tea"]


async def test_a_query_runs_each_time() -> None:
    shop = Shop()
    async with session_pair("memory", shop) as (client, _server):
        for count in (1, 2):
            assert await client.call_as(int, "shop/look", idempotency_key="k") == count
        assert len(shop.repeated.answers) == 0


@both
async def test_an_upload_is_answered_before_its_items(carrier: str) -> None:
    shop = Shop()
    async with session_pair(carrier, shop) as (client, server):
        for _ in range(2):
            async with client.upload("shop/fill", idempotency_key="k") as upload:
                try:
                    for item in ("a", "b"):
                        await upload.send(item)
                except trio.BrokenResourceError:
                    pass
                assert int(bytes(await upload.finish())) == 2
        assert await is_idle(client, server)
    assert shop.sold == ["a", "b"]


async def test_an_answer_that_is_too_large_is_not_given_twice_nor_made_twice() -> None:
    shop = Shop()

    async def big(_given: msgspec.Raw) -> object:
        shop.sold.append("big")
        return "x" * 20_000

    shop.queries["shop/buy"] = big
    shop.repeated = RepeatedCalls(lambda: Limits(idempotency_bytes_per_identity=10_000))
    async with session_pair("memory", shop) as (client, _server):
        await client.call("shop/buy", idempotency_key="k")
        with pytest.raises(CallError, match="too large to be kept") as caught:
            await client.call("shop/buy", idempotency_key="k")
        assert not caught.value.retryable
    assert shop.sold == ["big"]


@pytest.mark.parametrize("key", ["", "ä" * 65, "x" * 129])
async def test_a_key_has_1_to_128_bytes(key: str) -> None:
    async with session_pair("memory", Shop()) as (client, _server):
        with pytest.raises(CallError, match="1 to 128 bytes") as caught:
            await buy(client, key)
        assert caught.value.code == "INVALID_INPUT"
        assert await buy(client, "ä" * 64) == 1


# --- whose key it is


async def test_two_identities_never_share_a_key() -> None:
    shop = Shop()
    async with two_sessions(shop, Identity("peer:w2")) as (client, other, _):
        assert [await buy(client), await buy(other), await buy(other)] == [1, 2, 2]


async def test_a_token_has_keys_of_its_own() -> None:
    shop = Shop()
    shop.tokens["t"] = Identity("key:t")
    async with session_pair("memory", shop) as (client, _):
        assert await buy(client) == 1
        for _ in range(2):
            assert await client.call_as(int, "shop/buy", "tea", idempotency_key="k", token="t") == 2


async def test_those_for_whom_a_hub_asks_never_share_a_key() -> None:
    shop = Shop()
    async with session_pair("memory", shop) as (hub, _):
        sold = [
            await hub.call_as(
                int, "shop/buy", "tea", idempotency_key="k", forwarded_for=Identity(who)
            )
            for who in ("peer:bob", "peer:eve", "peer:bob")
        ]
    assert sold == [1, 2, 1]


async def test_two_strangers_never_share_a_key() -> None:
    shop = Shop()
    counts = []
    for _ in range(2):
        async with session_pair("unix", shop, identity=ANONYMOUS) as (client, _server):
            counts.append([await buy(client), await buy(client)])
    assert counts == [[1, 1], [2, 2]]


# --- while the first runs


async def test_a_retry_waits_for_the_first_and_shares_its_answer() -> None:
    shop = Shop()
    shop.is_slow = True
    answers = []

    async def call(client: CallSession) -> None:
        answers.append(await buy(client))

    async with two_sessions(shop) as (client, again, _):
        async with trio.open_nursery() as nursery:
            for session in (client, again, client):
                nursery.start_soon(call, session)
            await trio.testing.wait_all_tasks_blocked()
            assert (answers, shop.sold) == ([], ["tea"])
            shop.go.set()
    assert (answers, len(shop.repeated)) == ([1, 1, 1], 0)


async def test_another_request_under_a_key_that_runs_is_a_conflict() -> None:
    shop = Shop()
    shop.is_slow = True
    async with two_sessions(shop) as (client, again, _), trio.open_nursery() as nursery:
        nursery.start_soon(buy, client)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(CallError, match="CONFLICT"):
            await buy(again, what="coal")
        shop.go.set()


@pytest.mark.parametrize("leaver", [0, 1])
async def test_an_abort_of_one_does_not_abort_the_other(leaver: int) -> None:
    shop = Shop()
    shop.is_slow = True
    answers = []

    async def call(client: CallSession, scope: trio.CancelScope) -> None:
        with scope:
            answers.append(await buy(client))

    async with two_sessions(shop) as (client, again, server):
        scopes = [trio.CancelScope(), trio.CancelScope()]
        async with trio.open_nursery() as nursery:
            for session, scope in zip((client, again), scopes, strict=True):
                nursery.start_soon(call, session, scope)
                await trio.testing.wait_all_tasks_blocked()
            scopes[leaver].cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert shop.running == 1
            assert len(server.serving.calls) == leaver  # the first is answered, not kept waiting
            shop.go.set()
        assert (answers, shop.sold, shop.cancelled) == ([1], ["tea"], 0)
        assert await buy(client) == 1


async def test_the_end_of_the_connection_that_began_it_leaves_it_to_the_other() -> None:
    shop = Shop()
    shop.is_slow = True
    answers: list[object] = []

    async def call(client: CallSession) -> None:
        try:
            answers.append(await buy(client))
        except CallError as exc:
            answers.append(exc.code)

    async with two_sessions(shop) as (client, again, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, client)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(call, again)
            await trio.testing.wait_all_tasks_blocked()
            server.end(CloseCode.INTERNAL)
            await trio.testing.wait_all_tasks_blocked()
            assert (answers, shop.running) == (["UNAVAILABLE"], 1)
            shop.go.set()
    assert (answers, shop.sold) == (["UNAVAILABLE", 1], ["tea"])


async def test_if_all_leave_the_handler_is_cancelled_and_the_key_is_free() -> None:
    shop = Shop()
    shop.is_slow = True
    async with two_sessions(shop) as (client, again, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(buy, client)
            nursery.start_soon(buy, again)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await is_idle(client, again, server)
        assert (shop.cancelled, shop.running, len(shop.repeated)) == (1, 0, 0)
        shop.is_slow = False
        assert await buy(again, what="coal") == 2


async def test_who_asks_again_while_a_cancelled_run_ends_waits_for_its_end() -> None:
    shop = Shop()
    is_closing, may_close = trio.Event(), trio.Event()

    async def careful(_given: msgspec.Raw) -> object:
        shop.sold.append(1)
        if len(shop.sold) > 1:
            return "second"
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                is_closing.set()
                await may_close.wait()

    shop.queries["shop/buy"] = careful
    got = []

    async def again(client: CallSession) -> None:
        got.append(await client.call_as(str, "shop/buy", idempotency_key="k"))

    async with two_sessions(shop) as (client, other, _):
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as first:
                    first.start_soon(buy, client, "k", None)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            await is_closing.wait()
            nursery.start_soon(again, other)
            await trio.testing.wait_all_tasks_blocked()
            assert len(shop.sold) == 1
            may_close.set()
    assert (got, len(shop.sold), len(shop.repeated)) == (["second"], 2, 0)


async def test_the_longest_deadline_counts(autojump_clock: trio.testing.MockClock) -> None:
    shop = Shop()
    shop.is_slow = True
    ends: list[tuple[str, float]] = []

    async def call(client: CallSession, timeout_s: float) -> None:
        try:
            await client.call("shop/buy", idempotency_key="k", timeout_s=timeout_s)
        except CallError as exc:
            ends.append((exc.code, round(trio.current_time() - begun)))

    async with two_sessions(shop) as (client, again, _):
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, client, 2)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(call, again, 5)
            await trio.sleep(3)
            assert shop.running == 1
    assert ends == [("TIMEOUT", 2), ("TIMEOUT", 5)]
    assert (shop.running, shop.cancelled, len(shop.repeated)) == (0, 1, 0)


@both
@pytest.mark.parametrize("is_whole", [True, False])
async def test_an_upload_whose_sender_left_begins_anew_only_if_input_is_missing(
    carrier: str, is_whole: bool
) -> None:
    shop = Shop()
    shop.is_slow = True
    answers = []

    async def fill(client: CallSession, scope: trio.CancelScope, finish: bool) -> None:
        with scope:
            async with client.upload("shop/fill", idempotency_key="k") as upload:
                await upload.send("a")
                if not finish:
                    await trio.sleep_forever()
                answers.append(int(bytes(await upload.finish())))

    async with two_sessions(shop, carrier=carrier) as (client, again, _):
        first, second = trio.CancelScope(), trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fill, client, first, is_whole)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(fill, again, second, True)
            await trio.testing.wait_all_tasks_blocked()
            assert shop.started == 1
            first.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert shop.started == (1 if is_whole else 2)
            shop.go.set()
    assert (answers, shop.sold) == ([1], ["a"])


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_keyed_call_cancelled_anywhere_leaves_nothing(is_first: bool) -> None:
    shop = Shop()
    number = 0
    async with two_sessions(shop) as (client, again, server):

        async def call() -> None:
            nonlocal number
            number += 1
            shop.is_slow, shop.go = True, trio.Event()
            async with trio.open_nursery() as nursery:
                if not is_first:
                    nursery.start_soon(buy, again, str(number))
                    await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(_set_when_blocked, shop)
                await buy(client, str(number))

        async def after() -> None:
            assert await is_idle(client, again, server)
            assert (shop.running, len(shop.repeated)) == (0, 0)

        assert await cancel_at_every_checkpoint(call, after) >= 1


@both
async def test_a_keyed_upload_cancelled_anywhere_leaves_nothing(carrier: str) -> None:
    shop = Shop()
    number = 0
    async with two_sessions(shop, carrier=carrier) as (client, again, server):

        async def call() -> None:
            nonlocal number
            number += 1
            async with client.upload("shop/fill", idempotency_key=str(number)) as upload:
                for item in range(3):
                    await upload.send(item)
                await upload.finish()

        async def after() -> None:
            assert await is_idle(client, again, server)
            assert (shop.running, len(shop.repeated)) == (0, 0)

        assert await cancel_at_every_checkpoint(call, after) >= 3


async def _set_when_blocked(shop: Shop) -> None:
    await trio.testing.wait_all_tasks_blocked()
    shop.go.set()
