"""Remembered access verdicts: exact for identities that change, and bounded."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from alknet.call.codes import CallError
from alknet.call.operations import Operation, operation, public, scopes
from alknet.call.visibility import MOST_CALLERS, ScopeVerdicts
from alknet.core.identity import ANONYMOUS, OWNER, Identity
from tests.call.sessions import PEER, connections

MATH = Identity("peer:a", ("math",))


@operation("math/add", access=scopes("math"))
async def add() -> int:
    return 1


@operation("fs/read", access=scopes("fs"))
async def read() -> int:
    return 1


@operation("node/hello", access=public())
async def hello() -> int:
    return 1


def _passes(verdicts: ScopeVerdicts, op: Operation[..., Any], identity: Identity) -> bool:
    try:
        verdicts.check(op, identity)
    except CallError:
        return False
    return True


def test_each_operation_and_caller_has_a_verdict_of_its_own() -> None:
    verdicts = ScopeVerdicts()
    for _ in range(3):
        assert _passes(verdicts, add, MATH)
        assert not _passes(verdicts, read, MATH)
        assert _passes(verdicts, hello, ANONYMOUS)
        assert not _passes(verdicts, add, ANONYMOUS)
        assert _passes(verdicts, read, OWNER)


def test_a_peer_that_lost_a_scope_is_refused_at_once() -> None:
    verdicts = ScopeVerdicts()
    assert _passes(verdicts, add, MATH)
    assert not _passes(verdicts, add, msgspec.structs.replace(MATH, scopes=("other",)))
    assert _passes(verdicts, add, msgspec.structs.replace(MATH, id="peer:b"))


def test_a_new_identity_in_the_place_of_a_forgotten_one_is_judged_anew() -> None:
    verdicts = ScopeVerdicts()
    for n in range(10_000):  # freed and made again: some would have the same address
        assert _passes(verdicts, add, Identity(f"peer:{n}", ("math",)))
        assert not _passes(verdicts, add, Identity(f"peer:{n}", ("fs",)))


def test_verdicts_of_many_callers_do_not_pile_up() -> None:
    verdicts = ScopeVerdicts()
    callers = [Identity(f"peer:{n}", ("math",)) for n in range(3 * MOST_CALLERS)]
    for caller in callers:
        assert _passes(verdicts, add, caller)
        assert len(verdicts) <= MOST_CALLERS
    assert not _passes(verdicts, read, callers[-1])


async def test_an_operation_taken_from_a_live_connection_is_refused_with_the_next_call() -> None:
    verdicts = ScopeVerdicts()
    async with connections("memory") as (_dialer, acceptor):
        acceptor.identity = MATH
        assert _passes(verdicts, add, acceptor.identity)
        acceptor.identity = PEER
        with pytest.raises(CallError, match="math"):
            verdicts.check(add, acceptor.identity)
