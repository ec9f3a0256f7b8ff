"""The operations of a peer, as it describes them: fetched, checked, and kept as they came.

Nothing in them is authority here. What they are called by is checked by the peer; what this node
passes on to others, the rules of its own ``[[re_export]]`` say. A peer's schemas are not enforced
here either: they are for people and programs that want to know.

A peer that says what no honest peer would (bad names, one name twice, more than the limits) has
broken the protocol (`Malformed`). What is only of no use here (a name that every node has for
itself, a kind of a later version, a schema that leads nowhere) is left out, and the rest stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, TypeVar
from weakref import WeakValueDictionary

import msgspec
import trio
from msgspec import Meta, Raw

from alknet.call.codes import CallError, ErrorCode
from alknet.call.peers.foreign_schema import check_schema_untrusted
from alknet.call.registry import BUILTIN_NAMESPACES, Provenance
from alknet.call.spec import MAX_NAME_BYTES, OPERATION_NAME, OpType, check_operation_name
from alknet.core.globs import Glob
from alknet.errors import LocalError, Malformed

if TYPE_CHECKING:
    from alknet.call.session import CallSession

__all__ = [
    "IMPORT_TIMEOUT_S",
    "MAX_ALL_BYTES",
    "MAX_LIST_BYTES",
    "MAX_OPERATIONS",
    "MAX_VERSION_BYTES",
    "ImportedError",
    "ImportedOperation",
    "Imports",
    "OverLimit",
    "from_call",
    "read_operations_untrusted",
    "read_version_untrusted",
]

T = TypeVar("T")

MAX_OPERATIONS = 10_000
"""Of one peer: ten times what the largest program offers, and some 20 MB here at the most."""

MAX_LIST_BYTES = 8 * 1024 * 1024
"""Of one peer's whole list: 10,000 operations with schemas of some 800 bytes."""

MAX_ALL_BYTES = 256 * 1024 * 1024
"""Of the lists of all peers, equal ones counted once: a thousand different ones of 250 KB."""

MAX_VERSION_BYTES = 128
"""Of the text that names a state of the list: room for two SHA-256 in hex."""

MAX_ERRORS = 64
"""That one operation declares."""

MAX_TITLE = 200
"""Characters of a title; the rest is cut off."""

MAX_DESCRIPTION = 4_000
"""Characters of a description; the rest is cut off."""

IMPORT_TIMEOUT_S = 30.0
"""For the list to arrive: 8 MiB at 2 Mbit/s."""

PARSE_INLINE_BYTES = 128 * 1024
"""Lists up to this size are read where they arrive, for a millisecond; longer ones in a thread."""


class OverLimit(Malformed):
    """A peer offers more than this node takes."""


class ImportedError(msgspec.Struct, frozen=True):
    """An error that a peer's operation declares.

    Attributes:
        details_schema: JSON Schema of its details; None for no details.
    """

    code: str
    description: str
    http_status: int
    details_schema: Raw | None


class ImportedOperation(msgspec.Struct, frozen=True, kw_only=True):
    """An operation of a peer, as the peer describes it.

    Attributes:
        name: What it is called here: *remote_name*, with a prefix if one was asked for.
        remote_name: What it is called at the peer.
        title: One line of printable text.
        description: Printable lines.
        input_schema: JSON Schema as it came; so are the next two.
        item_schema: Of each input item; None for all but uploads and bidirectional operations.
        output_schema: Of the output, or of each item that comes back.
        access: The peer's own rules, in its own words (JSON): for people, never checked here.
        resource_id_path: Where its input names the resource that the peer checks.
        max_duration_s: The deadline that it has there; None for the peer's default.
        large_output: It wants a stream of its own.
        idempotent: The peer says that to run it twice does no more than to run it once.
    """

    name: str
    remote_name: str
    op_type: OpType
    title: str
    description: str
    input_schema: Raw
    item_schema: Raw | None
    output_schema: Raw
    errors: tuple[ImportedError, ...]
    access: Raw
    resource_id_path: str | None
    max_duration_s: float | None
    large_output: bool
    idempotent: bool

    @property
    def provenance(self) -> Provenance:
        """Where it comes from."""
        return Provenance.FROM_CALL


class Imports:
    """What one list of a peer came to; never changed, and shared by peers that say the same.

    Attributes:
        operations: By name.
        version: What ``services/watch`` calls this state of the list; None if it was not said.
        left_out: Operations of namespaces that each node has for itself, and those not wanted.
        unusable: Why others were left out, by the name that they have at the peer.
        size_bytes: Of the list as it came.
    """

    __slots__ = ("__weakref__", "left_out", "operations", "size_bytes", "unusable", "version")

    def __init__(
        self,
        operations: Mapping[str, ImportedOperation],
        *,
        version: str | None,
        left_out: int,
        unusable: Mapping[str, str],
        size_bytes: int,
    ) -> None:
        self.operations = MappingProxyType(dict(operations))
        self.version = version
        self.left_out = left_out
        self.unusable = unusable
        self.size_bytes = size_bytes

    def __repr__(self) -> str:
        return f"<Imports of {len(self.operations)} operations, version {self.version}>"


