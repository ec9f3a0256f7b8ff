"""``node/succeed``: a node that has a new key tells those who know it by an old one.

Anybody may call it, so a call costs little and is soon over: whoever has not proven the key that is
announced is sent away at once, the rest are few per second and verified before anything is looked
up. What is announced is never taken over here: it waits for the peer's owner.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol

import msgspec
import trio
from msgspec import Meta

from alknet.call.context import Context
from alknet.call.operations import Operation, operation, public
from alknet.call.session import CallSession
from alknet.core.rate import RateLimit
from alknet.core.source import source_of
from alknet.core.succession import (
    STATEMENT_BYTES,
    Answer,
    Succession,
    check_chain,
    decode_succession_untrusted,
)
from alknet.errors import Denied, Malformed, Unavailable

__all__ = [
    "MAX_ANNOUNCED",
    "OPERATION",
    "AnnouncementLimits",
    "Heard",
    "Successors",
    "decode_heard_untrusted",
    "succeed_operation",
]

OPERATION = "node/succeed"

# Who missed more rotations than this is asked for by hand. Eight signatures are half a millisecond.
MAX_ANNOUNCED = 4
# A node tells each peer once. One that has many peers behind one address is told to come back.
PER_SOURCE_PER_S, PER_SOURCE_BURST = 0.2, 5.0
# Of all sources: a hundredth of one core.
PER_NODE_PER_S, PER_NODE_BURST = 20.0, 40.0
# Sources that are remembered; a forgotten one has its burst again, within the node's rate.
SOURCES = 1_024


class Announcement(msgspec.Struct, frozen=True):
    """Signed statements, oldest first; the last one leads to the key of the connection."""

    statements: Annotated[
        tuple[Annotated[bytes, Meta(min_length=STATEMENT_BYTES, max_length=STATEMENT_BYTES)], ...],
        Meta(min_length=1, max_length=MAX_ANNOUNCED),
    ]


class Heard(msgspec.Struct, frozen=True):
    """What became of it: ``waits`` for the owner, ``known`` already, or ``unknown``: no peer's."""

    state: Answer


class Successors(Protocol):
    """What remembers that a peer has a new key."""

    async def hear(self, statements: Sequence[Succession], address: str) -> Answer:
        """Remember what was verified. Cancelled, it was or not.

        Raises:
            Conflict: Too many keys wait for this peer already.
            StoreError: Nothing could be written.
            Unavailable: It cannot be done now.
        """


class AnnouncementLimits:
    """How many announcements are verified: per source and in all."""

    def __init__(self, *, now: Callable[[], float] = trio.current_time) -> None:
        self._now = now
        self._all = RateLimit(PER_NODE_PER_S, PER_NODE_BURST, now=now)
        self._sources: OrderedDict[str, RateLimit] = OrderedDict()

    @property
    def sources(self) -> int:
        """How many sources are remembered."""
        return len(self._sources)

    def take(self, source: str) -> None:
        """Count one. Raises Unavailable if there were too many."""
        own = self._sources.pop(source, None)
        if own is None:
            own = RateLimit(PER_SOURCE_PER_S, PER_SOURCE_BURST, now=self._now)
        self._sources[source] = own
        if len(self._sources) > SOURCES:
            self._sources.popitem(last=False)
        for limit in (own, self._all):
            if not limit.take():
                raise Unavailable("too many announcements", retry_after_s=limit.wait_s)


def succeed_operation(
    successors: Successors, limits: AnnouncementLimits | None = None
) -> Operation[..., Any]:
    """Return the operation, to be registered with ``builtin=True``."""
    limits = limits or AnnouncementLimits()

    @operation(OPERATION, access=public(), mutation=True, max_duration_s=10)
    async def succeed(ctx: Context, announced: Announcement) -> Heard:
        """Hear that the caller's key takes the place of one that it had before."""
        statements = [decode_succession_untrusted(one) for one in announced.statements]
        key = ctx.remote.peer_key
        # It is public what a node has signed: only the node itself brings it to us.
        if key is None or bytes(key) != statements[-1].new:
            raise Denied("a key announces itself: connect with the one that the statements lead to")
        limits.take(source_of(ctx.remote.address))
        try:
            check_chain(statements)
        except Denied:
            if isinstance(ctx.info.session, CallSession):
                ctx.info.session.authentication_failed()
            raise
        return Heard(await successors.hear(statements, ctx.remote.address))

    return succeed


def decode_heard_untrusted(output: bytes) -> Answer:
    """Read what the operation returned.

    Raises:
        Malformed: It is something else.
    """
    try:
        return msgspec.json.decode(output, type=Heard).state
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Malformed(f"not an answer of {OPERATION}") from exc
