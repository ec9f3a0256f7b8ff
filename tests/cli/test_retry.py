"""``alknet call --retry``: what is tried again, over which connection, and what comes out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import click
import msgspec
import pytest
import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.handles import CallOptions
from alknet.call.session import CallSession, open_session
from alknet.cli.failures import CommandError
from alknet.cli.remote import Remote
from alknet.cli.retry import call_again
from alknet.core.contracts import CloseCode
from alknet.core.endpoint.dial import DialError
from alknet.core.limits import Limits
from alknet.core.scopes import open_background
from alknet.testing.contract import cancel_at_every_checkpoint
from tests.call.sessions import Operations, connections
from tests.cli.kit import Cli

Clock = trio.testing.MockClock


class Known(Remote):
    """A node in this process; `dials` are the errors that the next connections meet."""

    operations: Operations
    dials: list[Exception]
    connections: list[CallSession]

    def __init__(self, *dials: Exception, target: str | None = "@node") -> None:
        super().__init__(target, (), None, None, None)
        self.__dict__.update(operations=_Kinds(), dials=list(dials), connections=[])

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[CallSession]:
        await trio.lowlevel.checkpoint()
        if self.dials:
            raise self.dials.pop(0)
        async with connections("memory") as (dialer, acceptor), open_background() as nursery:
            server = CallSession(acceptor, self.operations, limits=Limits())
            self.connections.append(server)
            await nursery.start(server.run)
            async with open_session(dialer) as client:
                yield client

    async def call(self, operation: str, *, retries: int = 2, **options: str) -> object:
        about: CallOptions = {**options}  # type: ignore[typeddict-item]  # keys of it alone
        output = await call_again(self, operation, msgspec.Raw(b"{}"), about, retries=retries)
        return msgspec.json.decode(output)


class _Kinds(Operations):
    def __init__(self) -> None:
        super().__init__()
        self.queries["services/schema"] = self._schema
        self.queries["shop/buy"] = self._buy
        self.kinds["shop/buy"] = "mutation"
        self.bought = 0
        self.then: list[object] = []

    async def _schema(self, given: msgspec.Raw) -> object:
        name = msgspec.json.decode(given)["name"]
        kind = "subscription" if name in self.subscriptions else self.kinds.get(name, "query")
        return {"op_type": kind, "large_output": False, "idempotent": kind == "query"}

    async def _buy(self, _given: msgspec.Raw) -> object:
        self.bought += 1
        if self.then:
            step = self.then.pop()
            assert callable(step)
            step()
            await trio.sleep_forever()
        return self.bought


def _refused() -> DialError:
    return DialError("node", [])


async def test_a_node_that_is_not_there_yet_is_dialled_again(
    autojump_clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = Known(_refused(), _refused())
    assert await remote.call("shop/buy") == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("UNAVAILABLE: cannot reach node")
    assert second.endswith("attempt 3 of 3")


async def test_what_the_last_dial_met_comes_out(autojump_clock: Clock) -> None:
    remote = Known(*[_refused() for _ in range(4)])
    with pytest.raises(DialError):
        await remote.call("shop/buy", retries=3)
    assert not remote.dials


async def test_a_node_of_this_home_that_does_not_run_yet_is_waited_for(
    autojump_clock: Clock,
) -> None:
    absent = CommandError("UNAVAILABLE", "no node runs here", hint="start it", status=4)
    assert await Known(absent, target=None).call("shop/buy") == 1
    with pytest.raises(CommandError, match="no node runs"):
        await Known(*[absent] * 3, target=None).call("shop/buy")
    with pytest.raises(CommandError, match="no node runs"):
        await Known(absent).call("shop/buy")  # of a peer it would be an error that stays


async def test_a_call_whose_connection_is_lost_is_made_again_under_its_key(
    autojump_clock: Clock,
) -> None:
    remote = Known()
    kinds = remote.operations
    assert isinstance(kinds, _Kinds)
    kinds.then.append(lambda: remote.connections[0].end(CloseCode.INTERNAL))
    assert await remote.call("shop/buy") == 2
    keys = {r.idempotency_key for r in kinds.requests if r.operation == "shop/buy"}
    assert (len(remote.connections), len(keys), None in keys) == (2, 1, False)


async def test_a_node_that_was_itself_killed_has_forgotten_the_key(
    autojump_clock: Clock,
) -> None:
    remote = Known()
    killed = remote.operations
    assert isinstance(killed, _Kinds)

    def kill() -> None:
        remote.operations = _Kinds()  # it is back, with nothing in its memory
        remote.connections[0].end(CloseCode.INTERNAL)

    killed.then.append(kill)
    assert await remote.call("shop/buy") == 1
    again = remote.operations
    assert isinstance(again, _Kinds)
    assert (killed.bought, again.bought) == (1, 1)


def test_the_help_says_what_may_run_twice_and_what_is_never_called_again(cli: Cli) -> None:
    told = " ".join(cli.ok("call", "--help").out.split())
    assert "was itself killed, and is back, the mutation may run a second time" in told
    assert "Never called again are a mutation for @any that may have begun" in told


@pytest.mark.parametrize(("kind", "bought"), [("query", 2), ("mutation", 1)])
async def test_at_any_peer_only_what_is_idempotent_is_called_again(
    kind: str, bought: int, autojump_clock: Clock
) -> None:
    remote = Known(target="@hub/any")
    kinds = remote.operations
    assert isinstance(kinds, _Kinds)
    kinds.kinds["shop/buy"] = kind
    kinds.then.append(lambda: remote.connections[0].end(CloseCode.INTERNAL))
    if kind == "query":
        assert await remote.call("shop/buy") == 2
    else:
        with pytest.raises(CallError, match="UNAVAILABLE"):
            await remote.call("shop/buy")
    assert kinds.bought == bought
    assert {request.idempotency_key for request in kinds.requests} == {None}


async def test_a_key_that_is_given_is_used(autojump_clock: Clock) -> None:
    remote = Known()
    for _ in range(2):
        assert await remote.call("shop/buy", idempotency_key="mine") == 1


async def test_an_error_that_stays_is_not_tried_again(autojump_clock: Clock) -> None:
    remote = Known()

    async def sold_out(_given: msgspec.Raw) -> object:
        raise CallError(ErrorCode.CONFLICT, "sold out")

    remote.operations.queries["shop/buy"] = sold_out
    with pytest.raises(CallError, match="sold out"):
        await remote.call("shop/buy")
    assert len(remote.connections) == 1


async def test_a_subscription_cannot_be_tried_again(autojump_clock: Clock) -> None:
    with pytest.raises(click.UsageError, match="echo/endless is of the kind subscription"):
        await Known().call("echo/endless")


async def test_cancelled_anywhere_nothing_runs_on(autojump_clock: Clock) -> None:
    remotes: list[Known] = []

    async def call() -> None:
        remotes.append(Known(_refused()))
        await remotes[-1].call("shop/buy")

    async def after() -> None:
        operations = remotes[-1].operations
        assert (operations.running, len(operations.repeated)) == (0, 0)

    assert await cancel_at_every_checkpoint(call, after) >= 5


@pytest.mark.parametrize("key", ["", "x" * 129, "a\nb"])
def test_a_key_that_cannot_be_one_is_a_usage_error(cli: Cli, key: str) -> None:
    result = cli.fails(2, "call", "node/ping", "--idempotency-key", key)
    assert "1 to 128 bytes" in result.err


@pytest.mark.parametrize("count", ["0", "101", "x"])
def test_a_count_of_retries_that_makes_no_sense_is_a_usage_error(cli: Cli, count: str) -> None:
    assert "--retry" in cli.fails(2, "call", "node/ping", "--retry", count).err
