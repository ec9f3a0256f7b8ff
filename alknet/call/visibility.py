"""Which operations exist, as far as a caller may know.

A missing operation and an internal one give the same answer everywhere: in calls, lists and
schemas. Lists and schemas also hide what the caller lacks the scopes for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from alknet.call.codes import CallError, ErrorCode
from alknet.call.operations import Operation
from alknet.call.spec import MAX_NAME_BYTES, OPERATION_NAME
from alknet.core.access import MissingResourceId, check_access
from alknet.core.contracts import OwnershipProvider
from alknet.core.identity import Identity
from alknet.errors import Denied, Unavailable

__all__ = [
    "MOST_CALLERS",
    "NOBODY_OWNS",
    "CheckedResource",
    "ScopeVerdicts",
    "check_scopes",
    "may_call",
    "no_such_operation",
    "operation_name",
]


MOST_CALLERS = 1024
"""Identities that verdicts are kept for: those of all live peers of a usual node."""


def operation_name(operation_id: str) -> str:
    """Return the registry's name for what a caller wrote, with or without a leading slash.

    Raises:
        CallError: `NOT_FOUND`, for it cannot be a name.
    """
    name = operation_id.removeprefix("/")
    if len(name) > MAX_NAME_BYTES or not OPERATION_NAME.fullmatch(name):
        raise no_such_operation(name[:64])
    return name


def no_such_operation(name: str) -> CallError:
    """Return the one error for operations that are missing, internal or out of sight."""
    return CallError(ErrorCode.NOT_FOUND, f"no operation named {name!r}")


def check_scopes(operation: Operation[..., Any], identity: Identity) -> None:
    """Do the part of the access check that needs no input.

    Raises:
        CallError: `FORBIDDEN`, naming the scope or asking for authentication.
    """
    try:
        check_access(
            operation.spec.access,
            identity,
            None,
            has_resource_path=operation.resource_id is not None,
            ownership=NOBODY_OWNS,
        )
    except MissingResourceId:
        return  # the scopes were enough to be asked for the resource
    except Denied as exc:
        raise CallError(ErrorCode.FORBIDDEN, exc.reason) from None


class CheckedResource(NamedTuple):
    """The resource of a call that was admitted.

    Attributes:
        id: As its input names it.
        ownership: Who owns what.
    """

    id: str
    ownership: OwnershipProvider

    def check(self, operation: Operation[..., Any], identity: Identity) -> None:
        """Do the whole access check again, for a call of *operation* that runs.

        Raises:
            CallError: `FORBIDDEN`. Not where nobody can tell who owns it: unknown is not gone.
        """
        try:
            check_access(
                operation.spec.access,
                identity,
                self.id,
                has_resource_path=True,
                ownership=self.ownership,
            )
        except Denied as exc:
            raise CallError(ErrorCode.FORBIDDEN, exc.reason) from None
        except Unavailable:
            return


class ScopeVerdicts:
    """`check_scopes`, where the same callers come again and again.

    A verdict rests on nothing but the identity and the operation's rules, both values that never
    change: a revoked or altered identity is another one. So only *who it was* can go out of date,
    and that is asked anew for each call. Refusals are not remembered, nor are the identities of
    more callers than `MOST_CALLERS` at a time.
    """

    __slots__ = ("_passed",)

    def __init__(self) -> None:
        # By id(): the values, compared by content, would cost more than the check. Each entry
        # holds its identity, so that the id stays its own.
        self._passed: dict[int, tuple[Identity, set[Operation[..., Any]]]] = {}

    def __len__(self) -> int:
        return len(self._passed)

    def check(self, operation: Operation[..., Any], identity: Identity) -> None:
        """Do as `check_scopes`, which see."""
        found = self._passed.get(id(identity))
        if found is not None and operation in found[1]:
            return
        check_scopes(operation, identity)
        if found is None:
            if len(self._passed) >= MOST_CALLERS:
                self._passed.clear()
            found = self._passed[id(identity)] = (identity, set())
        found[1].add(operation)


def may_call(operation: Operation[..., Any], identity: Identity) -> bool:
    """Whether *identity* sees *operation* from outside: external, and its scopes suffice."""
    if operation.spec.internal:
        return False
    try:
        check_scopes(operation, identity)
    except CallError:
        return False
    return True


class _NobodyOwns:
    """Ownership where none is asked for."""

    def owns(self, identity_id: str, resource_type: str, resource_id: str) -> bool:
        return False

    def owned(self, identity_id: str, resource_type: str) -> Sequence[str]:
        return ()


NOBODY_OWNS = _NobodyOwns()
"""For checks of what rests on scopes alone."""
