"""What a write asks for, checked and encoded: the same for every engine.

Whatever can be refused without asking the engine is refused here, before anything is queued.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from alknet.core.storage import (
    ABSENT,
    MAX_KEY_BYTES,
    MAX_OPS,
    MAX_VALUE_BYTES,
    Delete,
    Expect,
    Op,
    Put,
    RowConflict,
    Table,
)
from alknet.errors import LocalError

__all__ = ["Step", "Steps", "by_name", "check_key", "expectation_failed", "steps_of", "value_taken"]

AnyTable = Table[msgspec.Struct]

_OPS = (Put, Delete, Expect)
_encode = msgspec.json.Encoder().encode


class Step(msgspec.Struct, frozen=True, gc=False):
    """One op.

    Attributes:
        expect: What version the row must have; None for any.
        data: The JSON to write; None for a `Delete` or an `Expect`.
        value: What *data* decodes to.
        is_check: It is an `Expect`.
        unique: Pairs of unique field and value that the row claims.
    """

    table: AnyTable
    key: str
    expect: int | None = None
    data: bytes | None = None
    value: msgspec.Struct | None = None
    is_check: bool = False
    unique: Sequence[tuple[str, str]] = ()


Steps = Sequence[Step]
"""The steps of one write, which are done together."""


def by_name(tables: Sequence[AnyTable]) -> dict[str, AnyTable]:
    """Return *tables* by name. Raises LocalError if two share one."""
    found = {table.name: table for table in tables}
    if len(found) != len(tables):
        raise LocalError("two tables of a store have one name")
    return found


def steps_of(
    ops: Op | Sequence[Op], expect: int | None, tables: Mapping[str, AnyTable]
) -> list[Step]:
    """Check and encode *ops*; see `Store.write`. Raises LocalError."""
    if isinstance(ops, _OPS):
        return [_step_of(ops, expect, tables)]
    found = list(ops)
    if not 1 <= len(found) <= MAX_OPS:
        raise LocalError(f"a write has 1 to {MAX_OPS} ops, not {len(found)}")
    return [_step_of(op, expect, tables) for op in found]


def expectation_failed(step: Step, found: int) -> RowConflict:
    """Make the error for a row that is at version *found*, not at the expected one."""
    what = f"{step.table.name} {step.key!r}"
    if found == ABSENT:
        message = f"{what} does not exist any more"
    elif step.expect == ABSENT:
        message = f"{what} exists already"
    else:
        message = f"{what} has changed meanwhile: it is at version {found}, not {step.expect}"
    return RowConflict(message, table=step.table.name, key=step.key, found=found)


def value_taken(step: Step, field: str, value: str, holder: str) -> RowConflict:
    """Make the error for a unique value that the row *holder* has."""
    name = step.table.name
    return RowConflict(
        f"{field} {value!r} of {name} {step.key!r} belongs to {name} {holder!r}",
        table=name,
        key=step.key,
        field=field,
        holder=holder,
    )


def check_key(key: str) -> None:
    """Raise LocalError if a row cannot have *key*."""
    try:
        size = len(key) if key.isascii() else len(key.encode())
    except UnicodeEncodeError:
        raise LocalError("a key holds half of a surrogate pair, which no store can keep") from None
    if not 1 <= size <= MAX_KEY_BYTES or "\0" in key:
        raise LocalError(f"a key has 1 to {MAX_KEY_BYTES} bytes of UTF-8 without NUL, not {size}")


def _step_of(op: Op, expect: int | None, tables: Mapping[str, AnyTable]) -> Step:
    table, key = op.table, op.key
    if tables.get(table.name) is not table:
        raise LocalError(f"this store was not opened with {table!r}")
    check_key(key)
    if isinstance(op, Expect):
        return Step(table, key, op.version, is_check=True)
    wanted = expect if op.expect is None else op.expect
    if isinstance(op, Delete):
        return Step(table, key, wanted)
    data, value = _encoded(op)
    if not table.indexes:
        return Step(table, key, wanted, data, value)
    unique = [(field, text) for field in table.unique for text in table.entries(value, field)]
    for field in table.indexes:
        table.entries(value, field)  # refuses what could not be found again
    return Step(table, key, wanted, data, value, unique=list(dict.fromkeys(unique)))


def _encoded(op: Put[msgspec.Struct]) -> tuple[bytes, msgspec.Struct]:
    """Return the JSON of a value and what reads of it will give."""
    table = op.table
    if not isinstance(op.value, table.row_type):
        raise LocalError(f"{_value_of(op)} is a {type(op.value).__name__}: {table!r} holds others")
    try:
        data = _encode(op.value)
        value = table.decode(data)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as exc:
        raise LocalError(f"{_value_of(op)} is not a {table.row_type.__name__}: {exc}") from exc
    if len(data) > MAX_VALUE_BYTES:
        raise LocalError(
            f"{_value_of(op)} has {len(data)} bytes of JSON; {MAX_VALUE_BYTES} are allowed"
        )
    return data, value


def _value_of(op: Put[msgspec.Struct]) -> str:
    return f"the value of {op.table.name} {op.key!r}"
