"""A peer's operations as they change: who offers them says so, who uses them follows.

A peer that serves calls says it with ``peers/offer``. The other side then subscribes to its
``services/watch`` and fetches ``services/list`` when that says another version: two round trips at
the first time, one when it comes back with what it had. A peer that announces without end costs an
import now and then, the rarer the longer its list is; one that breaks the protocol is cut off.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.context import Context
from alknet.call.handles import Subscription
from alknet.call.operations import Operation, operation, public
from alknet.call.peers.attached import AttachedPeer
from alknet.call.peers.imports import Imports, OverLimit, from_call, read_version_untrusted
from alknet.call.session import CallSession
from alknet.core.backoff import Backoff
from alknet.core.contracts import CloseCode
from alknet.core.identity import NodeId
from alknet.core.rate import RateLimit
from alknet.errors import Malformed

__all__ = [
    "NOT_TAKEN",
    "OFFER_OPERATION",
    "ImportMemory",
    "follow_operations",
    "offer_operation",
]

log = logging.getLogger(__name__)

OFFER_OPERATION = "peers/offer"

NOT_TAKEN = "this node takes no operations from this peer"
"""Why a peer that is known may not offer. It may call all the same."""

REIMPORT_S = 0.5
"""Between two imports from one peer, at least: together with the watcher's own interval, a change
is known here within a second."""

REIMPORT_BYTES_PER_S = 512 * 1024
"""What imports from one peer may come to, on average: some 1 % of a core."""

ANNOUNCEMENTS_PER_S = 10.0
"""From one peer: twice what `alknet.call.discovery.WATCH_INTERVAL_S` lets an honest one say."""

ANNOUNCEMENTS_BURST = 400
"""That an honest peer has said while an import took its longest time."""

AGAIN_S = 30.0
"""The longest wait before a peer that could not answer is asked again."""

OFFERS_PER_S = 1.0
"""From one identity, in the long run: each makes this node subscribe and import."""

OFFERS_BURST = 128
"""Twice the connections of an identity, that may all come back at once."""

MOST_OFFERERS = 16_384
"""Identities whose offers are counted: more than a node has connections."""

MOST_REMEMBERED_BYTES = 64 * 1024 * 1024
"""Of lists that are kept for peers that come back. What is equal counts once."""

MOST_REMEMBERED = 100_000
"""Peers whose last list is kept."""


class ImportMemory:
    """What peers offered when they were last here, so that those that come back need not repeat it.

    A version means something only together with the key of the peer that says it: no peer is
    taken for another.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, NodeId | None], Imports] = OrderedDict()
        self._uses: Counter[Imports] = Counter()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size_bytes(self) -> int:
        """Of the lists that are kept, as they came."""
        return self._bytes

    def recall(self, name: str, key: NodeId | None, version: str) -> Imports | None:
        """Return what the peer offers in the state *version*, if that is the last it had."""
        imports = self._kept.get((name, key))
        return None if imports is None or imports.version != version else imports

    def remember(self, name: str, key: NodeId | None, imports: Imports) -> None:
        """Keep *imports*, and drop the oldest where there is too much."""
        self._drop((name, key))
        if not self._uses[imports]:
            self._bytes += imports.size_bytes
        self._uses[imports] += 1
        self._kept[name, key] = imports
        while self._bytes > MOST_REMEMBERED_BYTES or len(self._kept) > MOST_REMEMBERED:
            self._drop(next(iter(self._kept)))

    def _drop(self, who: tuple[str, NodeId | None]) -> None:
        imports = self._kept.pop(who, None)
        if imports is None:
            return
        self._uses[imports] -= 1
        if not self._uses[imports]:
            del self._uses[imports]
            self._bytes -= imports.size_bytes


def offer_operation(offered: Callable[[object], None]) -> Operation[..., Any]:
    """Return ``peers/offer``, to be registered with ``builtin=True``.

    Args:
        offered: Attaches the session that it is given; raises CallError if that is no peer's.
    """
    offerers: dict[str, RateLimit] = {}

    @operation(OFFER_OPERATION, access=public(), mutation=True)
    async def offer(ctx: Context) -> None:
        """Say that the caller serves calls itself, on the connection by which it says so.

        Only peers that this node knows by their key can, and of these those that it lets: others
        get `FORBIDDEN` with the detail `reason`, `may_not_offer`, and are called as soon as they
        may.
        """
        if not ctx.identity.id.startswith("peer:"):
            why = "only a peer that this node knows by its key can offer operations"
            raise CallError(ErrorCode.FORBIDDEN, why)
        if len(offerers) >= MOST_OFFERERS:
            offerers.clear()  # they begin anew, and with them those who were too fast
        limit = offerers.setdefault(ctx.identity.id, RateLimit(OFFERS_PER_S, OFFERS_BURST))
        if not limit.take():
            details = {"retry_after_ms": math.ceil(limit.wait_s * 1000)}
            why = "operations were offered too often"
            raise CallError(ErrorCode.RESOURCE_EXHAUSTED, why, details=details)
        offered(ctx.info.session)

    return offer


