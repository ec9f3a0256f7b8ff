"""A token whose expiry is moved ends its running calls at the new time."""

from __future__ import annotations

import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.handler import CallHandler
from alknet.core.limits import Limits
from tests.call.sessions import CARRIERS, Operations
from tests.call.test_handler import Tokens, served


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(
    ("first", "then", "ends_at"), [(None, 5.0, 5), (20.0, 5.0, 5), (5.0, 20.0, 20), (5.0, None, 30)]
)
async def test_running_calls_follow_the_expiry_of_their_token(
    carrier: str,
    first: float | None,
    then: float | None,
    ends_at: float,
    autojump_clock: trio.testing.MockClock,
) -> None:
    identities = Tokens("alk_one")
    start = 1_000_000.0
    identities.expires_at = None if first is None else start + first
    operations = Operations()
    operations.timeouts["echo/slow"] = 30
    handler = CallHandler(
        operations,
        Limits(),
        identities=identities,
        clock=lambda: start + trio.current_time(),
    )
    async with served(carrier, handler, "alk_one") as client, trio.open_nursery() as nursery:

        async def call() -> None:
            with pytest.raises(CallError) as caught:
                await client.call("echo/slow", token="alk_one")
            assert caught.value.code == ("TIMEOUT" if then is None else "FORBIDDEN")
            assert ends_at <= trio.current_time() < ends_at + 0.5

        nursery.start_soon(call)
        await trio.sleep(1)
        identities.expires_at = None if then is None else start + then
        identities.change()
