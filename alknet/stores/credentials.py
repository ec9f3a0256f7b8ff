"""Sealed secrets of services, on a store. Nothing here can open one: that is the vault's."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from alknet.core.clock import WallClock, wall_clock
from alknet.core.storage import Delete, Put, Row, RowConflict
from alknet.errors import Conflict, LocalError, NotFound
from alknet.stores.audit import Entry
from alknet.stores.identities import StoredIdentities
from alknet.stores.tables import CREDENTIALS, CredentialRow

__all__ = ["SEALED_PREFIX", "Credentials"]

# What the vault seals begins so; anything else could be a secret in the clear.
SEALED_PREFIX = "alkv1:"
LONGEST_NAME = 256


class Credentials:
    """Texts ``alkv1:…`` under (service, name). The vault seals each for the path `path_of` gives.

    Args:
        identities: Whose store and audit log are used.
        clock: What dates the rows.
    """

    def __init__(self, identities: StoredIdentities, *, clock: WallClock = wall_clock) -> None:
        self._store = identities.store
        self._audit = identities.audit
        self._identities = identities
        self._clock = clock

    def get(self, service: str, name: str) -> str | None:
        """Return a sealed text from memory, or None.

        Raises:
            Unavailable: The store is too stale to be trusted.
        """
        self._identities.check_fresh()
        row = self._store.get(CREDENTIALS, path_of(service, name))
        return None if row is None else row.value.sealed

    def names(self, service: str) -> Sequence[str]:
        """Return the names that a service has, sorted."""
        return [row.value.name for row in self._store.find(CREDENTIALS, "service", service)]

    def services(self) -> Sequence[str]:
        """Return the services that have credentials, sorted."""
        return sorted({row.value.service for row in self._store.rows(CREDENTIALS)})

    async def put(self, service: str, name: str, sealed: str) -> None:
        """Store a sealed text. Cancelled, it was stored or not.

        Raises:
            LocalError: A name is not valid, or *sealed* was not sealed by a vault.
            StoreError: The store could not be written.
            Unavailable: The store is busy or out of reach.
        """
        if not sealed.startswith(SEALED_PREFIX):
            raise LocalError(f"a credential is sealed by the vault and begins with {SEALED_PREFIX}")
        path = path_of(service, name)
        row = CredentialRow(service=service, name=name, sealed=sealed, updated_at=self._clock())
        await self._audit.write([Put(CREDENTIALS, path, row)], Entry("credential.put", path))

    async def remove(self, service: str, name: str) -> None:
        """Forget a credential. Raises NotFound, or like `put`; cancelled, it was done or not."""
        path = path_of(service, name)
        found = await self._store.fetch(CREDENTIALS, path)
        if found is None:
            raise NotFound(f"no credential {path}")
        try:
            await self._audit.write(
                [Delete(CREDENTIALS, path, found.version)], Entry("credential.remove", path)
            )
        except RowConflict as exc:
            raise Conflict(f"credential {path} has changed meanwhile") from exc

    async def rewrap(self, seal_anew: Callable[[str, str], Awaitable[str]]) -> int:
        """Put every credential under the vault's newest key; return how many were changed.

        Each is one write, so that a kill or a cancel leaves each old or new, and a second call
        goes on. What is replaced meanwhile keeps its newer value, under the newest key too: older
        ones may be retired after this.

        Args:
            seal_anew: Given the path and the sealed text, returns the text to store.

        Raises:
            Unavailable: The store is too stale to be trusted, busy or out of reach.
            StoreError: The store could not be written.
        """
        self._identities.check_fresh()
        changed, after = 0, ""
        # Of the engine: memory may not have heard yet of what another process has stored.
        while page := await self._store.scan(CREDENTIALS, after=after):
            for row in page:
                changed += await self._has_moved(row, seal_anew)
            after = page[-1].key
        return changed

    async def _has_moved(
        self, row: Row[CredentialRow] | None, seal_anew: Callable[[str, str], Awaitable[str]]
    ) -> bool:
        """Put a row under the newest key; False if it is, or was removed meanwhile."""
        while row is not None:
            sealed = await seal_anew(row.key, row.value.sealed)
            if sealed == row.value.sealed:
                return False
            if await self._replaced(row, sealed):
                return True
            row = await self._store.fetch(CREDENTIALS, row.key)
        return False

    async def _replaced(self, row: Row[CredentialRow], sealed: str) -> bool:
        value = msgspec.structs.replace(row.value, sealed=sealed)
        entry = Entry("credential.rewrap", row.key)
        try:
            await self._audit.write([Put(CREDENTIALS, row.key, value, row.version)], entry)
        except RowConflict:
            return False
        return True


def path_of(service: str, name: str) -> str:
    """Return ``service/name``: the key of the row, and what the vault binds the text to.

    Raises:
        LocalError: One of them is not valid.
    """
    if not _SERVICE.fullmatch(service):
        raise LocalError(f"service {service[:80]!r} must match {_SERVICE.pattern}")
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise LocalError(f"a credential's name has 1 to {LONGEST_NAME} printable characters")
    return f"{service}/{name}"


_SERVICE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