async def follow_operations(
    attached: AttachedPeer, session: CallSession, memory: ImportMemory | None = None
) -> None:
    """Keep what *attached* offers as *session* tells it, until that ends or drains.

    A peer that breaks the protocol has the session ended. Cancelled, the peer is told, and what is
    known of it stays.

    Args:
        memory: Shared by all peers of a node; by default nothing is remembered.
    """
    if memory is None:
        memory = ImportMemory()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_when_draining, session, nursery.cancel_scope)
        await _Follower(attached, session, memory).run()
        nursery.cancel_scope.cancel()


async def _stop_when_draining(session: CallSession, scope: trio.CancelScope) -> None:
    await session.connection.draining.wait()
    scope.cancel()  # a drain waits for our calls, too


class _Follower:
    """Follows one session."""

    def __init__(self, attached: AttachedPeer, session: CallSession, memory: ImportMemory) -> None:
        self._attached = attached
        self._session = session
        self._key = session.connection.peer_key
        self._memory = memory
        self._announcements = RateLimit(ANNOUNCEMENTS_PER_S, ANNOUNCEMENTS_BURST)
        self._version: str | None = None
        self._next_at = -math.inf

    async def run(self) -> None:
        backoff = Backoff(longest_s=AGAIN_S)
        while self._session.close_reason is None:
            try:
                async with self._session.subscribe("services/watch") as versions:
                    await self._follow(versions, backoff)
            except Malformed as exc:
                self._cut_off(exc)
                return
            except CallError as exc:
                if exc.code in _NOT_SERVED:
                    log.info("peer.offers_nothing", extra=self._about(error=str(exc)))
                    return
                level = logging.WARNING if exc.code in _FULL else logging.DEBUG
                log.log(level, "peer.unwatched", extra=self._about(error=str(exc)))
            if self._session.close_reason is None:
                await trio.sleep(backoff.next_s())

    async def _follow(self, versions: Subscription, backoff: Backoff) -> None:
        version = await self._next(versions)
        while version is not None:
            version = await self._newest(versions, version)
            if version != self._version:
                await self._import(version)
                backoff.reset()
            # A list that was of another state already is looked at again, even if nothing more is
            # announced: the peer may have gone back to the state that it has announced.
            if version == self._version:
                version = await self._next(versions)

    async def _newest(self, versions: Subscription, version: str) -> str:
        """Wait until there may be an import, and return the last of what came meanwhile."""
        with trio.move_on_at(self._next_at):
            # What comes meanwhile is one change.
            while (later := await self._next(versions)) is not None:
                version = later
        await trio.sleep_until(self._next_at)  # the announcements may have ended before
        return version

    async def _next(self, versions: Subscription) -> str | None:
        """Return the next version that the peer announces; None at the end."""
        try:
            item = await anext(versions)
        except StopAsyncIteration:
            return None
        if not self._announcements.take():
            raise OverLimit("the peer announces changes of its operations without end")
        return read_version_untrusted(bytes(item))

    async def _import(self, version: str) -> None:
        name = self._attached.name
        imports = self._memory.recall(name, self._key, version)
        is_known = imports is not None
        if imports is None:
            imports = await from_call(self._session)
            self._memory.remember(name, self._key, imports)
            pause_s = max(REIMPORT_S, imports.size_bytes / REIMPORT_BYTES_PER_S)
            self._next_at = trio.current_time() + pause_s
        self._version = version = imports.version or version
        self._attached.set_operations(self._session, imports.operations, version)
        about = self._about(
            version=version,
            operations=len(imports.operations),
            left_out=imports.left_out,
            is_known=is_known,
        )
        log.info("peer.operations", extra=about)
        if imports.unusable and not is_known:
            first = dict(list(imports.unusable.items())[:_MOST_SHOWN])
            about = self._about(count=len(imports.unusable), first=first)
            log.warning("peer.operations_unusable", extra=about)

    def _cut_off(self, fault: Malformed) -> None:
        code = CloseCode.LIMIT if isinstance(fault, OverLimit) else CloseCode.PROTOCOL
        log.warning("peer.broke_protocol", extra=self._about(error=str(fault)))
        self._session.end(code, str(fault))

    def _about(self, **more: object) -> dict[str, object]:
        return {"peer": self._attached.name, **more}


_NOT_SERVED = frozenset(
    {ErrorCode.NOT_FOUND, ErrorCode.FORBIDDEN, ErrorCode.INVALID_OPERATION_TYPE}
)
_FULL = frozenset({ErrorCode.RESOURCE_EXHAUSTED})
_MOST_SHOWN = 5
