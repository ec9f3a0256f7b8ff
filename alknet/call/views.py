"""Each caller's view of the operations, as one short text: what ``services/watch`` says.

Two callers with the same scopes have the same view, and one that sees the same operations as
before, with the same schemas and rules, the same version: also after a restart of the node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NoReturn

import msgspec
import trio

from alknet.call.registry import Entry, Registry
from alknet.call.visibility import may_call
from alknet.core.contracts import IdentityProvider
from alknet.core.identity import Identity

__all__ = ["FOLLOW_INTERVAL_S", "MOST_VIEWS", "OperationViews"]

MOST_VIEWS = 1024
"""Sets of scopes whose version is remembered: far more than a node grants."""

FOLLOW_INTERVAL_S = 0.1
"""Changes of rights within this time count as one: who writes a thousand peers wakes all once."""

_DIGEST_BYTES = 16


class OperationViews:
    """The versions of what each caller may call of a registry.

    `Registry.changes` is what to ring when something changed.
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
        kind, _, name = identity.id.partition(":")
        if self._identities is None or kind not in {"peer", "key"}:
            return identity
        if kind == "peer":
            peer = self._identities.peer(name)
            return None if peer is None or not peer.enabled else peer.identity()
        keys = self._identities.api_keys()
        return next((key.identity() for key in keys if key.prefix == name), None)

    def end(self) -> None:
        """Let those who watch see the end: a node that stops would wait for them."""
        self._has_ended = True
        self._registry.changes.ring()

    async def follow_rights(self) -> NoReturn:
        """Ring `Registry.changes` when the rights of callers may have changed, until cancelled."""
        identities = self._identities
        if identities is None:
            await trio.sleep_forever()
        version = identities.version
        while True:
            version = await identities.wait_changed(version)
            self._registry.changes.ring()
            await trio.sleep(FOLLOW_INTERVAL_S)

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
