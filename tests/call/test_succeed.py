"""``node/succeed``: who may announce a key, what it costs, and what becomes of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.codes import CallError
from alknet.call.dispatch import OperationDispatcher
from alknet.call.registry import Registry
from alknet.call.session import CallSession, open_session
from alknet.call.succeed import (
    OPERATION,
    PER_NODE_BURST,
    PER_SOURCE_BURST,
    SOURCES,
    AnnouncementLimits,
    decode_heard_untrusted,
    succeed_operation,
)
from alknet.core.contracts import Connection
from alknet.core.identity import NodeId
from alknet.core.limits import Limits
from alknet.core.scopes import open_background
from alknet.core.succession import Answer, Succession, sign_succession
from alknet.errors import Malformed, Unavailable
from alknet.stores.memory import MemoryIdentityStore
from alknet.testing.memory import memory_connection_pair
from alknet.testing.operations import FixedOwnership

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(1, 9)]
IDS = [NodeId.from_public_key(key.public_key()) for key in KEYS]
HUB = NodeId(bytes(32))


def chain(*numbers: int) -> list[Succession]:
    return [sign_succession(KEYS[a], KEYS[b], now=100.0 + a) for a, b in pairwise(numbers)]


def altered(statement: Succession) -> bytes:
    data = bytearray(statement.encode())
    data[-1] ^= 1
    return bytes(data)


class Listener:
    """A node that serves the operation, and what came through."""

    def __init__(self) -> None:
        self.heard: list[Sequence[Succession]] = []
        self.failures: list[Connection] = []
        self.limits = AnnouncementLimits()

    async def hear(self, statements: Sequence[Succession], address: str) -> Answer:
        assert address
        self.heard.append(statements)
        return "waits"

    @asynccontextmanager
    async def session(self, key: NodeId | None) -> AsyncGenerator[CallSession]:
        registry = Registry()
        registry.extend([succeed_operation(self, self.limits)], builtin=True)
        dispatcher = OperationDispatcher(
            registry,
            identities=MemoryIdentityStore(),
            ownership=FixedOwnership(),
            limits=Limits(),
        )
        async with memory_connection_pair(dialer_key=key, acceptor_key=HUB) as ends:
            server = CallSession(
                ends[1],
                dispatcher,
                limits=Limits(),
                on_failed_authentication=self.failures.append,
            )
            async with open_background() as nursery:
                nursery.start_soon(server.run)
                async with open_session(ends[0]) as session:
                    yield session

    async def announce(
        self, statements: Sequence[bytes | Succession], key: NodeId | None
    ) -> Answer | str:
        sent = [one if isinstance(one, bytes) else one.encode() for one in statements]
        async with self.session(key) as session:
            try:
                output = await session.call(OPERATION, {"statements": sent})
            except CallError as exc:
                return exc.code
        return decode_heard_untrusted(output)


async def test_a_key_that_was_signed_over_to_is_heard() -> None:
    listener = Listener()
    assert await listener.announce(chain(0, 1, 2), IDS[2]) == "waits"
    assert [list(one) for one in listener.heard] == [chain(0, 1, 2)]
    assert listener.failures == []


@pytest.mark.parametrize(
    ("statements", "by", "code"),
    [
        ([], 1, "INVALID_INPUT"),
        ([b"short"], 1, "INVALID_INPUT"),
        ([chain(0, 1)[0].encode() + b"\0"], 1, "INVALID_INPUT"),
        (chain(0, 1, 2, 3, 4, 5), 5, "INVALID_INPUT"),
        (chain(0, 1), 2, "FORBIDDEN"),  # replayed by somebody who has read it at node/succession
        (chain(0, 1), 0, "FORBIDDEN"),
        (chain(0, 1), None, "FORBIDDEN"),
        ([altered(chain(0, 1)[0])], 1, "FORBIDDEN"),
        ([altered(chain(0, 1)[0]), chain(1, 2)[0]], 2, "FORBIDDEN"),
        ([*chain(0, 1), *chain(2, 3)], 3, "FORBIDDEN"),
        ([sign_succession(KEYS[1], KEYS[1], now=1.0)], 1, "FORBIDDEN"),
    ],
    ids=[
        "none",
        "short",
        "long",
        "many",
        "replayed",
        "by the old key",
        "by nobody",
        "forged",
        "forged in the middle",
        "gap",
        "itself",
    ],
)
async def test_what_is_not_proven_is_refused_and_not_looked_up(
    statements: list[bytes | Succession], by: int | None, code: str
) -> None:
    listener = Listener()
    assert await listener.announce(statements, None if by is None else IDS[by]) == code
    assert listener.heard == []


async def test_a_forged_statement_counts_as_a_failed_authentication() -> None:
    listener = Listener()
    await listener.announce([altered(chain(0, 1)[0])], IDS[1])
    assert len(listener.failures) == 1
    await listener.announce(chain(0, 1), IDS[2])  # verified nothing: cost nothing
    assert len(listener.failures) == 1


async def test_a_flood_of_one_source_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    listener = Listener()
    codes = [await listener.announce(chain(0, 1), IDS[1]) for _ in range(50)]
    assert codes.count("waits") == len(listener.heard) == PER_SOURCE_BURST
    assert codes.count("UNAVAILABLE") == 50 - PER_SOURCE_BURST
    await trio.sleep(60)
    assert await listener.announce(chain(0, 1), IDS[1]) == "waits"


async def test_many_sources_share_what_the_node_spends() -> None:
    now = 0.0
    limits = AnnouncementLimits(now=lambda: now)
    taken, waits = 0, list[float]()
    for number in range(3 * SOURCES):
        try:
            limits.take(f"10.0.{number >> 8}.{number & 255}")
        except Unavailable as exc:
            waits.append(exc.retry_after_s or 0.0)
        else:
            taken += 1
    assert min(waits) > 0
    assert taken == PER_NODE_BURST
    assert limits.sources == SOURCES


@given(st.binary(max_size=64))
def test_an_answer_is_one_or_malformed(data: bytes) -> None:
    with suppress(Malformed):
        assert decode_heard_untrusted(data) in {"waits", "known", "unknown"}
