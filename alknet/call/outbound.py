"""Connections that a node keeps: one to each peer that it was told to, for as long as it runs.

A worker behind NAT cannot be dialled, so it dials its hub and is called by that connection. One
task keeps each: it dials, serves, waits when that failed or ended, and dials again. Waits grow
from 1 s to a minute, are cut short when something changed that could make the next attempt
succeed, and begin anew after a connection that held for a minute.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal

import msgspec
import trio

from alknet.call.session import CallSession
from alknet.core.backoff import Backoff
from alknet.core.nodeid import NodeId
from alknet.core.outbound import OutboundSource, OutboundTarget
from alknet.errors import AlknetError, Denied, Unavailable

__all__ = ["Dial", "Outbound", "OutboundStatus", "Serve"]

log = logging.getLogger(__name__)

# A connection that held for so long has shown that it works: what ends it is news.
STABLE_S = 60.0
# Between two attempts, whatever cuts a wait short: an interface that flaps must not make a flood,
# and a new address takes a moment until it can be used.
BETWEEN_S = 1.0
# A source that cannot be read now is read again after this.
READ_AGAIN_S = 1.0

Dial = Callable[[OutboundTarget, NodeId], AbstractAsyncContextManager[CallSession]]
"""Opens a session with whoever has the key, at the target's addresses; leaving it closes it."""

Serve = Callable[[str, CallSession], Awaitable[None]]
"""What a node does with the peer of that name while its session lives; cancelled at its end.

It raises Denied where the peer does not want us: then the connection is closed, to be tried later.
"""

State = Literal["connecting", "connected", "waiting", "stopped"]


class OutboundStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How one connection is doing.

    Attributes:
        peer: Its name.
        state: ``stopped`` is a peer that cannot be dialled as things are; *last_error* says why.
        attempts: Attempts in a row that did not lead to a connection that held.
        last_error: Why the last attempt failed, or the last connection ended; null for neither.
        next_try_in_s: Until the next attempt; null while there is nothing to wait for.
        connected_for_s: How old the connection is; null without one.
        addresses: Where it is dialled.
        in_config: It stands in ``node.toml``.
        is_called: The peer takes our operations, and can call them; null until it has said so or
            that it does not.
    """

    peer: str
    state: State
    attempts: int
    last_error: str | None
    next_try_in_s: float | None
    connected_for_s: float | None
    addresses: tuple[str, ...]
    in_config: bool
    is_called: bool | None = None


class Outbound:
    """Keeps a connection to each peer of a source."""

    def __init__(
        self,
        source: OutboundSource,
        *,
        dial: Dial,
        serve: Serve,
        wait_network_changed: Callable[[], Awaitable[None]],
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        """Make one; `run` starts it.

        Args:
            source: Says which peers, and is followed.
            dial: Raises AlknetError, OSError or Trio's errors for what another attempt may mend.
            serve: See `Serve`.
            wait_network_changed: Returns when this machine got another network.
            backoff: Makes the waits of one peer.
        """
        self._source = source
        self._dial = dial
        self._serve = serve
        self._wait_network_changed = wait_network_changed
        self._backoff = backoff
        self._kept: dict[str, _Kept] = {}

    def status(self) -> Sequence[OutboundStatus]:
        """Return how each is doing, by name."""
        return [self._kept[name].status() for name in sorted(self._kept)]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep them until cancelled; then all connections are closed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_network, name="network changes")
            task_status.started()
            while True:
                version = self._source.version
                try:
                    self._update(nursery, self._source.targets())
                    await self._source.wait_changed(version)
                except Unavailable as exc:  # what there is stays: unknown is not gone
                    log.warning("outbound.unknown", extra={"error": str(exc)})
                    await trio.sleep(READ_AGAIN_S)

    async def _follow_network(self) -> None:
        while True:
            await self._wait_network_changed()
            log.info("outbound.network_changed")
            for kept in self._kept.values():
                kept.network_changed()

    def _update(self, nursery: trio.Nursery, targets: Sequence[OutboundTarget]) -> None:
        wanted = {target.name: target for target in targets}
        for name in [name for name in self._kept if name not in wanted]:
            log.info("outbound.ended", extra={"peer": name})
            self._kept.pop(name).scope.cancel()
        for name, target in wanted.items():
            if name in self._kept:
                self._kept[name].retarget(target)
            else:
                self._kept[name] = kept = _Kept(target, self._dial, self._serve, self._backoff())
                nursery.start_soon(kept.run, name=f"outbound {name}")


class _Kept:
    """One connection, as often as it takes.

    Attributes:
        scope: Cancelled to end it.
    """

    def __init__(self, target: OutboundTarget, dial: Dial, serve: Serve, backoff: Backoff) -> None:
        self.scope = trio.CancelScope()
        self._target = target
        self._dial = dial
        self._serve = serve
        self._backoff = backoff
        self._state: State = "waiting"
        self._last_error: str | None = None
        self._next_at: float | None = None
        self._connected_at: float | None = None
        self._key: NodeId | None = None
        self._failures = 0
        self._attempt = trio.CancelScope()
        self._hurried = trio.Event()

    def status(self) -> OutboundStatus:
        now = trio.current_time()
        next_at = self._next_at
        since = self._connected_at if self._state == "connected" else None
        return OutboundStatus(
            peer=self._target.name,
            state=self._state,
            attempts=0 if self._is_stable(now) else self._backoff.attempts,
            last_error=self._last_error,
            next_try_in_s=None if next_at is None else round(max(0.0, next_at - now), 3),
            connected_for_s=None if since is None else round(now - since, 3),
            addresses=tuple(map(str, self._target.addresses)),
            in_config=self._target.in_config,
        )

    def network_changed(self) -> None:
        """Wait no longer: the next attempt may succeed where the last did not."""
        if self._state in {"connecting", "waiting"}:
            self._hurry()

    def retarget(self, target: OutboundTarget) -> None:
        """Take over what is known of the peer now; a connection that still fits goes on."""
        if target == self._target:
            return
        self._target = target
        if self._state != "connected" or self._key not in target.keys:
            self._hurry()
        if self._key not in target.keys:
            self._attempt.cancel()

    async def run(self) -> None:
        with self.scope:
            while True:
                self._hurried = trio.Event()
                if self._target.problem:
                    await self._stand_still(self._target.problem)
                    continue
                began_at = trio.current_time()
                await self._try(began_at)
                if self._is_stable(trio.current_time()):
                    self._backoff.reset()
                self._connected_at = self._key = None
                await self._wait(began_at)

    def _hurry(self) -> None:
        self._backoff.reset()
        self._hurried.set()

    async def _stand_still(self, problem: str) -> None:
        self._state, self._last_error = "stopped", problem
        log.warning("outbound.stopped", extra={"peer": self._target.name, "reason": problem})
        await self._hurried.wait()

    async def _try(self, began_at: float) -> None:
        """Dial, and serve until the connection ends."""
        self._state = "connecting"
        target = self._target
        # A peer that has several keys proves one of them: the one that answered, until it fails.
        self._key = target.keys[self._failures % len(target.keys)]
        try:
            with trio.CancelScope() as self._attempt:
                async with self._dial(target, self._key) as session:
                    self._connected(session)
                    await self._serve_until_end(session)
        except _FAILURES as exc:
            self._failed(str(exc) or type(exc).__name__, trio.current_time() - began_at)
        except Exception as exc:  # boundary: what goes wrong with one peer ends no other
            self._failed(f"{type(exc).__name__}: this is a bug", trio.current_time() - began_at)
            log.exception("outbound.crashed", extra={"peer": target.name})

    def _connected(self, session: CallSession) -> None:
        self._state, self._last_error = "connected", None
        self._connected_at = trio.current_time()
        connection = session.connection
        about = {"peer": self._target.name, "address": connection.remote_address}
        log.info("outbound.connected", extra={**about, "carrier": connection.carrier.name})

    async def _serve_until_end(self, session: CallSession) -> None:
        refused: list[Denied] = []
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                try:
                    await self._serve(self._target.name, session)
                except Denied as exc:
                    refused.append(exc)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(serve, name=f"service of {self._target.name}")
            reason = await session.connection.wait_closed()
            self._state = "waiting"  # what is news from here on is so for the next attempt
            nursery.cancel_scope.cancel()
        if refused:
            self._state = "waiting"
            raise refused[0]
        self._last_error = f"the connection ended: {reason.reason or reason}"
        log.info("outbound.lost", extra={"peer": self._target.name, "reason": str(reason)})

    def _failed(self, error: str, after_s: float) -> None:
        self._failures += 1
        self._last_error = error
        about = {"peer": self._target.name, "error": error, "after_s": round(after_s, 3)}
        log.warning("outbound.failed", extra={**about, "attempts": self._backoff.attempts + 1})

    async def _wait(self, began_at: float) -> None:
        """Wait for the next attempt: as long as the back-off says, or until there is news."""
        self._state = "waiting"
        if self._target.problem:
            return
        now = trio.current_time()
        soonest = max(now, began_at + BETWEEN_S)
        self._next_at = max(soonest, now + self._backoff.next_s())
        try:
            with trio.move_on_at(self._next_at):
                await self._hurried.wait()
                self._next_at = soonest = max(soonest, trio.current_time() + BETWEEN_S)
                await trio.sleep_until(soonest)
        finally:
            self._next_at = None

    def _is_stable(self, now: float) -> bool:
        return self._connected_at is not None and now - self._connected_at >= STABLE_S


_FAILURES = (AlknetError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)