async def from_call(
    session: CallSession, prefix: str | None = None, *, only: Sequence[str] | None = None
) -> Imports:
    """Fetch what the peer of *session* offers us, with all schemas, in one round trip.

    Cancelled, the peer is told, and nothing is left here.

    Args:
        prefix: Segments to put before the names, so that those of two peers can stand side by
            side in one table: ``w1`` makes ``w1/math/add``.
        only: Patterns (`Glob`) of the names at the peer; all others are left out.

    Raises:
        Malformed: The peer has broken the protocol; `OverLimit` if it offers too much.
        CallError: It did not answer, or refused; RESOURCE_EXHAUSTED, what all peers offer takes too
            much memory.
        LocalError: The prefix can begin no name, or a pattern is none.
    """
    place = _placed(prefix)
    globs = None if only is None else tuple(map(Glob, only))
    output = await session.call(
        "services/list", {"with_schemas": True}, timeout_s=IMPORT_TIMEOUT_S, large_output=True
    )
    if prefix is not None or globs is not None:
        async with _READING:
            return await _aside(read_operations_untrusted, bytes(output), place, globs)
    # A fleet of equal workers sends the same list ten thousand times.
    data = bytes(output)
    digest = await _aside(_digest, data)
    if (known := _KNOWN.get(digest)) is not None:
        return known
    async with _READING:
        if (known := _KNOWN.get(digest)) is None:
            _check_room(len(data))
            known = _KNOWN[digest] = await _aside(read_operations_untrusted, data)
        return known


def read_operations_untrusted(
    data: bytes,
    place: Callable[[str], str] | None = None,
    only: Sequence[Glob] | None = None,
) -> Imports:
    """Read the output of ``services/list`` with schemas.

    Args:
        place: Makes the name here of the name at the peer.
        only: Patterns of the names at the peer that are wanted.

    Raises:
        Malformed: It is none; `OverLimit` if it is too long.
    """
    if len(data) > MAX_LIST_BYTES:
        raise OverLimit(f"a list of operations of {len(data)} bytes is over {MAX_LIST_BYTES}")
    if data.count(b",") > _MAX_COMMAS:
        raise OverLimit("a list of operations with too many values")
    try:
        listed = _LIST.decode(data)
    except _NO_JSON as exc:
        raise _no_list(exc) from None
    if len(listed.operations) > MAX_OPERATIONS:
        raise OverLimit(f"{len(listed.operations)} operations are over {MAX_OPERATIONS}")
    return _Reading(place or _as_it_is, only).read(listed, len(data))


def read_version_untrusted(data: bytes) -> str:
    """Read an item of ``services/watch``. Raises Malformed if it is none."""
    if len(data) > _MAX_ITEM_BYTES:
        raise Malformed(f"a version of a list of operations takes {len(data)} bytes")
    try:
        return _version_untrusted(_VERSION.decode(data).version)
    except _NO_JSON as exc:
        raise Malformed(f"not a version of a list of operations: {_shown(str(exc))}") from None


class _Reading:
    """Goes through a list once."""

    def __init__(self, place: Callable[[str], str], only: Sequence[Glob] | None) -> None:
        self._place = place
        self._only = only
        self._seen: set[str] = set()
        self._found: dict[str, ImportedOperation] = {}
        self._unusable: dict[str, str] = {}

    def read(self, listed: _List, size_bytes: int) -> Imports:
        for raw in listed.operations:
            try:
                wire = _OPERATION.decode(raw)
            except _NO_JSON as exc:
                raise _no_list(exc) from None
            self._check_name_untrusted(wire.name)
            if not self._is_wanted(wire.name):
                continue
            try:
                operation = _operation_untrusted(wire, self._place(wire.name))
            except Malformed as exc:
                self._unusable[wire.name] = str(exc)
                continue
            self._found[operation.name] = operation
        return Imports(
            self._found,
            version=None if listed.version is None else _version_untrusted(listed.version),
            left_out=len(listed.operations) - len(self._found) - len(self._unusable),
            unusable=self._unusable,
            size_bytes=size_bytes,
        )

    def _check_name_untrusted(self, name: str) -> None:
        if len(name) > MAX_NAME_BYTES or not OPERATION_NAME.fullmatch(name):
            raise Malformed(f"an operation has the name {_shown(name)}")
        if name in self._seen:
            raise Malformed(f"the operation {name} is offered twice")
        self._seen.add(name)

    def _is_wanted(self, name: str) -> bool:
        if name.partition("/")[0] in BUILTIN_NAMESPACES:
            return False
        return self._only is None or any(glob.matches(name) for glob in self._only)


