from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trio.testing import wait_all_tasks_blocked

from alknet.core.contracts import CloseCode, CloseReason, Connection
from alknet.core.endpoint import Endpoint
from alknet.core.identity import Identity, NodeId
from alknet.core.limits import Limits
from alknet.core.router import Router
from alknet.core.tcp.handshake import accept_tls, dial_tls
from alknet.core.tcp.turns import Turn
from alknet.core.tls.credentials import NodeCredentials
from alknet.core.tls.trust import PinnedKey
from alknet.errors import Denied, Malformed, Unavailable
from alknet.testing.memory import MemoryConnection, memory_connection_pair
from tests.core.endpoint_kit import ALICE, BOB, Handler, TableIdentities, ask, echo

PEER = Identity("peer:alice", scopes=("echo",))


class Bench:
    """A running endpoint with memory connections into it."""

    def __init__(self, endpoint: Endpoint, nursery: trio.Nursery, stack: AsyncExitStack) -> None:
        self.endpoint = endpoint
        self.nursery = nursery
        self._stack = stack

    async def connect(
        self, alpn: str = "test/1", key: NodeId | None = None, address: str = "192.0.2.1:5"
    ) -> MemoryConnection:
        pair = memory_connection_pair(alpn=alpn, dialer_key=key)
        dialer, acceptor = await self._stack.enter_async_context(pair)
        acceptor.remote_address = address
        self.nursery.start_soon(self.endpoint.serve_connection, acceptor)
        await wait_all_tasks_blocked()
        return dialer


@asynccontextmanager
async def bench(
    *handlers: Handler, identities: TableIdentities | None = None, limits: Limits | None = None
) -> AsyncGenerator[Bench]:
    endpoint = Endpoint(
        Router(handlers or [Handler(echo)]), identities or TableIdentities(), limits
    )
    async with AsyncExitStack() as stack, endpoint.running() as nursery:
        yield Bench(endpoint, nursery, stack)
        endpoint.hurry()


async def crash(connection: Connection) -> None:
    raise ZeroDivisionError


async def until_draining(connection: Connection) -> None:
    await connection.draining.wait()


async def never(connection: Connection) -> None:
    await trio.sleep_forever()


def refused(connection: Connection) -> tuple[int, str]:
    reason = connection.close_reason
    assert reason is not None
    assert reason.by_peer
    return reason.code, reason.reason


class Faulty(MemoryConnection):
    """A connection whose transport has a bug, which shows when it ends."""

    async def wait_closed(self) -> CloseReason:
        await super().wait_closed()
        raise trio.BusyResourceError("two tasks at one end")


