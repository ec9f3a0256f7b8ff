"""``node.toml`` of a home as it stands, and when it was edited."""

from __future__ import annotations

from pathlib import Path

import trio

from alknet.core.config import NodeConfig, load_config
from alknet.core.home import CONFIG_FILE

__all__ = ["ConfigFile"]

_Signature = tuple[int, int, int]

# An edit is noticed within this time; two stats a second cost nothing.
POLL_S = 0.5
# An editor that empties the file, or removes it, before it writes it anew is done by then. What
# it leaves in between reads as a configuration without peers, whose connections would end.
SETTLE_S = 0.1


class ConfigFile:
    """The configuration file of *home*, whether there is one or not."""

    def __init__(self, home: Path) -> None:
        self._path = home / CONFIG_FILE
        self._seen: _Signature | None = None
        self._limiter = trio.CapacityLimiter(1)

    def load(self) -> NodeConfig:
        """Return what it says. Raises like `load_config`."""
        # Looked at before it is read: an edit from now on is a change.
        self._seen = self._signature()
        return load_config(self._path)

    async def wait_edited(self) -> None:
        """Return when it is not what was last seen, nor is being written. Cancelled, no effect."""
        while True:
            await trio.sleep(POLL_S)
            found = await self._settled()
            if found != self._seen:
                self._seen = found
                return

    async def _settled(self) -> _Signature | None:
        """Return the signature of a file that nobody is writing."""
        found = await self._look()
        while found != self._seen:
            before = found
            await trio.sleep(SETTLE_S)
            found = await self._look()
            if found == before:
                break
        return found

    async def _look(self) -> _Signature | None:
        return await trio.to_thread.run_sync(self._signature, limiter=self._limiter)

    def _signature(self) -> _Signature | None:
        """What changes when the file does; None while there is none."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size
