"""Operations that call others of their node: what they reach, and with whose rights.

In this order; the first that fails is all that the parent learns:

1. *reachability*: the parent declares the name in ``calls``, or has added the operation itself
   (`alknet.call.overlay`); all else is `NOT_FOUND`, and so is what does not exist. Internal
   operations can be called here, and only here;
2. *authority*: the parent's own `CompositionAuthority` meets the child's access rules, never the
   rights of the caller or of the node. A parent that declares none has none: its children must be
   public.

Who asked first rides along as `Context.forwarded_for`, as data. The child runs in the parent's
task: the parent's deadline and abort end it too, if its own deadline does not before.

What goes wrong below is a `ChildError` (`alknet.call.children`), between parent and child: left
uncaught, it tells the parent's caller only of circumstances.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import msgspec

from alknet.call.codes import CallError, ErrorCode
from alknet.core.identity import ANONYMOUS, Identity

if TYPE_CHECKING:
    from alknet.call.context import CallInfo
    from alknet.call.spec import OperationSpec

__all__ = ["MOST_NESTED", "child_info"]

MOST_NESTED = 16
"""Calls within calls: real trees are three or four deep, and one that calls itself has no end."""


def child_info(parent: CallInfo, spec: OperationSpec, name: str) -> CallInfo:
    """Return what the operation *name* is told when *parent*, declared by *spec*, calls it.

    Raises:
        CallError: `RESOURCE_EXHAUSTED`, the calls are nested too deeply.
    """
    if parent.depth >= MOST_NESTED:
        why = f"calls are nested deeper than {MOST_NESTED}"
        raise CallError(ErrorCode.RESOURCE_EXHAUSTED, why, retryable=False)
    return msgspec.structs.replace(
        parent,
        request_id=f"c{next(_made)}",
        parent_id=parent.request_id,
        depth=parent.depth + 1,
        operation=name,
        identity=_authority(spec),
        forwarded_for=parent.forwarded_for or parent.identity,
        idempotency_key=None,
    )


def _authority(spec: OperationSpec) -> Identity:
    return ANONYMOUS if spec.authority is None else spec.authority.identity


# Ids of composed calls, each once in a process: they stand in logs beside those from connections.
_made = count(1)
