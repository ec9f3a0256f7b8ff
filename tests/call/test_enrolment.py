"""Claims of invitations over a connection: who gets in, who does not, and what is told."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.codes import CallError
from alknet.call.enrolment import (
    ALPN,
    CLAIM_BYTES,
    CLAIM_WITHIN_S,
    CLAIMS_AT_ONCE,
    OPERATION,
    Claim,
    Claimed,
    EnrolmentHandler,
    claim_invitation,
    decode_claimed_untrusted,
)
from alknet.call.session import open_session
from alknet.core import zbase32
from alknet.core.address import Address
from alknet.core.contracts import CloseCode, Connection
from alknet.core.identity import Grant, NodeId, Peer
from alknet.core.invitation import Invitation
from alknet.core.limits import Limits
from alknet.core.scopes import open_background
from alknet.core.storage import Row, Table
from alknet.core.ticket import Ticket
from alknet.errors import LocalError, Malformed
from alknet.stores.enrolment import LOOK_UPS_BURST, LOOK_UPS_PER_S, EnrolmentTokens
from alknet.stores.identities import StoredIdentities
from alknet.stores.memory import MemoryIdentityStore
from alknet.stores.memory_store import MemoryDatabase, MemoryStore
from alknet.stores.tables import NODE_TABLES
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.memory import MemoryConnection, memory_connection_pair
from alknet.testing.operations import FixedOwnership

HUB = NodeId(bytes(32))
WORKER, OTHER = NodeId(bytes([1]) * 32), NodeId(bytes([2]) * 32)
TICKET = Ticket(HUB, (Address("hub.example", 4433),))


@dataclass
class Hub:
    """A handler on a store of its own, and how often it was told of a failure."""

    store: StoredIdentities = field(default_factory=MemoryIdentityStore)
    now: float = 1_000.0
    failures: list[Connection] = field(default_factory=list)
    failures_allowed: int = 100

    def __post_init__(self) -> None:
        self.tokens = EnrolmentTokens(self.store, clock=lambda: self.now)
        self.handler = EnrolmentHandler(
            self.tokens,
            Limits(),
            identities=self.store,
            ownership=FixedOwnership(),
            ticket=lambda: TICKET,
            on_failed_authentication=self._failed,
        )

    async def invite(self, name: str = "w1", **rights: Any) -> Invitation:
        minted = await self.tokens.create(name, lifetime_s=60, **rights)
        return Invitation(TICKET, minted.secret)

    @asynccontextmanager
    async def connection(self, key: NodeId | None = WORKER) -> AsyncGenerator[MemoryConnection]:
        async with memory_connection_pair(alpn=ALPN, dialer_key=key, acceptor_key=HUB) as ends:
            async with open_background() as nursery:
                nursery.start_soon(self.handler.handle, ends[1])
                yield ends[0]

    async def claim(
        self, invitation: Invitation, key: NodeId | None = WORKER, **options: Any
    ) -> Claimed:
        async with self.connection(key) as connection:
            return await claim_invitation(connection, invitation, **options)

    def _failed(self, connection: Connection) -> bool:
        self.failures.append(connection)
        return len(self.failures) >= self.failures_allowed


async def refused(hub: Hub, invitation: Invitation, **options: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        await hub.claim(invitation, **options)
    return caught.value


async def test_a_claim_makes_a_peer_of_the_proven_key() -> None:
    hub = Hub()
    invitation = await hub.invite(scopes=("jobs:*",), resources=(Grant("tty", "1"),))
    claimed = await hub.claim(invitation, name="w1", addresses=["10.0.0.7:4433"])
    assert claimed == Claimed("w1", ("jobs:*",), str(TICKET))
    assert hub.store.peer("w1") == Peer(
        name="w1",
        fingerprints=(WORKER.fingerprint,),
        scopes=("jobs:*",),
        resources=(Grant("tty", "1"),),
        addresses=("10.0.0.7:4433",),
        may_offer=True,
    )
    assert hub.failures == []
    [created, used] = await hub.store.audit.newest(None)
    assert (used.action, created.action) == ("enrolment.use", "enrolment.create")


async def test_a_claim_whose_answer_was_lost_gets_it_again() -> None:
    hub = Hub()
    invitation = await hub.invite()
    first = await hub.claim(invitation)
    hub.now += 10_000
    assert await hub.claim(invitation) == first
    error = await refused(hub, invitation, key=OTHER)
    assert (error.code, error.message) == ("FORBIDDEN", "the invitation was used already")
    assert [peer.name for peer in hub.store.peers()] == ["w1"]


async def test_each_refusal_says_what_to_do_about_it() -> None:
    hub = Hub()
    late, other, taken, key_taken = [await hub.invite(name) for name in ("a", "b", "c", "d")]
    unknown = Invitation(TICKET, "y" * 52)
    await hub.store.put_peer(Peer(name="c"))
    await hub.store.put_peer(Peer(name="e", fingerprints=(OTHER.fingerprint,)))
    answers = {
        "unknown": await refused(hub, unknown),
        "other name": await refused(hub, other, name="x"),
        "name taken": await refused(hub, taken),
        "key taken": await refused(hub, key_taken, key=OTHER),
        "no key": await refused(hub, other, key=None),
        "no address": await refused(hub, other, addresses=["nonsense"]),
    }
    hub.now += 61
    answers["late"] = await refused(hub, late)
    assert {what: (error.code, error.message) for what, error in answers.items()} == {
        "unknown": ("FORBIDDEN", "the invitation is unknown or was revoked"),
        "other name": ("FORBIDDEN", "the invitation is for 'b', not for 'x'"),
        "name taken": ("CONFLICT", "a peer named 'c' exists"),
        "key taken": ("CONFLICT", f"key {OTHER.fingerprint} belongs to peer 'e'"),
        "no key": ("FORBIDDEN", "an invitation is claimed with a key: connect with one"),
        "no address": ("INVALID_INPUT", "address 'nonsense' has no port, expected 'host:port'"),
        "late": ("FORBIDDEN", "the invitation has expired"),
    }
    assert len(hub.failures) == 2  # the unknown and the late one: the others prove an invitation


async def test_too_many_refusals_end_the_connection_after_the_answer() -> None:
    hub = Hub(failures_allowed=3)
    async with hub.connection() as connection, open_session(connection) as session:
        for _ in range(3):
            with pytest.raises(CallError) as caught:
                await session.call(OPERATION, {"secret": "y" * 52})
            assert caught.value.code == "FORBIDDEN"
        with trio.fail_after(30):
            reason = await connection.wait_closed()
    assert (reason.code, reason.by_peer) == (CloseCode.LIMIT, True)
    assert "failed authentications" in reason.reason


async def test_nothing_but_a_claim_can_be_called() -> None:
    hub = Hub()
    async with hub.connection() as connection, open_session(connection) as session:
        for name in ("services/list", "node/ping", "register/other"):
            with pytest.raises(CallError) as caught:
                await session.call(name)
            assert caught.value.code == "NOT_FOUND"
        for value in ({}, {"secret": 1}, {"secret": "x" * 129}, {"secret": "x", "addresses": "y"}):
            with pytest.raises(CallError) as caught:
                await session.call(OPERATION, value)
            assert caught.value.code == "INVALID_INPUT"
    assert hub.failures == []


async def test_a_frame_longer_than_a_claim_ends_its_stream() -> None:
    hub = Hub()
    async with hub.connection() as connection:
        stream = await connection.open_stream()
        await stream.send_all((CLAIM_BYTES + 1).to_bytes(4, "big"))
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


async def test_who_claims_nothing_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    hub = Hub()
    async with hub.connection() as connection:
        started = trio.current_time()
        reason = await connection.wait_closed()
        assert trio.current_time() - started == pytest.approx(CLAIM_WITHIN_S, abs=2)
    assert (reason.code, reason.by_peer) == (CloseCode.LIMIT, True)


async def test_a_connection_to_another_node_is_not_shown_the_secret() -> None:
    hub = Hub()
    invitation = await hub.invite()
    elsewhere = Invitation(Ticket(OTHER, TICKET.addresses), invitation.secret)
    with pytest.raises(LocalError, match="another node"):
        await hub.claim(elsewhere)
    assert len(hub.tokens.tokens()) == 1


async def test_an_answer_that_names_another_node_is_not_believed() -> None:
    for claimed in (
        {"name": "w1", "scopes": [], "ticket": f"alknet://{OTHER}@h:1"},
        {"name": "any", "scopes": [], "ticket": str(TICKET)},
        {"name": "w1\x1b[2J", "scopes": [], "ticket": str(TICKET)},
        {"name": "w1", "scopes": ["a b"], "ticket": str(TICKET)},
        {"name": "w1", "scopes": [], "ticket": "x"},
    ):
        with pytest.raises(Malformed):
            decode_claimed_untrusted(msgspec.json.encode(claimed), HUB)


@given(st.binary(max_size=200) | st.text('{}[]":,namescopticket0', max_size=200).map(str.encode))
def test_any_answer_is_read_or_malformed(data: bytes) -> None:
    try:
        decode_claimed_untrusted(data, HUB)
    except Malformed:
        return


async def test_a_claim_cancelled_at_any_point_is_made_whole_or_not_at_all() -> None:
    """After each number of steps of the scheduler; asked again it succeeds in every case."""
    finished = False
    for steps in range(200):
        hub = Hub()
        invitation = await hub.invite()
        async with hub.connection() as connection:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def cancel_after(count: int, scope: trio.CancelScope) -> None:
                        for _ in range(count):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()

                    nursery.start_soon(cancel_after, steps, scope)
                    await claim_invitation(connection, invitation)
                    nursery.cancel_scope.cancel()
            finished = not scope.cancelled_caught
        peers, open_tokens = len(hub.store.peers()), len(hub.tokens.tokens())
        assert (peers, open_tokens) in {(0, 1), (1, 0)}
        assert (await hub.claim(invitation)).name == "w1"
        if finished:
            break
    assert finished
    assert steps > 10


async def test_no_secret_is_in_the_log_or_in_a_repr(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub()
    invitation = await hub.invite()
    with caplog.at_level("DEBUG"):
        await hub.claim(invitation)
        await refused(hub, invitation, key=OTHER)
    said = "\n".join(str(vars(record)) for record in caplog.records)
    assert "enrolment.claimed" in said
    assert "enrolment.refused" in said
    assert invitation.secret not in said
    assert invitation.secret not in repr(Claim(invitation.secret))


async def test_a_handler_cancelled_anywhere_leaves_a_claim_whole_or_unmade() -> None:
    hub = Hub()
    invitations = [await hub.invite()]

    async def serve() -> None:
        async with memory_connection_pair(alpn=ALPN, dialer_key=WORKER, acceptor_key=HUB) as ends:
            async with open_background() as nursery:
                nursery.start_soon(claim_invitation, ends[0], invitations[-1])
                await hub.handler.handle(ends[1])

    async def check() -> None:
        is_open = bool(hub.tokens.tokens())
        assert is_open == (hub.store.peer("w1") is None)
        if not is_open:
            await hub.store.remove_peer("w1")
            invitations.append(await hub.invite())

    assert await cancel_at_every_checkpoint(serve, check) > 1


class CountingStore(MemoryStore):
    """Counts how often the engine is asked for a row."""

    fetched = 0

    async def fetch(self, table: Table[Any], key: str) -> Row[Any] | None:
        self.fetched += 1
        return await super().fetch(table, key)


@pytest.mark.slow
async def test_ten_thousand_guesses_cost_little_and_hold_up_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = CountingStore(NODE_TABLES, MemoryDatabase())
    hub = Hub(store=StoredIdentities(store), failures_allowed=10**9)
    hub.handler.limits = Limits(failed_authentications_per_connection=10_000_000)
    invitation = await hub.invite()
    store.fetched = 0
    outcomes: Counter[str] = Counter()
    began_at = trio.current_time()
    async with hub.connection(OTHER) as connection, open_session(connection) as session:
        for number in range(10_000):
            secret = zbase32.encode(number.to_bytes(32, "big"))
            try:
                await session.call(OPERATION, {"secret": secret})
            except CallError as exc:
                outcomes[exc.code] += 1
            if number == 5_000:
                assert (await hub.claim(invitation)).name == "w1"
    judged = outcomes.pop("FORBIDDEN")
    assert judged <= LOOK_UPS_BURST + (trio.current_time() - began_at) * LOOK_UPS_PER_S + 1
    assert outcomes == {"UNAVAILABLE": 10_000 - judged}
    assert store.fetched <= judged + 2
    assert len(hub.failures) == judged
    assert [peer.name for peer in hub.store.peers()] == ["w1"]


class StuckInvitations:
    """Never answers, as a store does that is out of reach."""

    waiting = 0

    async def consume(self, secret: str, key: NodeId, **_options: object) -> Peer:
        self.waiting += 1
        await trio.sleep_forever()
        raise AssertionError("unreachable")


async def test_claims_that_wait_are_few(autojump_clock: trio.testing.MockClock) -> None:
    hub = Hub()
    hub.handler._invitations = stuck = StuckInvitations()
    codes: Counter[str] = Counter()
    async with hub.connection() as connection, open_session(connection) as session:

        async def guess() -> None:
            with pytest.raises(CallError) as caught:
                await session.call(OPERATION, {"secret": "y" * 52})
            codes[caught.value.code] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(guess)
    assert stuck.waiting == CLAIMS_AT_ONCE
    assert codes.pop("RESOURCE_EXHAUSTED") == 50 - CLAIMS_AT_ONCE
    assert set(codes) <= {"TIMEOUT", "UNAVAILABLE"}


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0\0\0\0",
        b"\0\0\0\x02[]",
        b"\xff" * 64,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\x10" + b"{" * 16,
        b'\0\0\0\x1e{"type":"call.requested","id":""',
    ],
)
async def test_garbage_ends_its_stream_and_nothing_else(garbage: bytes) -> None:
    hub = Hub()
    invitation = await hub.invite()
    async with hub.connection(OTHER) as connection:
        stream = await connection.open_stream()
        await stream.send_all(garbage)
        with trio.fail_after(30), contextlib.suppress(trio.BrokenResourceError):
            await stream.send_eof()
            assert await stream.receive_some() == b""
        assert (await hub.claim(invitation)).name == "w1"
    assert hub.failures == []
