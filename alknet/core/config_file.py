"""``node.toml`` of a home as it stands, and when it was edited."""

from __future__ import annotations

from pathlib import Path

import trio

from alknet.core.config import NodeConfig, load_config
from alknet.core.home import CONFIG_FILE

__all__ = ["ConfigFile"]

# An edit is noticed within this time; two stats a second cost nothing.
POLL_S = 0.5


class ConfigFile:
    """The configuration file of *home*, whether there is one or not."""

    def __init__(self, home: Path) -> None:
        self._path = home / CONFIG_FILE
        self._seen: tuple[int, int, int] | None = None
        self._limiter = trio.CapacityLimiter(1)

    def load(self) -> NodeConfig:
        """Return what it says. Raises like `load_config`."""
        # Looked at before it is read: an edit from now on is a change.
        self._seen = self._signature()
        return load_config(self._path)

    async def wait_edited(self) -> None:
        """Return when it is not what was last seen. Cancelled, no effect."""
        while True:
            await trio.sleep(POLL_S)
            found = await trio.to_thread.run_sync(self._signature, limiter=self._limiter)
            if found != self._seen:
                self._seen = found
                return

    def _signature(self) -> tuple[int, int, int] | None:
        """What changes when the file does; None while there is none."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size
