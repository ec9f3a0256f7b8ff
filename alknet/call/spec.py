"""What an operation declares, apart from its types and its code."""

from __future__ import annotations

import enum
import re
from typing import Any

import msgspec

from alknet.call.codes import ErrorCode
from alknet.core.access import AccessRules
from alknet.core.identity import Grant, Identity
from alknet.errors import AlknetError, LocalError

__all__ = [
    "MAX_NAME_BYTES",
    "OPERATION_NAME",
    "CompositionAuthority",
    "ErrorSpec",
    "OpType",
    "OperationError",
    "OperationSpec",
    "check_operation_name",
]

MAX_NAME_BYTES = 255
"""Names are 256 bytes on the wire, where a slash leads them."""


class OpType(enum.StrEnum):
    """How an operation runs: what a retry means, and how many outputs and inputs there are."""

    QUERY = "query"
    MUTATION = "mutation"
    SUBSCRIPTION = "subscription"
    UPLOAD = "upload"
    BIDI = "bidi"

    @property
    def has_items(self) -> bool:
        """Its outputs are a stream of items."""
        return self in _HAVE_ITEMS

    @property
    def takes_items(self) -> bool:
        """Its caller sends a stream of items, beside the input."""
        return self in _TAKE_ITEMS


_HAVE_ITEMS = frozenset({OpType.SUBSCRIPTION, OpType.BIDI})
_TAKE_ITEMS = frozenset({OpType.UPLOAD, OpType.BIDI})


class CompositionAuthority(msgspec.Struct, frozen=True):
    """The rights with which an operation calls others, whoever called it.

    Attributes:
        label: Whom the children see as their caller: ``op:<label>``.
        scopes: Of the children that it may call.
        resources: Grants on resources of theirs.
    """

    label: str
    scopes: tuple[str, ...] = ()
    resources: tuple[Grant, ...] = ()

    def __post_init__(self) -> None:
        if not _LABEL.fullmatch(self.label):
            raise LocalError(f"label {self.label!r} of an authority must match {_LABEL.pattern}")

    @property
    def identity(self) -> Identity:
        """Whom the children see."""
        return Identity(f"op:{self.label}", self.scopes, self.resources)


class ErrorSpec(msgspec.Struct, frozen=True):
    """An error that an operation declares; `OperationError` raises it.

    Attributes:
        code: Upper case with underscores, none of the protocol's own.
        description: When it happens, for people.
        details_type: What ``details`` holds: a type whose JSON form is an object; None for none.
        http_status: What an HTTP gateway answers, 400 to 599.
    """

    code: str
    description: str = ""
    details_type: Any = None
    http_status: int = 422

    def __post_init__(self) -> None:
        if not _CODE.fullmatch(self.code):
            raise LocalError(f"error code {self.code!r} must match {_CODE.pattern}")
        if self.code in ErrorCode.__members__:
            raise LocalError(f"error code {self.code!r} belongs to the protocol")
        if not 400 <= self.http_status <= 599:
            raise LocalError(f"error {self.code}: HTTP status {self.http_status} is not 400 to 599")


class OperationError(AlknetError):
    """What a handler raises to say no: a declared code, or one of the protocol's.

    A code that is neither reaches the caller as INTERNAL. Everything in it is sent.

    Attributes:
        code: See `ErrorSpec`; of the protocol's, all but INTERNAL, ABORTED and
            INVALID_OPERATION_TYPE.
        message: One sentence for people.
        retryable: The same request may succeed later; None for what the code says.
        details: A value of the declared ``details_type``, or a dict for the protocol's codes.
    """

    def __init__(
        self, code: str, message: str, *, retryable: bool | None = None, details: object = None
    ) -> None:
        super().__init__(message)
        self.code = str(code)
        self.message = message
        self.retryable = retryable
        self.details = details


class OperationSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about an operation but its types and its code.

    Attributes:
        name: ``seg(/seg)+`` without a leading slash; see `check_operation_name`.
        op_type: How it runs.
        access: Who may call it.
        internal: Only other operations of this node may call it; to all others it is missing.
        resource_id_path: JSON Pointer to the resource id in the input; None for a list.
        errors: What it raises beside the protocol's codes.
        max_duration_s: Its deadline; None for the node's default, and none for subscriptions and
            bidirectional calls.
        large_output: Its output may be large: callers should give it a stream of its own.
        idempotent: Running it twice is the same as once; see `is_idempotent`.
        calls: Names of the operations that it calls; it reaches no others (`alknet.call.reach`).
        authority: The rights with which it calls them; None for those that nobody needs.
        secrets: Paths of the secrets that its handler may read; callers never see them.
        title: One line for people.
        description: The whole story.
    """

    name: str
    op_type: OpType
    access: AccessRules
    internal: bool = False
    resource_id_path: str | None = None
    errors: tuple[ErrorSpec, ...] = ()
    max_duration_s: float | None = None
    large_output: bool = False
    idempotent: bool = False
    calls: tuple[str, ...] = ()
    authority: CompositionAuthority | None = None
    secrets: tuple[str, ...] = ()
    title: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        if self.idempotent and self.op_type.has_items:
            raise LocalError(f"a {self.op_type} has no one answer, so it is not idempotent")

    @property
    def namespace(self) -> str:
        """The first segment of the name."""
        return self.name.partition("/")[0]

    @property
    def is_idempotent(self) -> bool:
        """A caller may run it twice where it wants it once: a query, or one that says so.

        A query changes nothing, so it need not say so (as with safe methods, RFC 9110 9.2.2).
        """
        return self.idempotent or self.op_type is OpType.QUERY

    @property
    def is_list(self) -> bool:
        """It lists resources: the scope admits, the handler filters by `Context.visible`."""
        return self.access.resource_type is not None and self.resource_id_path is None


def check_operation_name(name: str) -> None:
    """Raise LocalError unless *name* is ``seg(/seg)+``, at most 255 bytes, with no slash first."""
    if name.startswith("/"):
        raise LocalError("names have no leading slash here")
    if not OPERATION_NAME.fullmatch(name):
        raise LocalError(
            "a name is two or more segments between slashes, "
            "each 1 to 64 of letters, digits, '_', '.' and '-'"
        )
    if len(name) > MAX_NAME_BYTES:
        raise LocalError("a name has at most 255 bytes")


_SEGMENT = r"[A-Za-z0-9_.-]{1,64}"
OPERATION_NAME = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})+")
_LABEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
