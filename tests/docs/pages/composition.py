"""docs/reference/composition.md: what a handler that calls another operation really gets."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from alknet.call import reach
from alknet.call.children import ChildError
from alknet.call.codes import CallError, ErrorCode
from alknet.call.context import CallInfo, Context, Remote
from alknet.call.dispatch import OperationDispatcher
from alknet.call.operations import CompositionAuthority, Operation, operation, public, scopes
from alknet.call.overlay import MOST_OPERATIONS
from alknet.call.registry import Registry
from alknet.core.identity import OWNER
from alknet.core.limits import Limits
from alknet.errors import LocalError
from alknet.testing.operations import FixedIdentities, FixedOwnership
from tests.docs.pages.markdown import GENERATED, prose, table

__all__ = ["page"]


@operation("t/public", access=public())
async def _public() -> None: ...


@operation("t/scoped", access=scopes("fs:read"))
async def _scoped() -> None: ...


@operation("t/inner", access=public(), internal=True)
async def _inner() -> None: ...


@operation("t/guarded", access=scopes("fs:read"), internal=True)
async def _guarded() -> None: ...


@operation("t/bare", internal=True)
async def _bare() -> None: ...


_CHILDREN = {
    "`access=public()`": "t/public",
    '`access=scopes("fs:read")`': "t/scoped",
    "`internal=True, access=public()`": "t/inner",
    '`internal=True, access=scopes("fs:read")`': "t/guarded",
    "`internal=True`": "t/bare",
    "there is none of that name": "t/missing",
}
_REGISTERED = (_public, _scoped, _inner, _guarded, _bare)

# Whether the parent declares the child, and the scopes of its authority.
_PARENTS = {
    "does not declare it": (False, ("fs:read",)),
    "`calls` it, no authority": (True, ()),
    "`calls` it, authority with `fs:write`": (True, ("fs:write",)),
    "`calls` it, authority with `fs:read`": (True, ("fs:read",)),
}


def page() -> str:
    """Return the page."""
    return f"""{GENERATED}
# Composition

A handler calls other operations of its node by `ctx.call`, `ctx.batch`, `ctx.subscribe`,
`ctx.upload` and `ctx.bidi`. What it reaches, it declares in `calls`; with whose rights, in
`authority`. Neither the rights of its caller nor those of the node count: a handler without an
authority calls what is public.

1. A name that is not in `calls` is `NOT_FOUND`, exactly as one that does not exist. Internal
   operations are reached here, and nowhere else. A node with an operation that declares what is not
   registered does not start.
2. The scopes and grants of the **parent's** `CompositionAuthority` meet the child's access rules
   ([access.md](access.md)). The child sees `op:<label>` as its caller, or `anonymous`.
3. Who asked first stands in the child's `ctx.forwarded_for`, at any depth. It is data.
4. The child ends with the parent: at its abort, its deadline, its caller's disconnect; and at its
   own deadline with `TIMEOUT`. Calls nest 16 deep at most. A child that was called with
   `continue_running=True` and has started finishes all the same, within its own deadline, and
   starts no more calls of its own. The end of the node waits for it as for all calls. There are
   {Limits().surviving_calls:,} such calls at once at most (`limits.surviving_calls`).
5. What a child says about the parent's request to it (`NOT_FOUND`, `FORBIDDEN`, a code of its own)
   is for the parent alone. If it does not catch that, its caller gets `INTERNAL` with a correlation
   id, and the log names the child and its code. What is true for whoever asks passes on:
   {_passing()}.

## What `calls` may say

{_reach_table()}
## Operations that a handler adds

`async with ctx.overlay(*operations)` adds operations for the time of a block: an agent's tools. The
handler can call them without declaring it, they one another where they declare it, and nobody else
sees them. `ctx.session_overlay().add(...)` adds them to the connection that the call came by: all
who call there find those that are not internal, until it ends ([visibility.md](visibility.md)).

1. The node's operations come first: a name that is taken cannot be added.
2. An added operation has at most the scopes, grants, reach and secrets of the one that adds it, and
   its authority has the same label.
3. When the block or the connection ends, the operations are gone, and their calls are cancelled:
   `ABORTED`. There are {MOST_OPERATIONS} of them in one overlay at most.

## The table

What each parent gets, asked when this page was made; the call came from the **owner**, whose rights
change nothing:

{_table()}"""


def _passing() -> str:
    errors = [ChildError(CallError(code, ""), "t/child") for code in ErrorCode]
    return ", ".join(f"`{error.code}`" for error in errors if error.passed_on() is not None)


def _reach_table() -> str:
    document = inspect.getdoc(reach) or ""
    return "".join(f"{prose(line)}\n" for line in document.splitlines() if line.startswith("|"))


def _table() -> str:
    rows = [
        (child, *(_answer(name, *parent) for parent in _PARENTS.values()))
        for child, name in _CHILDREN.items()
    ]
    return table(("the child", *(f"a parent that {how}" for how in _PARENTS)), rows)


def _answer(name: str, is_declared: bool, granted: tuple[str, ...]) -> str:
    parent = _parent(name if is_declared else None, granted)
    try:
        dispatcher = OperationDispatcher(
            Registry([parent, *_REGISTERED]),
            identities=FixedIdentities(),
            ownership=FixedOwnership(),
            limits=Limits(),
        )
    except LocalError:
        return "the node does not start"
    info = CallInfo(
        request_id="d1",
        operation=parent.spec.name,
        identity=OWNER,
        remote=Remote("control.sock", None, "unix"),
    )
    try:
        dispatcher.admit_child(parent, Context(info, FixedOwnership()), name, msgspec.Raw(b"{}"))
    except CallError as exc:
        return exc.code
    return "**yes**"


def _parent(child: str | None, granted: tuple[str, ...]) -> Operation[..., Any]:
    authority = CompositionAuthority("parent", granted) if granted else None
    calls = [] if child is None else [child]

    @operation("t/parent", access=public(), calls=calls, authority=authority)
    async def parent() -> None: ...

    return parent
