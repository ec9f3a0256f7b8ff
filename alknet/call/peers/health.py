"""Peers that fail are not chosen for a while, and come back once they answer.

A peer whose last `EJECT_AFTER` calls all ended UNAVAILABLE or TIMEOUT is *ejected*: `PeerRef.any`
passes it by. After `FIRST_S` (twice as long each time, up to `MOST_S`) it is asked ``node/ping``;
once it answers, it is chosen again. Never more than `MOST_SHARE` of the peers are ejected, so that
a fault that all of them seem to have (that of our own network, or of one bad request) leaves
calls a way. `PeerRef.specific` calls an ejected peer all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.peers.attached import AttachedPeer
from alknet.call.peers.policies import Draw

__all__ = ["EJECT_AFTER", "FAIR_S", "FIRST_S", "FORGET_S", "MOST_S", "MOST_SHARE", "Ejector"]

log = logging.getLogger(__name__)

EJECT_AFTER = 5
"""Failures in a row: one in two calls failing by chance makes five in a row of 32; Envoy's too."""

FIRST_S = 1.0
"""Until the first probe: a restart of a process takes about as long."""

MOST_S = 60.0
"""Between two probes: one that was away for a day is back within a minute."""

FORGET_S = 60.0
"""A peer that was well for so long begins with `FIRST_S` again."""

PROBE_S = 5.0
"""For a probe to be answered: more than any network takes, and a healthy peer's milliseconds."""

MOST_SHARE = 0.5
"""Of the attached peers, rounded down: the only one is never ejected."""

FAIR_S = 1.0
"""A call that may take less says little of the peer if it takes longer: its caller is in a hurry,
and must not have peers ejected by it."""

_SICK = frozenset({ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT})


class Ejector:
    """Judges peers by how calls end.

    Attributes:
        ejected: How many peers are.
    """

    def __init__(
        self,
        attached: Callable[[], int],
        set_available: Callable[[AttachedPeer, bool], None],
        draw: Draw,
    ) -> None:
        """Make one that ejects nobody until it runs, for nobody would come back.

        Args:
            attached: How many peers there are.
            set_available: Lets a peer be chosen or not; told of changes only.
            draw: Spreads the probes.
        """
        self._attached = attached
        self._set_available = set_available
        self._draw = draw
        self._probes: dict[AttachedPeer, trio.CancelScope] = {}
        # How often each was ejected of late, and until when that counts.
        self._record: dict[AttachedPeer, tuple[int, float]] = {}
        self._nursery: trio.Nursery | None = None

    @property
    def ejected(self) -> int:
        """How many peers are ejected."""
        return len(self._probes)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Probe ejected peers until cancelled; then nobody is ejected any more."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None
                for peer in list(self._probes):
                    self.readmit(peer)

    def failed(self, peer: AttachedPeer, error: CallError, timeout_s: float | None) -> None:
        """Note how a call of *peer*, that had *timeout_s* at most, has failed."""
        if error.code not in _SICK:
            if error.code != ErrorCode.ABORTED:  # it has answered
                peer.failures = 0
            return
        if error.code == ErrorCode.TIMEOUT and timeout_s is not None and timeout_s < FAIR_S:
            return
        peer.failures += 1
        if peer.failures >= EJECT_AFTER:
            self._eject(peer)

    def readmit(self, peer: AttachedPeer) -> None:
        """Let *peer* be chosen again: it answers, or has come by a new connection."""
        scope = self._probes.pop(peer, None)
        if scope is None:
            return
        scope.cancel()
        peer.failures = 0
        peer.is_healthy = True
        times, _ = self._record[peer]
        self._record[peer] = (times, trio.current_time() + FORGET_S)
        self._set_available(peer, True)
        log.info("peer.readmitted", extra={"peer": peer.name})

    def forget(self, peer: AttachedPeer) -> None:
        """Drop a peer that is detached; others may have to come back, so that a share is left."""
        self._record.pop(peer, None)
        scope = self._probes.pop(peer, None)
        if scope is not None:
            scope.cancel()
        while self._probes and len(self._probes) > self._most():
            self.readmit(next(iter(self._probes)))

    def _most(self) -> int:
        return int(self._attached() * MOST_SHARE)

    def _eject(self, peer: AttachedPeer) -> None:
        if self._nursery is None or peer in self._probes or len(self._probes) >= self._most():
            return
        times, until = self._record.get(peer, (0, 0.0))
        times = times + 1 if trio.current_time() < until else 1
        self._record[peer] = (times, 0.0)
        peer.is_healthy = False
        scope = self._probes[peer] = trio.CancelScope()
        self._set_available(peer, False)
        log.warning("peer.ejected", extra={"peer": peer.name, "failures": peer.failures})
        self._nursery.start_soon(self._probe, peer, scope, times, name=f"probe of {peer.name}")

    async def _probe(self, peer: AttachedPeer, scope: trio.CancelScope, times: int) -> None:
        with scope:
            while True:
                longest = min(MOST_S, FIRST_S * 2 ** min(times - 1, 10))
                await trio.sleep(longest * (1 + self._draw()) / 2)
                has_answered = await _answers(peer)
                if self._probes.get(peer) is not scope:
                    return  # it went or came back while it was asked
                if has_answered:
                    break
                times += 1
                self._record[peer] = (times, 0.0)
            self.readmit(peer)


async def _answers(peer: AttachedPeer) -> bool:
    session = peer.session
    if session is None:
        return False
    try:
        await session.call("node/ping", timeout_s=PROBE_S)
    except CallError as exc:
        return exc.code not in _SICK  # a refusal is an answer
    return True
