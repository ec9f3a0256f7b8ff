"""Telling peers that this node has a new key, until all have heard or it is long ago.

A peer that is told still knows us by the old key: it is called as by a stranger, with the new key
proven. It is only told if it proves its own, and what it answers is remembered, so that a restart
tells nobody twice.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Protocol

import trio

from alknet.call.codes import CallError
from alknet.call.handler import ALPN
from alknet.call.session import open_session
from alknet.call.succeed import MAX_ANNOUNCED, OPERATION, decode_heard_untrusted
from alknet.core.address import Address
from alknet.core.backoff import Backoff
from alknet.core.clock import WallClock, wall_clock
from alknet.core.contracts import ConnectionEnded
from alknet.core.endpoint.dial import dial
from alknet.core.identity import Peer
from alknet.core.limits import Limits
from alknet.core.succession import Answer, Succession
from alknet.core.tls.credentials import NodeCredentials
from alknet.core.tls.trust import AnyKey
from alknet.errors import AlknetError, LocalError

__all__ = ["Peers", "SuccessionTeller", "Told"]

log = logging.getLogger(__name__)

# Who was off for longer hears of it from a person, as after a rotation of old.
TOLD_FOR_S = 30 * 86_400.0
# Between two rounds over those who have not heard: soon at first, for both nodes may be starting.
FIRST_S, LONGEST_S = 30.0, 3_600.0
# Peers that are dialled at once. Each dial is up to 16 attempts, most of which time out.
AT_ONCE = 8
# One peer: a dial of 10 s, a handshake and a call.
TELL_WITHIN_S = 20.0


class Peers(Protocol):
    """Whom the node knows."""

    @property
    def version(self) -> int:
        """Grows when they change."""

    def peers(self) -> Sequence[Peer]:
        """Return all of them."""

    async def wait_changed(self, version: int) -> int:
        """Wait until `version` differs from *version*."""


class Told(Protocol):
    """Who has heard."""

    def has(self, name: str) -> bool:
        """Whether the peer of that name has."""

    async def note(self, name: str, answer: Answer) -> None:
        """Remember that it has. Cancelled, it is remembered or not."""


class SuccessionTeller:
    """Tells the peers of a node about its newest key.

    Args:
        statements: How it came to its key, oldest first; none if that is its first.
        peers: Whom to tell: those that are enabled and have an address and an Ed25519 key.
        told: Who has heard.
        credentials: The node's, with the newest key.
        limits: Of its connections.
        clock: What says how long ago the key was signed.
        first_s: The bound of the first wait between rounds.
    """

    def __init__(
        self,
        statements: Sequence[Succession],
        *,
        peers: Peers,
        told: Told,
        credentials: NodeCredentials,
        limits: Limits,
        clock: WallClock = wall_clock,
        first_s: float = FIRST_S,
    ) -> None:
        self._statements = [one.encode() for one in statements[-MAX_ANNOUNCED:]]
        self._ends_at = statements[-1].signed_at + TOLD_FOR_S if statements else 0.0
        self._peers = peers
        self._told = told
        self._credentials = credentials
        self._limits = limits
        self._clock = clock
        self._first_s = first_s

    @property
    def untold(self) -> Sequence[Peer]:
        """Those who have not heard, and could."""
        if not self._statements:
            return ()
        return [peer for peer in self._peers.peers() if self._is_untold(peer)]

    def untold_names(self) -> list[str]:
        """Return who has not heard, by name."""
        return [peer.name for peer in self.untold]

    async def run(self) -> None:
        """Tell them all, again and again those who were not reached, until `TOLD_FOR_S` is over.

        Cancelled, who has answered is remembered; a peer may be told once more.
        """
        backoff = Backoff(first_s=self._first_s, longest_s=LONGEST_S)
        if not self._statements:
            return
        # A clock that was set back must not make it last for longer.
        left_s = min(self._ends_at - self._clock(), TOLD_FOR_S)
        with trio.move_on_after(max(0.0, left_s)):
            while True:
                version = self._peers.version
                untold = self.untold
                await self._tell_all(untold)
                reached = len(untold) - len(self.untold)
                if reached:
                    backoff.reset()
                await self._wait(backoff, version)
        if names := self.untold_names()[:AT_ONCE]:
            log.warning("succession.not_told", extra={"peers": names})

    async def _wait(self, backoff: Backoff, version: int) -> None:
        """Wait before the next round: for a change of the peers at least, if all have heard."""
        await trio.sleep(self._first_s)  # edits come in crowds
        longest_s = backoff.next_s() if self.untold else math.inf
        with trio.move_on_after(longest_s):
            await self._peers.wait_changed(version)

    async def _tell_all(self, untold: Sequence[Peer]) -> None:
        waiting = iter(untold)

        async def work() -> None:
            for peer in waiting:
                await self._tell(peer)

        async with trio.open_nursery() as nursery:
            for _ in range(min(AT_ONCE, len(untold))):
                nursery.start_soon(work, name="telling of the new key")

    async def _tell(self, peer: Peer) -> None:
        try:
            with trio.fail_after(TELL_WITHIN_S):
                answer = await self._ask(peer)
            await self._told.note(peer.name, answer)
        except (AlknetError, CallError, ConnectionEnded, trio.TooSlowError) as exc:
            about = {"peer": peer.name, "reason": str(exc) or "no answer in time"}
            log.info("succession.not_told_yet", extra=about)
        else:
            log.info("succession.told", extra={"peer": peer.name, "answer": answer})

    async def _ask(self, peer: Peer) -> Answer:
        where = [Address.parse(text) for text in peer.addresses]
        async with (
            dial(
                where,
                alpn=ALPN,
                trust=AnyKey(),  # a peer may have several keys: judged below
                credentials=self._credentials,
                limits=self._limits,
            ) as connection,
            open_session(connection, limits=self._limits) as session,
        ):
            key = connection.peer_key
            if key is None or key.fingerprint not in peer.fingerprints:
                raise LocalError("another key than the peer's answers there")
            output = await session.call(OPERATION, {"statements": self._statements})
        return decode_heard_untrusted(output)

    def _is_untold(self, peer: Peer) -> bool:
        own = self._credentials.node_id.fingerprint
        return (
            peer.enabled
            and bool(peer.addresses)
            and any(text.startswith("ed25519:") and text != own for text in peer.fingerprints)
            and not self._told.has(peer.name)
        )
