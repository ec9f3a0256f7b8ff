"""Stateless reset: how a node that has lost a connection ends it at the peer (RFC 9000 sec. 10.3).

With each connection ID goes a token, which nobody can compute but who holds the node's reset key.
A node that gets a packet for a connection that it does not know answers with random bytes and the
token of that connection ID; the peer knows the token by heart and gives the connection up at once,
instead of after its idle time-out. No state is needed for it: that is why a node that was killed
and started again can do it.

Sans-IO: time comes in as ``now``. Tokens are secrets: whoever knows one can end the connection.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from alknet.core.datagram import Address, format_address

__all__ = [
    "KEY_BYTES",
    "TOKEN_BYTES",
    "Budget",
    "PeersByAddress",
    "ResetKey",
    "ResetSender",
    "ends_in_token",
]

KEY_BYTES = 32
TOKEN_BYTES = 16
# The shortest packet that AES-GCM with a connection ID can make; shorter ones are no packets.
MIN_RESET_BYTES = 21
# Up to here a reset is one byte shorter than its cause, which ends a game of ping-pong between
# two nodes that both know nothing; above, as long as a small packet may be (RFC 9000 sec. 10.3).
USUAL_RESET_BYTES = 43
LONGEST_RESET_BYTES = 64
# A node that comes back tells 1,000 old connections that ping every 10 s as fast as they ask, and
# a flood with forged connection IDs gets a few KiB and a few ms of work per second out of it.
RESETS_PER_S = 100.0
# Tokens that strays are compared with: about 1 % of a core. Connections that share an address
# share a stray's work, so without this a hundred of them would multiply each forged datagram.
COMPARISONS_PER_S = 20_000.0
FIXED_BIT = 0x40
FORM_AND_FIXED_BITS = 0xC0

K = TypeVar("K", bound=Hashable)


class ResetKey:
    """Makes the tokens of one endpoint's connection IDs. Its ``repr`` does not show the key."""

    __slots__ = ("_key", "_keyed")

    def __init__(self, key: bytes | None = None) -> None:
        """Take *key*, of `KEY_BYTES`, or a fresh one whose tokens die with this process."""
        self._key = secrets.token_bytes(KEY_BYTES) if key is None else key
        self._keyed = hmac.new(self._key, digestmod="sha256")  # costs as much as two tokens

    def at(self, address: Address) -> ResetKey:
        """Return the key of the endpoint that listens on *address*.

        Endpoints do not share one: a packet of a living connection, copied to another port of
        the node, would fetch the token that ends it (RFC 9000 sec. 21.11).
        """
        place = f"alknet reset key at {format_address(address)}"
        return ResetKey(hmac.digest(self._key, place.encode(), "sha256"))

    def token(self, cid: bytes) -> bytes:
        """Return the token of the connection ID *cid*."""
        keyed = self._keyed.copy()
        keyed.update(cid)
        return keyed.digest()[:TOKEN_BYTES]


class Budget:
    """So much work per second, and so much at once after a quiet time: by default as much."""

    __slots__ = ("_at", "_at_once", "_left", "_per_s")

    def __init__(self, per_s: float, at_once: float | None = None) -> None:
        self._per_s = per_s
        self._at_once = self._left = per_s if at_once is None else at_once
        self._at = float("-inf")

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Take *amount*, no more than there may be at once, if it is there; else nothing."""
        if now > self._at:
            self._left = min(self._at_once, self._left + (now - self._at) * self._per_s)
            self._at = now
        if self._left < amount:
            return False
        self._left -= amount
        return True

    def give_back(self, amount: float = 1.0) -> None:
        """Let what was taken count for nothing after all."""
        self._left = min(self._at_once, self._left + amount)


class ResetSender:
    """Answers packets of unknown connections, so many a second."""

    __slots__ = ("_budget", "_cid_length", "_token")

    def __init__(self, token: Callable[[bytes], bytes], cid_length: int) -> None:
        """Answer with what *token* says of the connection ID of *cid_length* bytes."""
        self._token = token
        self._cid_length = cid_length
        self._budget = Budget(RESETS_PER_S)

    def deserves(self, datagram: bytes) -> bool:
        """Whether it may be a packet of ours, and long enough for a shorter answer."""
        return len(datagram) > MIN_RESET_BYTES and (datagram[0] & FORM_AND_FIXED_BITS == FIXED_BIT)

    def answer(self, datagram: bytes, now: float) -> bytes | None:
        """Make the reset for a datagram that `deserves` one; None once the second's are used up.

        It is shorter than *datagram*, and nothing but the token tells it from a packet.
        """
        if not self._budget.take(now):
            return None
        longest = min(len(datagram) - 1, LONGEST_RESET_BYTES)
        size = longest
        if longest >= USUAL_RESET_BYTES:
            size -= secrets.randbelow(longest - USUAL_RESET_BYTES + 2)
        noise = bytearray(os.urandom(size - TOKEN_BYTES))
        noise[0] = FIXED_BIT | noise[0] & ~FORM_AND_FIXED_BITS
        return bytes(noise) + self._token(datagram[1 : 1 + self._cid_length])


class PeersByAddress(Generic[K]):
    """Whose reset a stray may be: the connections with a peer at its source address."""

    def __init__(self) -> None:
        self._at: dict[Address, dict[K, None]] = {}
        self._budget = Budget(COMPARISONS_PER_S)

    def add(self, address: Address, connection: K) -> None:
        """Remember that the peer of *connection* is at *address*."""
        self._at.setdefault(address, {})[connection] = None

    def discard(self, address: Address, connection: K) -> None:
        """Forget what `add` was told."""
        there = self._at.get(address, {})
        there.pop(connection, None)
        if not there:
            self._at.pop(address, None)

    def candidates(self, address: Address, now: float) -> Iterator[K]:
        """Yield the connections with a peer at *address*, as far as the second's budget goes."""
        for connection in tuple(self._at.get(address, ())):
            if not self._budget.take(now):
                return
            yield connection

    def __len__(self) -> int:
        return len(self._at)


def ends_in_token(datagram: bytes, token: bytes | None) -> bool:
    """Whether *datagram* is the stateless reset with *token*; takes as long if not."""
    if token is None or len(datagram) < MIN_RESET_BYTES:
        return False
    return hmac.compare_digest(datagram[-TOKEN_BYTES:], token)