@pytest.mark.parametrize("handle", [until_draining, echo])
async def test_a_fault_of_a_transport_ends_its_own_connection_alone(
    handle: Callable[[Connection], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    handlers = Handler(handle, alpns=("a",)), Handler(echo, alpns=("b",))
    async with bench(*handlers) as b, memory_connection_pair(alpn="a") as (dialer, acceptor):
        other = await b.connect("b")
        acceptor.__class__ = Faulty
        b.nursery.start_soon(b.endpoint.serve_connection, acceptor)
        await wait_all_tasks_blocked()
        dialer.close(5, "enough")
        await wait_all_tasks_blocked()
        assert [c.alpn for c in b.endpoint.connections()] == ["b"]
        assert await ask(other) == b"ping"
    assert "connection.crashed" in caplog.text


async def test_a_connection_reaches_the_handler_of_its_alpn() -> None:
    async with bench(Handler(crash, alpns=("a",)), Handler(echo, alpns=("b",))) as b:
        assert await ask(await b.connect("b")) == b"ping"


async def test_a_crash_ends_its_own_connection_and_no_other() -> None:
    async with bench(Handler(crash, alpns=("a",)), Handler(echo, alpns=("b",))) as b:
        before = await b.connect("b")
        crashed = await b.connect("a")
        assert refused(crashed)[0] == CloseCode.HANDLER_ERROR
        assert await ask(before) == b"ping"
        assert await ask(await b.connect("b")) == b"ping"


async def test_the_handler_sees_the_identity_of_the_proven_key() -> None:
    seen: list[Identity] = []

    async def look(connection: Connection) -> None:
        seen.append(connection.identity)

    async with bench(Handler(look), identities=TableIdentities({ALICE: PEER})) as b:
        await b.connect(key=ALICE)
        await b.connect(key=BOB)
        await b.connect()
    assert [identity.id for identity in seen] == ["peer:alice", "anonymous", "anonymous"]


@pytest.mark.parametrize("key", [None, BOB])
async def test_strangers_are_refused_where_an_identity_is_required(key: NodeId | None) -> None:
    async with bench(Handler(crash, requires_identity=True)) as b:
        dialer = await b.connect(key=key)
        assert refused(dialer) == (CloseCode.AUTH_REQUIRED, "identity required")
        assert b.endpoint.connections() == []


async def test_a_peer_is_let_in_where_an_identity_is_required() -> None:
    identities = TableIdentities({ALICE: PEER})
    async with bench(Handler(echo, requires_identity=True), identities=identities) as b:
        assert await ask(await b.connect(key=ALICE)) == b"ping"


@pytest.mark.parametrize("requires_identity", [False, True])
async def test_a_disabled_peers_key_is_refused_everywhere(requires_identity: bool) -> None:
    handler = Handler(echo, requires_identity=requires_identity)
    async with bench(handler, identities=TableIdentities({ALICE: None})) as b:
        dialer = await b.connect(key=ALICE)
        assert refused(dialer) == (CloseCode.REVOKED, "this peer is disabled")


async def test_disabled_keys_count_as_failures_and_unknown_ones_do_not() -> None:
    limits = Limits(failed_authentications_per_minute=2)
    identities = TableIdentities({ALICE: None})
    async with bench(identities=identities, limits=limits) as b:
        for _ in range(3):
            assert (await b.connect(key=BOB)).close_reason is None
        for _ in range(2):
            await b.connect(key=ALICE)
        code, reason = refused(await b.connect(key=BOB))
        assert code == CloseCode.LIMIT
        assert "failed authentications" in reason
        assert (await b.connect(key=BOB, address="192.0.2.9:5")).close_reason is None


async def test_a_stale_store_is_unavailable_and_counts_against_nobody() -> None:
    limits = Limits(failed_authentications_per_minute=1)
    identities = TableIdentities({ALICE: PEER})
    identities.is_stale = True
    async with bench(identities=identities, limits=limits) as b:
        code, reason = refused(await b.connect(key=ALICE))
        assert code == CloseCode.INTERNAL
        assert reason.startswith("unavailable")
        assert await ask(await b.connect()) == b"ping"


async def test_one_connection_too_many_is_refused_and_nobody_else_notices() -> None:
    async with bench(limits=Limits(connections_per_address=2)) as b:
        first = await b.connect()
        second = await b.connect()
        assert refused(await b.connect()) == (
            CloseCode.LIMIT,
            "too many connections from this address",
        )
        assert await ask(first) == await ask(second) == b"ping"
        first.close()
        await wait_all_tasks_blocked()
        assert await ask(await b.connect()) == b"ping"


async def test_an_alpn_that_nobody_serves_is_refused() -> None:
    async with bench() as b:
        assert refused(await b.connect("other/1"))[0] == CloseCode.PROTOCOL


async def test_revoking_a_key_closes_its_live_connections_and_only_those() -> None:
    identities = TableIdentities({ALICE: PEER, BOB: Identity("peer:bob")})
    async with bench(identities=identities) as b:
        alice, bob = await b.connect(key=ALICE), await b.connect(key=BOB)
        identities.forget(ALICE)
        await wait_all_tasks_blocked()
        assert refused(alice)[0] == CloseCode.REVOKED
        assert await ask(bob) == b"ping"
        assert [c.identity for c in b.endpoint.connections()] == ["peer:bob"]


async def test_the_fifth_refused_token_is_one_too_many() -> None:
    accepted: list[Connection] = []

    async def keep(connection: Connection) -> None:
        accepted.append(connection)
        await echo(connection)

    async with bench(Handler(keep)) as b:
        dialer = await b.connect()
        for _ in range(4):
            assert not b.endpoint.report_failed_authentication(accepted[0])
        assert b.endpoint.report_failed_authentication(accepted[0])
        assert await ask(dialer) == b"ping"  # the handler closes, when it has answered


async def test_the_list_of_connections_names_them() -> None:
    async with bench(identities=TableIdentities({ALICE: PEER})) as b:
        await b.connect(key=ALICE, address="192.0.2.7:99")
        (status,) = b.endpoint.connections()
        assert (status.identity, status.peer, status.address) == (
            "peer:alice",
            ALICE.short,
            "192.0.2.7:99",
        )


async def test_since_when_a_peer_is_away_is_known(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with bench(identities=TableIdentities({ALICE: PEER})) as b:
        assert b.endpoint.away_for_s() == {}
        first, second = await b.connect(key=ALICE), await b.connect(key=ALICE)
        stranger = await b.connect(key=BOB)
        for connection in (first, stranger):
            await connection.aclose(CloseCode.OK)
        await trio.sleep(5)
        assert b.endpoint.away_for_s() == {}  # one is left
        await second.aclose(CloseCode.OK)
        await trio.sleep(7)
        assert b.endpoint.away_for_s() == {"peer:alice": 7}
        await b.connect(key=ALICE)
        assert b.endpoint.away_for_s() == {}


async def test_a_handshake_is_counted_while_it_runs() -> None:
    async with bench(limits=Limits(connections_per_address=1)) as b:
        with b.endpoint.admit_handshake("192.0.2.1:1"):
            assert b.endpoint.handshakes == 1
            with pytest.raises(Unavailable), b.endpoint.admit_handshake("192.0.2.1:2"):
                pass
        with b.endpoint.admit_handshake("192.0.2.1:3"):
            pass


async def test_new_limits_hold_for_what_comes_next() -> None:
    async with bench() as b:
        first = await b.connect()
        b.endpoint.limits = Limits(connections_per_address=1)
        assert refused(await b.connect())[0] == CloseCode.LIMIT
        assert await ask(first) == b"ping"


# Life and drain.


async def test_before_it_serves_and_after_it_nothing_is_taken() -> None:
    endpoint = Endpoint(Router([Handler(echo)]), TableIdentities())
    async with memory_connection_pair() as (dialer, acceptor):
        await endpoint.serve_connection(acceptor)
        assert refused(dialer)[0] == CloseCode.SHUTDOWN
    with pytest.raises(Unavailable, match="stops"), endpoint.admit_handshake("192.0.2.1:1"):
        pass


async def test_a_drain_waits_for_handlers_that_finish(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def finish(connection: Connection) -> None:
        await connection.draining.wait()
        await trio.sleep(3)
        connection.close(CloseCode.OK, "goodbye")

    async with bench(Handler(finish)) as b:
        dialer = await b.connect()
        await b.endpoint.drain(timeout_s=60)
        assert refused(dialer) == (CloseCode.OK, "goodbye")


async def test_a_drain_cancels_handlers_that_do_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with bench(Handler(never, alpns=("a",)), Handler(until_draining, alpns=("b",))) as b:
        slow, quick = await b.connect("a"), await b.connect("b")
        began_at = trio.current_time()
        await b.endpoint.drain()
        assert trio.current_time() - began_at == pytest.approx(Limits().drain_timeout_s)
        assert refused(slow)[0] == CloseCode.SHUTDOWN
        assert refused(quick)[0] == CloseCode.OK


async def test_during_a_drain_new_connections_are_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with bench(Handler(never)) as b, trio.open_nursery() as nursery:
        old = await b.connect()
        nursery.start_soon(b.endpoint.drain)
        await b.endpoint.draining.wait()
        pair = memory_connection_pair()
        async with pair as (dialer, acceptor):
            await b.endpoint.serve_connection(acceptor)
            assert refused(dialer) == (CloseCode.SHUTDOWN, "the node stops")
        assert old.close_reason is None


async def test_a_second_signal_hurries_the_drain(mock_clock: trio.testing.MockClock) -> None:
    async with bench(Handler(never)) as b:
        dialer = await b.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.endpoint.drain)
            await wait_all_tasks_blocked()
            assert dialer.close_reason is None
            b.endpoint.hurry()
        assert refused(dialer)[0] == CloseCode.SHUTDOWN


async def test_a_drain_that_was_cancelled_can_be_finished() -> None:
    async with bench(Handler(never)) as b:
        dialer = await b.connect()
        with trio.move_on_after(0):
            await b.endpoint.drain()
        assert not b.endpoint.is_accepting
        assert dialer.close_reason is None
        await b.endpoint.drain(timeout_s=0)
        assert refused(dialer)[0] == CloseCode.SHUTDOWN


class Diarist(Handler):
    def __init__(self, diary: list[str]) -> None:
        super().__init__(self._serve)
        self._diary = diary

    async def _serve(self, connection: Connection) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._diary.append("handler ended")

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        self._diary.append("entered")
        try:
            yield
        finally:
            self._diary.append("left")


async def test_lifespans_outlive_the_handlers() -> None:
    diary: list[str] = []
    async with bench(Diarist(diary)) as b:
        await b.connect()
    assert diary == ["entered", "handler ended", "left"]


async def test_lifespans_outlive_the_handlers_also_when_all_is_cancelled() -> None:
    diary: list[str] = []
    with trio.CancelScope() as scope:
        async with bench(Diarist(diary)) as b:
            await b.connect()
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert diary == ["entered", "handler ended", "left"]


# Connections that this node dialled.


async def test_a_dialled_connection_is_revoked_like_any_other() -> None:
    identities = TableIdentities({ALICE: PEER})
    async with bench(identities=identities) as b, memory_connection_pair(acceptor_key=ALICE) as p:
        with b.endpoint.track(p[0]):
            assert p[0].identity == PEER
            assert [c.is_dialer for c in b.endpoint.connections()] == [True]
            identities.forget(ALICE)
            assert (await p[1].wait_closed()).code == CloseCode.REVOKED
        assert b.endpoint.connections() == []


async def test_a_dialled_connection_is_closed_at_the_end_of_a_drain() -> None:
    async with bench() as b, memory_connection_pair(acceptor_key=ALICE) as (dialer, acceptor):
        async with trio.open_nursery() as nursery:
            with b.endpoint.track(dialer):
                nursery.start_soon(b.endpoint.drain, 0)
                reason = await acceptor.wait_closed()
        assert dialer.draining.is_set()
        assert reason.code == CloseCode.SHUTDOWN
        with pytest.raises(Unavailable), b.endpoint.track(dialer):
            pass


async def test_a_disabled_peer_is_not_tracked() -> None:
    async with bench(identities=TableIdentities({ALICE: None})) as b:
        async with memory_connection_pair(acceptor_key=ALICE) as (dialer, _):
            with pytest.raises(Denied), b.endpoint.track(dialer):
                pass
        assert b.endpoint.connections() == []


# Streams that someone else carries.


async def test_tls_over_any_byte_stream_ends_at_the_handler_of_its_alpn() -> None:
    server = NodeCredentials(Ed25519PrivateKey.from_private_bytes(b"s" * 32))
    alice = NodeCredentials(Ed25519PrivateKey.from_private_bytes(b"c" * 32))

    async def accept(stream: trio.abc.Stream, alpns: Sequence[str], turn: Turn) -> Connection:
        return await accept_tls(stream, server, alpns, turn=turn)

    endpoint = Endpoint(
        Router([Handler(crash, alpns=("a",)), Handler(echo, alpns=("b",), requires_identity=True)]),
        TableIdentities({alice.node_id: PEER}),
        accept_tls=accept,
    )
    near, far = trio.testing.memory_stream_pair()
    async with endpoint.running() as nursery:
        nursery.start_soon(serve, endpoint, far)
        trust = PinnedKey(server.node_id)
        connection = await dial_tls(near, alpn="b", credentials=alice, trust=trust)
        nursery.start_soon(connection.wait_closed)
        assert await ask(connection) == b"ping"
        (status,) = endpoint.connections()
        assert (status.identity, status.carrier, status.address) == (
            "peer:alice",
            "tcp",
            "via:hub",
        )
        connection.close()


@asynccontextmanager
async def stream_bench(
    accept: object, limits: Limits | None = None
) -> AsyncGenerator[tuple[Endpoint, trio.abc.ReceiveStream]]:
    endpoint = Endpoint(
        Router([Handler(echo)]),
        TableIdentities(),
        limits,
        accept_tls=accept,  # type: ignore[arg-type]  # the tests' fakes vary
    )
    ours, theirs = trio.testing.memory_stream_pair()
    async with endpoint.running() as nursery:
        nursery.start_soon(serve, endpoint, theirs)
        yield endpoint, ours
        endpoint.hurry()


async def serve(endpoint: Endpoint, stream: trio.abc.Stream) -> None:
    await endpoint.serve_stream(stream, remote_address="via:hub", relay=Identity("peer:hub"))


async def test_a_stream_is_dispatched_by_the_alpn_of_its_handshake() -> None:
    async with memory_connection_pair() as (dialer, acceptor):
        offered: list[Sequence[str]] = []

        async def accept(stream: trio.abc.Stream, alpns: Sequence[str], _: object) -> Connection:
            offered.append(alpns)
            return acceptor

        async with stream_bench(accept) as (endpoint, _):
            assert await ask(dialer) == b"ping"
            assert offered == [("test/1",)]
            assert [c.address for c in endpoint.connections()] == ["via:hub"]
            dialer.close()


async def test_a_handshake_that_takes_too_long_closes_the_stream(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def accept(stream: trio.abc.Stream, alpns: Sequence[str], _: object) -> Connection:
        await trio.sleep_forever()
        raise AssertionError

    began_at = trio.current_time()
    async with stream_bench(accept) as (endpoint, ours):
        assert await ours.receive_some() == b""
        assert trio.current_time() - began_at == pytest.approx(Limits().handshake_timeout_s)
        assert endpoint.handshakes == 0


@pytest.mark.parametrize(
    "error",
    [
        Malformed("no TLS"),
        trio.BrokenResourceError(),
        Denied("no"),
        ConnectionResetError(),
        KeyError(),
    ],
)
async def test_a_handshake_that_fails_closes_the_stream_and_nothing_else(error: Exception) -> None:
    async def accept(stream: trio.abc.Stream, alpns: Sequence[str], _: object) -> Connection:
        raise error

    async with stream_bench(accept) as (endpoint, ours):
        assert await ours.receive_some() == b""
        assert endpoint.is_accepting
