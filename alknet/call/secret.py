"""The secrets that an operation declares, as its handler gets them: one call long, never shown."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from alknet.errors import LocalError, NotFound, Unavailable

if TYPE_CHECKING:
    from alknet.core.contracts import SecretProvider
    from alknet.vault.locked import LockedBuffer

__all__ = ["CallSecrets", "Secret"]

log = logging.getLogger(__name__)


class Secret:
    """A secret for the time of one call. It shows nothing of itself, and cannot be copied."""

    __slots__ = ("_buffer",)

    def __init__(self, buffer: LockedBuffer) -> None:
        """Take over *buffer*."""
        self._buffer = buffer

    @contextmanager
    def revealed(self) -> Iterator[memoryview]:
        """Give the bytes inside the block, read-only; after it the view raises ValueError.

        A copy (``bytes(view)``, ``str(view, "utf-8")``) cannot be wiped: make it late, if at all.

        Raises:
            LocalError: The call that it was given to is over.
        """
        try:
            view = self._buffer.view.toreadonly()
        except ValueError:
            raise LocalError("the call that this secret was given to is over") from None
        with view:
            yield view

    def close(self) -> None:
        """Wipe it. Idempotent; done at the end of the call."""
        self._buffer.close()

    def __repr__(self) -> str:
        return "<Secret>"

    def __format__(self, spec: str) -> str:
        return "<Secret>"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a secret is never copied")


class CallSecrets:
    """The secrets of one call: those that its operation declares, read when first asked for."""

    __slots__ = ("_declared", "_given", "_is_over", "_provider")

    def __init__(self, provider: SecretProvider | None, declared: Sequence[str]) -> None:
        self._provider = provider
        self._declared = declared
        self._given: dict[str, Secret] = {}
        self._is_over = False

    async def get(self, path: str) -> Secret:
        """Return the secret at *path*; see `alknet.call.context.Context.secret`."""
        if path not in self._declared:
            raise LocalError(f"the operation does not declare the secret {path!r}")
        if path in self._given:
            await trio.lowlevel.checkpoint()
            return self._given[path]
        secret = Secret(await self._read(path))
        if self._is_over:
            secret.close()
            raise LocalError("the call is over, and its secrets with it")
        # Of two tasks that asked at once the first is kept; the other's copy goes.
        kept = self._given.setdefault(path, secret)
        if kept is not secret:
            secret.close()
        return kept

    def close(self) -> None:
        """Wipe what was given; nothing more is given."""
        self._is_over = True
        for secret in self._given.values():
            secret.close()

    async def _read(self, path: str) -> LockedBuffer:
        if self._provider is None:
            raise _unavailable(path, "the node has no vault")
        try:
            return await self._provider.get(path)
        except (Unavailable, NotFound) as exc:
            raise _unavailable(path, str(exc)) from None


def _unavailable(path: str, why: str) -> Unavailable:
    """Log what the caller shall not learn: which secret it is, and what is wrong with it."""
    log.warning("secret.unavailable", extra={"path": path, "error": why})
    return Unavailable("the operation lacks a secret at present")
