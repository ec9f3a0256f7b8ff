"""The connection IDs that an endpoint gives to its peers: a shard, then 56 random bits.

Several processes can share one UDP port if each issues IDs that name it: the kernel steers a packet
by the first byte of its destination connection ID (SO_REUSEPORT with a filter on ``cid[0] % N``),
also after the peer's address has changed. One process is shard 0 of 1; that the byte is there from
the start is what lets a node become several without a new wire format.

With each ID goes its stateless reset token, which `ResetKey` makes; all shards share the key, so
any of them can answer for one that was started again.
"""

from __future__ import annotations

import os

from alknet.core.quic.reset import ResetKey

__all__ = ["CID_LENGTH", "MAX_SHARDS", "ConnectionIds"]

# The shard's byte and 56 random bits: who guesses one of 10,000 connections' eight IDs needs 2^40
# packets. Short headers do not say how long it is, so all have this length.
CID_LENGTH = 8
MAX_SHARDS = 256


class ConnectionIds:
    """Issues the connection IDs of one endpoint, and their tokens."""

    __slots__ = ("_first", "_key")

    def __init__(self, reset_key: ResetKey | None = None, *, shard: int = 0) -> None:
        """Issue for *shard*, 0 to 255, with tokens of *reset_key*, or of a fresh key if None."""
        self._first = bytes((shard,))
        self._key = reset_key or ResetKey()

    def new(self) -> bytes:
        """Return a connection ID that was never seen before."""
        return self._first + os.urandom(CID_LENGTH - 1)

    def token(self, cid: bytes) -> bytes:
        """Return the stateless reset token of *cid*."""
        return self._key.token(cid)
