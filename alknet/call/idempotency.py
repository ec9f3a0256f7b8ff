"""The answers of calls with an idempotency key, kept for those who send the same request again.

In memory alone: a node that was restarted has forgotten them. No clock is read here, and nothing
waits; calls that still run are in `alknet.call.sharing`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

import msgspec

from alknet.call.codes import CallError, ErrorCode
from alknet.call.proto import Requested
from alknet.core.limits import Limits

__all__ = ["Answer", "CallKey", "IdempotencyTable", "conflict", "fingerprint_of"]

ENTRY_BYTES = 1024
"""What an entry takes beside its answer, key and originator; measured, rounded up."""


class CallKey(NamedTuple):
    """Whose idempotency key it is, and which: the same text of two callers is two keys.

    Attributes:
        identity: The id of whom the call runs for.
        stranger: What tells apart those that are all ``anonymous``, the operations that only one
            session has, and peers of one name, of which the first was removed; None for others.
        originator: The id of whom the caller says that it acts for, as a hub does for its users.
        key: As it was sent.
    """

    identity: str
    stranger: object
    originator: str | None
    key: str

    @property
    def size(self) -> int:
        """How many bytes of the table it takes, about."""
        return len(self.identity) + len(self.originator or "") + len(self.key)


class Answer:
    """How a call ended: with an output, or with an error that a retry would meet again.

    Attributes:
        output: JSON; None if there is an error.
        error: None if there is an output.
        size: How many bytes it takes, about.
    """

    __slots__ = ("error", "output", "size")

    def __init__(self, output: bytes | None = None, error: CallError | None = None) -> None:
        """Make one. Raises what msgspec does if the details of *error* are not JSON."""
        self.output = output
        self.error = None
        self.size = len(output or b"")
        if error is not None:
            # A copy: what was raised holds the frames that it went through.
            self.error = error.copied()
            self.size = len(msgspec.json.encode((error.message, error.details)))

    @property
    def is_lasting(self) -> bool:
        """A retry would get the same: it succeeded, or failed for good."""
        return self.error is None or not self.error.retryable

    def give(self) -> bytes:
        """Return the output, or raise the error."""
        if self.error is not None:
            raise self.error.copied()
        assert self.output is not None
        return self.output


class IdempotencyTable:
    """Lasting answers by key, each for the window of `Limits.idempotency_window_s`.

    Over a limit, an identity's own oldest answers are forgotten first, and then the oldest of all.

    Attributes:
        held_bytes: What the answers and their keys take.
    """

    def __init__(self, limits: Callable[[], Limits]) -> None:
        """Make an empty table; *limits* are asked for each time, and may change."""
        self._limits = limits
        # Oldest first, which is the order in which they expire too.
        self._entries: OrderedDict[CallKey, _Entry] = OrderedDict()
        self._shares: dict[str, _Share] = {}
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: CallKey, fingerprint: bytes, now: float) -> Answer | None:
        """Return the answer that *key* got; None if it is not known, or not any more.

        Raises:
            CallError: CONFLICT, the key was used for another request.
        """
        self._forget_expired(now)
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.fingerprint != fingerprint:
            raise conflict()
        return entry.answer

    def remember(self, key: CallKey, fingerprint: bytes, answer: Answer, now: float) -> None:
        """Keep *answer* for *key*, which has none yet.

        One that is larger than an identity's share is not kept, but that there was one: a retry
        then fails, rather than run a second time.
        """
        limits = self._limits()
        size = ENTRY_BYTES + key.size + answer.size
        if size > limits.idempotency_bytes_per_identity:
            answer = Answer(error=_too_large(answer.size))
            size = ENTRY_BYTES + key.size + answer.size
        self._forget_expired(now)
        self._make_room(key.identity, size, limits)
        self._entries[key] = _Entry(fingerprint, answer, size, now)
        share = self._shares.setdefault(key.identity, _Share())
        share.keys[key] = None
        share.held_bytes += size
        self.held_bytes += size

    def _make_room(self, identity: str, size: int, limits: Limits) -> None:
        own = self._shares.get(identity)
        if own is not None:
            most, most_bytes = (
                limits.idempotency_keys_per_identity,
                limits.idempotency_bytes_per_identity,
            )
            while own.keys and (len(own.keys) >= most or own.held_bytes + size > most_bytes):
                self._forget(next(iter(own.keys)))
        most, most_bytes = limits.idempotency_keys, limits.idempotency_bytes
        while self._entries and (len(self._entries) >= most or self.held_bytes + size > most_bytes):
            self._forget(next(iter(self._entries)))

    def _forget_expired(self, now: float) -> None:
        kept_since = now - self._limits().idempotency_window_s
        while self._entries:
            key = next(iter(self._entries))
            if self._entries[key].ended_at > kept_since:
                return
            self._forget(key)

    def _forget(self, key: CallKey) -> None:
        size = self._entries.pop(key).size
        self.held_bytes -= size
        share = self._shares[key.identity]
        del share.keys[key]
        share.held_bytes -= size
        if not share.keys:
            del self._shares[key.identity]


class _Entry(NamedTuple):
    fingerprint: bytes
    answer: Answer
    size: int
    ended_at: float


class _Share:
    """What one identity has in the table. Ordered, for the first of a dict is slow to find."""

    __slots__ = ("held_bytes", "keys")

    def __init__(self) -> None:
        self.keys: OrderedDict[CallKey, None] = OrderedDict()
        self.held_bytes = 0


def fingerprint_of(request: Requested) -> bytes:
    """Return what is the same for a retry: operation, route and the bytes of the input."""
    digest = sha256("\0".join((request.operation, *(request.peer or ()))).encode())
    digest.update(b"\0\0")
    digest.update(request.input)
    return digest.digest()


def conflict() -> CallError:
    """Return the error of a request whose key was used for another."""
    why = "the idempotency key was used for another operation or input"
    return CallError(ErrorCode.CONFLICT, why)


def _too_large(size: int) -> CallError:
    why = f"the call has run, and its answer of {size} bytes was too large to be kept"
    return CallError(ErrorCode.RESOURCE_EXHAUSTED, why, retryable=False)
