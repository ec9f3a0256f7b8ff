"""The table of answers, beside a model that is a list."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.codes import CallError
from alknet.call.idempotency import (
    ENTRY_BYTES,
    Answer,
    CallKey,
    IdempotencyTable,
    fingerprint_of,
)
from alknet.call.proto import Requested
from alknet.core.limits import Limits

LIMITS = Limits(
    idempotency_window_s=10,
    idempotency_keys_per_identity=3,
    idempotency_keys=5,
    idempotency_bytes_per_identity=4 * ENTRY_BYTES,
    idempotency_bytes=6 * ENTRY_BYTES,
)


class Step(NamedTuple):
    key: CallKey
    fingerprint: bytes
    size: int
    pause_s: int


class Row(NamedTuple):
    key: CallKey
    fingerprint: bytes
    output: bytes
    size: int
    ended_at: float


class Model:
    def __init__(self) -> None:
        self.rows: list[Row] = []

    def expire(self, now: float) -> None:
        self.rows = [row for row in self.rows if row.ended_at > now - LIMITS.idempotency_window_s]

    def find(self, key: CallKey) -> Row | None:
        return next((row for row in self.rows if row.key == key), None)

    def add(self, new: Row) -> None:
        own = [row for row in self.rows if row.key.identity == new.key.identity]
        most, most_bytes = (
            LIMITS.idempotency_keys_per_identity,
            LIMITS.idempotency_bytes_per_identity,
        )
        while own and (len(own) >= most or sum(row.size for row in [*own, new]) > most_bytes):
            self.rows.remove(own.pop(0))
        most, most_bytes = LIMITS.idempotency_keys, LIMITS.idempotency_bytes
        while len(self.rows) >= most or sum(row.size for row in [*self.rows, new]) > most_bytes:
            self.rows.pop(0)
        self.rows.append(new)


def step(identity: str, key: str, fingerprint: bytes, size: int, pause_s: int) -> Step:
    return Step(CallKey(identity, None, None, key), fingerprint, size, pause_s)


steps = st.builds(
    step,
    st.sampled_from("abc"),
    st.sampled_from("klmn"),
    st.sampled_from([b"f", b"g"]),
    st.integers(0, 3 * ENTRY_BYTES - 8),
    st.integers(0, 6),
)


@given(st.lists(steps, max_size=40))
def test_the_table_does_as_a_list_would(taken: list[Step]) -> None:
    table, model, now = IdempotencyTable(lambda: LIMITS), Model(), 0.0
    for number, (key, fingerprint, size, pause_s) in enumerate(taken):
        now += pause_s
        model.expire(now)
        row = model.find(key)
        if row is not None and row.fingerprint != fingerprint:
            with pytest.raises(CallError, match="CONFLICT"):
                table.find(key, fingerprint, now)
        elif row is not None:
            answer = table.find(key, fingerprint, now)
            assert answer is not None
            assert answer.give() == row.output
        else:
            assert table.find(key, fingerprint, now) is None
            output = str(number).encode() + bytes(size)
            table.remember(key, fingerprint, Answer(output), now)
            full = ENTRY_BYTES + key.size + len(output)
            model.add(Row(key, fingerprint, output, full, now))
        assert len(table) == len(model.rows)
        assert table.held_bytes == sum(row.size for row in model.rows)
    table.find(CallKey("z", None, None, "z"), b"", now + LIMITS.idempotency_window_s)
    assert (len(table), table.held_bytes) == (0, 0)


def test_an_identity_that_uses_up_its_share_pushes_out_nobody_else() -> None:
    table = IdempotencyTable(lambda: LIMITS)
    kept = CallKey("a", None, None, "k")
    table.remember(kept, b"", Answer(b"1"), 0)
    for number in range(20):
        table.remember(CallKey("b", None, None, str(number)), b"", Answer(b"2"), 0)
    assert table.find(kept, b"", 0) is not None
    assert len(table) == 1 + LIMITS.idempotency_keys_per_identity


def test_limits_that_change_count_at_once() -> None:
    limits = Limits()
    table = IdempotencyTable(lambda: limits)
    key = CallKey("a", None, None, "k")
    table.remember(key, b"", Answer(b"1"), 0)
    assert table.find(key, b"", 100) is not None
    limits = Limits(idempotency_window_s=50)
    assert table.find(key, b"", 100) is None


def test_a_remembered_error_holds_no_frames() -> None:
    def fail() -> None:
        raise CallError("SOLD_OUT", "no tea", details={"left": 0})

    with pytest.raises(CallError) as caught:
        fail()
    answer = Answer(error=caught.value)
    for _ in range(2):
        with pytest.raises(CallError, match="no tea"):
            answer.give()
    assert answer.error is not None
    assert answer.error.__traceback__ is None


def test_a_retry_has_the_same_fingerprint_and_nothing_else_has() -> None:
    def of(operation: str, data: bytes, peer: tuple[str, ...] | None = None) -> bytes:
        return fingerprint_of(
            Requested(id="d1", operation=operation, input=msgspec.Raw(data), peer=peer)
        )

    assert of("a/b", b"{}") == of("a/b", b"{}")
    others = [of("a/b", b"{}"), of("a/c", b"{}"), of("a/b", b"[]"), of("a/b", b"{}", ("w1",))]
    assert len(set(others)) == 4
