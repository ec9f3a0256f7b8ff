"""Calls to peers that are tried again, and those that are sent to two at once."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from alknet.call.peers.reference import PeerRef
from alknet.call.retrying import Retrier
from alknet.call.spec import OpType

if TYPE_CHECKING:
    from alknet.call.peers.environment import PeerEnvironment

__all__ = ["retrier_for"]


def retrier_for(environment: PeerEnvironment, ref: PeerRef) -> Retrier:
    """Return what tries calls to *ref* again, within the budget of *environment*.

    Where any peer may be asked, an idempotency key is of no use (the next peer has not seen the
    first request), and the second of two requests goes to the one with the fewest calls of ours,
    which is another than the first if there is one with less to do.
    """

    async def is_idempotent(operation: str) -> bool:
        offered = environment.offer(ref, operation)
        return offered is not None and (offered.idempotent or offered.op_type is OpType.QUERY)

    return Retrier(
        partial(environment.call, ref),
        hedge=partial(environment.call, ref if ref.name is not None else PeerRef.any()),
        remembers_keys=ref.name is not None,
        is_idempotent=is_idempotent,
        budget=environment.retry_budget,
    )
