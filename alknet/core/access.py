"""The access check: one pure function over memory that says who may call what.

It sees the caller's identity, the rules of the operation, one resource id and who owns what. It
cannot see ``forwarded_for``: whom a proxy speaks for is data, never authority.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from alknet.core.identity import Identity
from alknet.errors import AlknetError, Denied, LocalError

if TYPE_CHECKING:
    from alknet.core.contracts import OwnershipProvider

__all__ = ["PUBLIC", "AccessRules", "MissingResourceId", "check_access", "visible_ids"]


class MissingResourceId(AlknetError):
    """The input names no resource where the operation needs one: invalid input, not a denial."""


class AccessRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a caller must have. Without any rule, and not public, only the owner may call.

    Attributes:
        public: Anyone may call, also strangers. Excludes every other rule.
        scopes_all: The caller needs each of these.
        scopes_any: The caller needs one of these, if there are any.
        resource_type: The caller must own the resource that the input names, or hold a grant.
        action: What the operation does to it; a grant for another action does not count.
    """

    public: bool = False
    scopes_all: tuple[str, ...] = ()
    scopes_any: tuple[str, ...] = ()
    resource_type: str | None = None
    action: str | None = None

    def __post_init__(self) -> None:
        if self.action is not None and self.resource_type is None:
            raise LocalError(f"access rules with action {self.action!r} but without resource type")

    @property
    def is_empty(self) -> bool:
        """No rule is given, so nothing admits anyone but the owner."""
        return not (self.public or self.scopes_all or self.scopes_any or self.resource_type)

    def validate(self, *, has_resource_path: bool = True) -> None:
        """Check the rules of an external operation, when it is registered.

        Args:
            has_resource_path: The operation says where its input names the resource; one that
                does not is a list operation, which only a scope can admit to.

        Raises:
            LocalError: The rules are empty, contradict one another, or name a wildcard.
        """
        if self.is_empty:
            raise LocalError("external operation registered without rules (say PUBLIC if meant)")
        if self.public and self != PUBLIC:
            raise LocalError("access rules are public and restricted at once")
        scopes = self.scopes_all + self.scopes_any
        for scope in scopes:
            if not scope or "*" in scope:
                raise LocalError(f"access rules need {scope!r}: only grants may have wildcards")
        if self.resource_type is not None and not has_resource_path and not scopes:
            raise LocalError("list operation without a scope: nothing would admit to it")


PUBLIC = AccessRules(public=True)


def check_access(
    rules: AccessRules,
    identity: Identity,
    resource_id: str | None,
    *,
    has_resource_path: bool,
    ownership: OwnershipProvider,
) -> None:
    """Return if *identity* may call an operation with *rules*; raise otherwise.

    Args:
        resource_id: The string that the operation's ``resource_id_path`` found in the decoded
            input, None if there is none.
        has_resource_path: The operation has such a path. One that has a resource type without it
            is a list operation: a scope admits, and its handler filters by `visible_ids`.

    Raises:
        Denied: The caller may not; the reason is safe to send.
        MissingResourceId: The path found no id, whoever calls. Only callers with the scopes
            learn this.
    """
    if rules.public:
        return
    if not identity.is_owner:
        _check_scopes(rules, identity)
        if not _is_admitting(rules, has_resource_path):
            raise Denied("no rule admits to this operation")
    if rules.resource_type is None or not has_resource_path:
        return
    if not resource_id:
        raise MissingResourceId(f"the input does not name the {rules.resource_type}")
    if not _may_use(rules.resource_type, resource_id, rules.action, identity, ownership):
        what = f"{rules.resource_type} {resource_id[:128]!r}"
        raise Denied(f"neither owner of {what} nor granted {rules.action or 'all actions'} on it")


def visible_ids(
    resource_type: str,
    ids: Iterable[str],
    action: str | None,
    identity: Identity,
    ownership: OwnershipProvider,
) -> list[str]:
    """Return those of *ids*, in their order, that *identity* may apply *action* to."""
    return [i for i in ids if _may_use(resource_type, i, action, identity, ownership)]


def _check_scopes(rules: AccessRules, identity: Identity) -> None:
    if identity.is_anonymous:
        raise Denied("authentication required")
    for scope in rules.scopes_all:
        if not identity.has_scope(scope):
            raise Denied(f"scope {scope!r} missing")
    if rules.scopes_any and not any(map(identity.has_scope, rules.scopes_any)):
        raise Denied(f"one of the scopes {', '.join(map(repr, rules.scopes_any))} missing")


def _is_admitting(rules: AccessRules, has_resource_path: bool) -> bool:
    # `validate` refuses such rules at the start; this is the lock behind that door.
    by_resource = rules.resource_type is not None and has_resource_path
    return bool(rules.scopes_all or rules.scopes_any) or by_resource


def _may_use(
    resource_type: str,
    resource_id: str,
    action: str | None,
    identity: Identity,
    ownership: OwnershipProvider,
) -> bool:
    if identity.is_owner:
        return True
    return ownership.owns(identity.id, resource_type, resource_id) or identity.has_grant(
        resource_type, resource_id, action
    )
