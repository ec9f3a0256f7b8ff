"""docs/reference/access.md: what `alknet.core.access.check_access` really answers."""

from __future__ import annotations

from alknet.core.access import PUBLIC, AccessRules, MissingResourceId, check_access
from alknet.core.identity import ANONYMOUS, OWNER, RESERVED_SCOPES, Grant, Identity
from alknet.errors import Denied
from alknet.testing.operations import FixedOwnership
from tests.docs.pages.markdown import GENERATED, table

__all__ = ["page"]

_RESOURCE = AccessRules(resource_type="share", action="read")
_SCOPED = AccessRules(scopes_all=("fs:read",), resource_type="share", action="read")

# What the operation declares, and the resource that the input names, if it has a path for it.
_RULES = {
    "`public()`": (PUBLIC, False, None),
    '`scopes("fs:read")`': (AccessRules(scopes_all=("fs:read",)), False, None),
    '`scopes("fs:read", "fs:write")`': (
        AccessRules(scopes_all=("fs:read", "fs:write")),
        False,
        None,
    ),
    '`any_scope("fs:read", "fs:write")`': (
        AccessRules(scopes_any=("fs:read", "fs:write")),
        False,
        None,
    ),
    '`scopes("admin:node")`': (AccessRules(scopes_all=("admin:node",)), False, None),
    '`resource("share", action="read")`, input names `photos`': (_RESOURCE, True, "photos"),
    "the same, input names nothing": (_RESOURCE, True, None),
    'the same and `scopes_all=["fs:read"]`, input names `photos`': (_SCOPED, True, "photos"),
    "the same, as a list (no `resource_id_path`)": (_SCOPED, False, None),
}

_CALLERS = {
    "anonymous": ANONYMOUS,
    "peer without rights": Identity("peer:bob"),
    "peer with `fs:read`": Identity("peer:bob", ("fs:read",)),
    "peer with `*`": Identity("peer:bob", ("*",)),
    "peer with `admin:*`": Identity("peer:bob", ("admin:*",)),
    "peer granted `share:photos:read`": Identity(
        "peer:bob", (), (Grant.parse("share:photos:read"),)
    ),
    "peer that owns `photos`": Identity("peer:owns", ("fs:read",)),
    "owner": OWNER,
}

_OWNERSHIP = FixedOwnership({("peer:owns", "share", "photos")})


def page() -> str:
    """Return the page."""
    reserved = " and ".join(f"`{prefix}*`" for prefix in RESERVED_SCOPES)
    return f"""{GENERATED}
# Access

Who may call what is decided by one pure function over memory, `alknet.core.access.check_access`,
before an operation runs. It sees the caller's identity, the rules of the operation, one resource
id and who owns what. It cannot see `forwarded_for`: whom a caller says that it speaks for is data,
never authority.

1. An operation must say `public()` to be public. One without rules is an error when it is made.
2. The **owner** (the control socket of the node's home, and nothing else) passes every check.
3. No identity: denied, «authentication required».
4. Each scope of `scopes_all`, and one of `scopes_any`, must be granted. A grant may end in `*`;
   no wildcard reaches {reserved} unless it begins so.
5. With a resource type and a `resource_id_path` (JSON Pointer, RFC 6901), the decoded input must
   name a resource, and the caller must own it or hold a grant `type:id[:action]` that covers it.
6. With a resource type and no path, the operation is a *list*: the scopes admit, and its handler
   filters what it returns by `ctx.visible`.

Tokens replace the identity of one request. Identities are `peer:<name>`, `key:<prefix>` (a token),
`owner` and `anonymous`; see [identity.md](identity.md).

## The table

What the function answers, asked for each pair when this page was made:

{_table()}
`INVALID_INPUT` is no denial: a caller who may call the operation forgot to name the resource.
Internal operations, and those that do not exist, answer `NOT_FOUND` to everybody.
"""


def _table() -> str:
    rows = [
        (rules, *(_answer(identity, *_RULES[rules]) for identity in _CALLERS.values()))
        for rules in _RULES
    ]
    return table(("rules", *_CALLERS), rows)


def _answer(
    identity: Identity, rules: AccessRules, has_resource_path: bool, resource_id: str | None
) -> str:
    try:
        check_access(
            rules,
            identity,
            resource_id,
            has_resource_path=has_resource_path,
            ownership=_OWNERSHIP,
        )
    except MissingResourceId:
        return "INVALID_INPUT"
    except Denied as exc:
        return f"no: {exc.reason}"
    return "**yes**"
