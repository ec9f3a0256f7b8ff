"""Each caller's view of the operations, as one short text: what ``services/watch`` says.

Two callers with the same scopes have the same view, and one that sees the same operations as
before, with the same schemas and rules, the same version: also after a restart of the node.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import msgspec
import trio

from alknet.call.changes import Changes
from alknet.call.codes import CallError, ErrorCode
from alknet.call.registry import Entry, Registry
from alknet.call.visibility import may_call
from alknet.core.contracts import IdentityProvider
from alknet.core.identity import ApiKey, Identity

__all__ = ["FOLLOW_INTERVAL_S", "MOST_VIEWS", "MOST_WATCHES", "OperationViews"]

MOST_VIEWS = 1024
"""Sets of scopes whose version is remembered: far more than a node grants."""

FOLLOW_INTERVAL_S = 0.1
"""Changes of rights within this time count as one: all watchers are looked at, 2 µs each."""

MOST_WATCHES = 8
"""On one connection: strangers may watch, too, and each watch holds a task without end."""

_DIGEST_BYTES = 16


class OperationViews:
    """The versions of what each caller may call of a registry, and who watches them.

    `Registry.changes` is what to ring when something else is registered.
    """

    def __init__(
        self,
        registry: Registry,
        describe: Callable[[Entry], object],
        identities: IdentityProvider | None = None,
    ) -> None:
        """Make them.

        Args:
            describe: Returns what a caller may know of an operation, for msgspec to write.
            identities: Who a caller is now; None, and all keep the rights that they came with.
        """
        self._registry = registry
        self._describe = describe
        self._identities = identities
        self._has_ended = False
        self._watched: dict[str, _Watched] = {}
        self._watches: Counter[object] = Counter()
        self._seen = registry.changes.version
        self._views: dict[tuple[bool, bool, tuple[str, ...]], str] = {}
        self._entries: dict[str, tuple[Entry, bytes]] = {}

    def version(self, identity: Identity) -> str:
        """Return the version of what *identity* may call now."""
        changes = self._registry.changes
        if self._seen != changes.version or len(self._views) >= MOST_VIEWS:
            self._seen = changes.version
            self._forget()
        # All that a view rests on: `may_call` looks at nothing else of an identity.
        who = (identity.is_owner, identity.is_anonymous, identity.scopes)
        version = self._views.get(who)
        if version is None:
            version = self._views[who] = self._digest(identity)
        return version

    def current(self, identity: Identity) -> Identity | None:
        """Return *identity* with the rights that it has now; None if there is no more to watch."""
        if self._has_ended:
            return None
        if not self._is_stored(identity):
            return identity
        found = self._lookup(identity.id, self._find_key)
        # Whoever watches is told by these from now on, so a change back from them is one, too.
        if (watched := self._watched.get(identity.id)) is not None:
            watched.is_now(found)
        return found

    @contextmanager
    def watched(self, identity: Identity, session: object = None) -> Iterator[Changes]:
        """Give what rings when the rights of *identity* have changed, for as long as the block.

        Raises:
            CallError: RESOURCE_EXHAUSTED, there are `MOST_WATCHES` on *session* already.
        """
        watches = self._watches[session]
        if session is not None and watches >= MOST_WATCHES:
            why = f"there are {MOST_WATCHES} watches on this connection already"
            raise CallError(ErrorCode.RESOURCE_EXHAUSTED, why, retryable=False)
        watched = self._watched.get(identity.id)
        if watched is None:
            watched = self._watched[identity.id] = _Watched(identity)
        watched.watchers += 1
        self._watches[session] += 1
        try:
            yield watched.changes
        finally:
            watched.watchers -= 1
            if not watched.watchers:
                del self._watched[identity.id]
            self._watches[session] -= 1
            if not self._watches[session]:
                del self._watches[session]

    def end(self) -> None:
        """Let those who watch see the end: a node that stops would wait for them."""
        self._has_ended = True
        self._registry.changes.ring()

    async def follow_rights(self) -> NoReturn:
        """Wake those who watch when their rights have changed, until cancelled."""
        identities = self._identities
        if identities is None:
            await trio.sleep_forever()
        version = identities.version
        while True:
            version = await identities.wait_changed(version)
            keys = {key.prefix: key for key in identities.api_keys()}
            for name, watched in list(self._watched.items()):
                if self._is_stored(watched.identity):
                    watched.is_now(self._lookup(name, keys.get))
            await trio.sleep(FOLLOW_INTERVAL_S)

    def _is_stored(self, identity: Identity) -> bool:
        return self._identities is not None and identity.id.startswith(_STORED)

    def _lookup(
        self, identity_id: str, find_key: Callable[[str], ApiKey | None]
    ) -> Identity | None:
        assert self._identities is not None
        kind, _, name = identity_id.partition(":")
        if kind == "key":
            key = find_key(name)
            return None if key is None else key.identity()
        peer = self._identities.peer(name)
        return None if peer is None or not peer.enabled else peer.identity()

    def _find_key(self, prefix: str) -> ApiKey | None:
        assert self._identities is not None
        return next((key for key in self._identities.api_keys() if key.prefix == prefix), None)

    def _forget(self) -> None:
        self._views.clear()
        lookup = self._registry.lookup
        self._entries = {
            name: known for name, known in self._entries.items() if lookup(name) is known[0]
        }

    def _digest(self, identity: Identity) -> str:
        digest = hashlib.sha256()
        for entry in self._registry:
            if may_call(entry.operation, identity):
                digest.update(self._entry_digest(entry))
        return digest.hexdigest()[: 2 * _DIGEST_BYTES]

    def _entry_digest(self, entry: Entry) -> bytes:
        name = entry.operation.spec.name
        known = self._entries.get(name)
        if known is None or known[0] is not entry:
            described = msgspec.json.encode(self._describe(entry), order="deterministic")
            known = self._entries[name] = (entry, hashlib.sha256(described).digest())
        return known[1]


class _Watched:
    """An identity of which somebody watches the operations."""

    __slots__ = ("changes", "identity", "rights", "watchers")

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.rights: Identity | None = identity
        self.changes = Changes()
        self.watchers = 0

    def is_now(self, rights: Identity | None) -> None:
        """Wake the watchers if that is news."""
        if rights != self.rights:
            self.rights = rights
            self.changes.ring()


_STORED = ("peer:", "key:")