def _operation_untrusted(wire: _Operation, name: str) -> ImportedOperation:
    op_type = _OP_TYPES.get(wire.op_type)
    if op_type is None:
        raise Malformed(f"it is of a kind that is not known here: {_shown(wire.op_type)}")
    if len(name) > MAX_NAME_BYTES:
        raise Malformed("its name is too long with the prefix")
    return ImportedOperation(
        name=name,
        remote_name=wire.name,
        op_type=op_type,
        title=_clean(wire.title, MAX_TITLE).replace("\n", " "),
        description=_clean(wire.description, MAX_DESCRIPTION),
        input_schema=_schema_untrusted(wire.input_schema),
        item_schema=_schema_untrusted(wire.item_schema) if op_type.takes_items else None,
        output_schema=_schema_untrusted(wire.output_schema),
        errors=_errors_untrusted(wire.error_schemas),
        access=wire.access.copy() if len(wire.access) <= _MAX_ACCESS_BYTES else Raw(b"null"),
        resource_id_path=wire.resource_id_path,
        max_duration_s=wire.max_duration_s,
        large_output=wire.large_output,
        idempotent=wire.idempotent,
    )


def _errors_untrusted(wires: list[_Error]) -> tuple[ImportedError, ...]:
    if not wires:
        return ()
    if len(wires) > MAX_ERRORS:
        raise Malformed(f"it declares {len(wires)} errors, more than {MAX_ERRORS}")
    return tuple(
        ImportedError(
            _clean(wire.code, MAX_TITLE),
            _clean(wire.description, MAX_DESCRIPTION),
            wire.http_status,
            None if wire.details_schema == _NULL else _schema_untrusted(wire.details_schema),
        )
        for wire in wires
    )


def _schema_untrusted(raw: Raw) -> Raw:
    data = bytes(raw)
    check_schema_untrusted(data)
    return Raw(data)  # by itself: it would keep the whole list alive


def _version_untrusted(version: str) -> str:
    if not 0 < len(version) <= MAX_VERSION_BYTES or not (
        version.isascii() and version.isprintable()
    ):
        raise Malformed(f"{_shown(version)} is no version of a list of operations")
    return version


def _clean(text: str, longest: int) -> str:
    """Cut *text*, and take out what would move the cursor of a terminal or turn lines around."""
    text = text[:longest]
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else "\n" for one in text if one.isprintable() or one == "\n"
    )


def _no_list(exc: Exception) -> Malformed:
    return Malformed(f"not a list of operations: {_shown(str(exc))}")


def _shown(text: str) -> str:
    return ascii(text[:80])


async def _aside(function: Callable[..., T], data: bytes, *more: object) -> T:
    """Run *function* on what a peer has sent: here, or in a thread if that takes its time."""
    if len(data) <= PARSE_INLINE_BYTES or len(data) > MAX_LIST_BYTES:
        return function(data, *more)
    return await trio.to_thread.run_sync(function, data, *more, limiter=_THREADS)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest() if len(data) <= MAX_LIST_BYTES else b""


def _check_room(size_bytes: int) -> None:
    held = sum(imports.size_bytes for imports in _KNOWN.values())
    if held + size_bytes > MAX_ALL_BYTES:
        why = f"the operations that peers offer take {held} bytes already"
        raise CallError(ErrorCode.RESOURCE_EXHAUSTED, why)


def _placed(prefix: str | None) -> Callable[[str], str] | None:
    if prefix is None:
        return None
    check_operation_name(f"{prefix}/x")
    if prefix.partition("/")[0] in BUILTIN_NAMESPACES:
        raise LocalError(f"prefix {prefix!r}: the namespace is reserved for the node itself")
    return lambda name: f"{prefix}/{name}"


def _as_it_is(name: str) -> str:
    return name


class _Error(msgspec.Struct):
    code: str
    description: str = ""
    http_status: Annotated[int, Meta(ge=400, le=599)] = 422
    details_schema: Raw = Raw(b"null")


class _Operation(msgspec.Struct):
    name: str
    op_type: str
    title: str = ""
    description: str = ""
    input_schema: Raw = Raw(b"{}")
    item_schema: Raw = Raw(b"{}")
    output_schema: Raw = Raw(b"{}")
    error_schemas: list[_Error] = []
    access: Raw = Raw(b"null")
    resource_id_path: Annotated[str, Meta(max_length=1024)] | None = None
    max_duration_s: Annotated[float, Meta(gt=0)] | None = None
    large_output: bool = False
    idempotent: bool = False


class _List(msgspec.Struct):
    operations: list[Raw]  # counted before they are read: that takes a hundred times as long
    version: str | None = None


class _Version(msgspec.Struct):
    version: str


_VERSION = msgspec.json.Decoder(_Version)
_MAX_ITEM_BYTES = 4 * 1024
_LIST = msgspec.json.Decoder(_List)
_OPERATION = msgspec.json.Decoder(_Operation)
# An honest list has fewer commas than one in eight bytes; a million of them take 50 ms.
_MAX_COMMAS = MAX_LIST_BYTES // 8
_NO_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_OP_TYPES = {kind.value: kind for kind in OpType}
_NULL = Raw(b"null")
_MAX_ACCESS_BYTES = 8 * 1024
# By SHA-256 of the list as it came, as long as somebody has it.
_KNOWN: WeakValueDictionary[bytes, Imports] = WeakValueDictionary()
# One at a time: a core is left for the calls, and what is equal is read once.
_READING = trio.Lock()
_THREADS = trio.CapacityLimiter(1)
