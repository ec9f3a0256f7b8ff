"""Bytes that have arrived and wait for their reader, copied once, when they are read."""

from __future__ import annotations

from collections import deque

__all__ = ["Unread"]

# Shorter pieces are joined to the one before: a peer that sends single bytes must not make us
# keep an object for each.
SHORT_BYTES = 512


class Unread:
    """A queue of bytes. Its length is their number."""

    __slots__ = ("_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def append(self, data: bytes) -> None:
        """Add *data* at the end."""
        pieces = self._pieces
        self._size += len(data)
        if pieces and len(data) < SHORT_BYTES and len(pieces[-1]) < SHORT_BYTES:
            pieces[-1] += data
        elif data:
            pieces.append(data)

    def take(self, max_bytes: int) -> bytes:
        """Remove and return up to *max_bytes* from the front."""
        pieces = self._pieces
        if self._size <= max_bytes:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self.clear()
            return data
        taken, room = [], max_bytes
        while room:
            piece = pieces.popleft()
            if len(piece) > room:
                pieces.appendleft(piece[room:])
                piece = piece[:room]
            taken.append(piece)
            room -= len(piece)
        self._size -= max_bytes
        return b"".join(taken)

    def clear(self) -> None:
        """Forget all."""
        self._pieces.clear()
        self._size = 0
